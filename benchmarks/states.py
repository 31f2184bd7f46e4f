"""Do short optimizer states learn as float32 ones do? The sandbox policy trained with each, beside float32 seeds.

Every run computes in bfloat16. The spread of the float32 runs over seeds is what chance does; a setting that ends
inside it costs nothing that can be seen at this length. Printed: mean reward of the first and last quarter of steps.

On a CPU the products of bfloat16 matrices are computed by float32 kernels and rounded once: where a processor has no
bfloat16 of its own, torch's take up to 25 times as long.

    python benchmarks/states.py --shards SHARDS --out FOLDER --steps 200 --seeds 3
    python benchmarks/states.py --shards SHARDS --out FOLDER --states 8bit
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from taro.core.config import load_config
from taro.train.config import TrainConfig
from taro.train.loop import train

STATES = ("float32", "bfloat16", "8bit")


class Product(torch.autograd.Function):
    """x w' + b of bfloat16 numbers, as `torch.nn.functional.linear` under autocast."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        """bfloat16 [..., out]."""
        x, w = x.bfloat16(), w.bfloat16()
        ctx.save_for_backward(x, w)
        ctx.has_bias = b is not None
        y = x.float() @ w.float().T
        return (y if b is None else y + b.bfloat16().float()).bfloat16()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x, w and b."""
        x, w = ctx.saved_tensors
        g = gradients[0].bfloat16().float()
        rows = g.reshape(-1, g.shape[-1])
        of_w = (rows.T @ x.float().reshape(-1, x.shape[-1])).bfloat16() if ctx.needs_input_grad[1] else None
        return (g @ w.float()).bfloat16(), of_w, rows.sum(0).bfloat16() if ctx.has_bias else None


def use_float32_kernels() -> None:
    """Products of bfloat16 matrices on the CPU go through `Product`."""
    stock = torch.nn.functional.linear

    def linear(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        if x.device.type != "cpu" or not (torch.is_autocast_enabled("cpu") or x.dtype == torch.bfloat16):
            return stock(x, w, b)
        with torch.autocast("cpu", enabled=False):
            found: torch.Tensor = Product.apply(x, w, b)
            return found

    torch.nn.functional.linear = linear  # type: ignore[assignment]


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
    parser.add_argument("--states", nargs="+", choices=STATES, default=STATES)
    given = parser.parse_args()
    use_float32_kernels()
    for states in given.states:
        for seed in range(given.seeds if states == "float32" else 1):
            found = rewards(given.shards, given.out / f"{states}-{seed}", states, seed, given.steps, given.set)
            quarter = max(len(found) // 4, 1)
            first, last = (sum(part) / quarter for part in (found[:quarter], found[-quarter:]))
            print(json.dumps({"states": states, "seed": seed, "first": round(first, 3), "last": round(last, 3)}),
                  flush=True)


if __name__ == "__main__":
    main()
