"""Do short optimizer states learn as float32 ones do? The sandbox policy trained with each, beside float32 seeds.

Every run computes in bfloat16. The spread of the float32 runs over seeds is what chance does; a setting that ends
inside it costs nothing that can be seen at this length. Printed: mean reward of the first and last quarter of steps.

    python benchmarks/states.py --shards SHARDS --out FOLDER --steps 200 --seeds 3
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from taro.core.config import load_config
from taro.train.config import TrainConfig
from taro.train.loop import train

STATES = ("float32", "bfloat16", "8bit")


def rewards(shards: str, out: Path, states: str, seed: int, steps: int, more: list[str]) -> list[float]:
    """Mean rewards of the steps of one run."""
    settings = [f"shards={shards}", f"out={out}", f"seed={seed}", "dtype=bfloat16", f"optimizer.states={states}",
                f"length.amount={steps}", "curriculum.schedule=off", f"checkpoint.every={steps}", *more]
    train(load_config(TrainConfig, "quickstart", settings, package="taro.train.recipes"))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [float(line["reward"]) for line in lines if "reward" in line]


def main() -> None:
    """Runs float32 with every seed, the others with the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="further settings")
    given = parser.parse_args()
    for states in STATES:
        for seed in range(given.seeds if states == "float32" else 1):
            found = rewards(given.shards, given.out / f"{states}-{seed}", states, seed, given.steps, given.set)
            quarter = max(len(found) // 4, 1)
            first, last = (sum(part) / quarter for part in (found[:quarter], found[-quarter:]))
            print(json.dumps({"states": states, "seed": seed, "first": round(first, 3), "last": round(last, 3)}),
                  flush=True)


if __name__ == "__main__":
    main()
