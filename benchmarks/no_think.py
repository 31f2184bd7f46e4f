"""Does reasoning pay? The sandbox policy trained with and without it, from one start, and both in one table.

The shipped policy has never seen a response without reasoning, so it is first taught the form of both: weak answers
(shifted, some of another event) under both prompts, supervised, on the training set's features. That is the start of
two runs of the quickstart recipe which differ in `reward.no_think` alone (and what it asks for: no guided phase, the
drop over the response). Start and both results then answer the held-out queries, greedy and sampled, in both modes.

Left out: several seeds in one call; one seed proves nothing, so run it with several.

    python benchmarks/no_think.py --train SHARDS --held-out SHARDS --out FOLDER --seed 0
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from taro.core import draws
from taro.core.config import load_config
from taro.grounding.moment import Moment
from taro.grounding.prompts import Asking, load_template
from taro.metrics.answers import score_rows
from taro.models.asking import asking_of
from taro.models.export import export_checkpoint
from taro.models.load import load_policy
from taro.models.logprobs import score
from taro.models.policy import Policy
from taro.models.resolve import resolve_model
from taro.models.sampler import Decoding
from taro.sandbox.tasks import response
from taro.shards.reader import QueryRef, ShardSet
from taro.train.config import TrainConfig
from taro.train.evaluate import Questions, evaluate_policy
from taro.train.loop import train
from taro.train.sets import open_encoded_shards

TEACH_BATCH, TEACH_LR = 16, 3e-4
SHIFT, WRONG = 3, 0.3
HALF_S = 0.5
RUNS: dict[str, list[str]] = {
    "think": [],
    "no think": ["reward.no_think=true", "reward.drop_over=response", "curriculum.schedule=off"],
}


def weak_text(query: str, windows: list[Moment], own: int, duration_s: float, step: int, *, think: bool) -> str:
    """A response in the right form with a bad answer, as `taro.sandbox.tasks.weak_example` makes them."""
    draw = draws.rng("no-think weak", step, query, int(think))
    window = windows[int(draw.integers(len(windows)))] if draw.random() < WRONG else windows[own]
    low, high = (int(x) * HALF_S for x in draw.integers(-SHIFT, SHIFT + 1, 2))
    start_s = min(max(window.start_s + low, 0.0), duration_s - HALF_S)
    text = response(query, [], Moment(start_s, max(start_s + HALF_S, min(window.end_s + high, duration_s))))
    return text if think else text[text.index("<answer>") :]


def teach(policy: Policy, shard_set: ShardSet, steps: int) -> float:
    """Teaches both forms, half a batch each; the last loss."""
    template, refs = asking_of(policy.folder).template, shard_set.queries()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=TEACH_LR, weight_decay=0.0)
    last = 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = TEACH_LR * (1 - step / steps)
        chosen = draws.rng("no-think teach", step).permutation(len(refs))[: TEACH_BATCH // 2]
        loss = torch.tensor(0.0)
        for think in (True, False):
            loss = loss + _loss(policy, template, shard_set, [refs[i] for i in chosen], step, think=think) / 2
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        last = float(loss.detach())
    return last


def _loss(policy: Policy, template: Any, shard_set: ShardSet, refs: list[QueryRef], step: int,
          *, think: bool) -> torch.Tensor:
    prompts, rows = [], []
    for sample in map(shard_set.sample, refs):
        windows = [query.windows[0] for query in sample.clip.queries]
        own = next(at for at, query in enumerate(sample.clip.queries) if query.id == sample.query.id)
        text = weak_text(sample.query.text, windows, own, sample.clip.duration_s, step, think=think)
        prompts.append(policy.prompt(sample.features, template.user_text(sample.query.text, no_think=not think)))
        rows.append([*policy.encode_text(text), policy.eos_ids[0]])
    R = max(map(len, rows))
    ids = torch.tensor([[row + [0] * (R - len(row))] for row in rows])
    mask = torch.tensor([[[True] * len(row) + [False] * (R - len(row))] for row in rows])
    logprobs = score(policy, prompts, ids, mask)
    return -(logprobs * mask).sum() / mask.sum()


def answers(folder: Path, shards: Path, seed: int) -> list[dict[str, Any]]:
    """Scores of a policy in both modes and both decodings."""
    policy = load_policy(folder)
    shard_set, found = open_encoded_shards(shards, policy.folder), []
    for no_think in (False, True):
        for temperature in (0.0, 1.0):
            rows = evaluate_policy(policy, shard_set, Asking(load_template("sandbox"), no_think),
                                   Decoding(96, temperature=temperature), questions=Questions(seed=seed),
                                   batch_prompts=32)
            scores = score_rows(rows, bootstrap_seed=seed).as_dict()
            found.append({"asked": "no think" if no_think else "think", "sampled": temperature > 0,
                          "tokens": sum(row.tokens for row in rows) / len(rows), "queries": scores["queries"],
                          **{key: scores[key] for key in ("miou", "r1@0.3", "r1@0.5", "r1@0.7", "intervals",
                                                         "timestamps")}})
    return found


def main() -> None:
    """Teaches, trains twice, answers, prints a table and writes OUT/no-think.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="shard set of the sandbox to train on")
    parser.add_argument("--held-out", type=Path, required=True, help="shard set of the sandbox to answer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--teach", type=int, default=80, help="supervised steps that teach both forms")
    args = parser.parse_args()
    start = args.out / "start"
    if not start.exists():
        base = resolve_model("sandbox:policy")
        policy = load_policy(base, trainable=True)
        taught = teach(policy, open_encoded_shards(args.train, policy.folder), args.teach)
        print(f"taught: loss {taught:.3f}", flush=True)
        export_checkpoint(policy, base, start)
        (start / "taro.json").write_text(json.dumps({"template": "sandbox"}))
    result = {"start": answers(start, args.held_out, args.seed)}
    for name, overrides in RUNS.items():
        began, out = time.monotonic(), args.out / name.replace(" ", "-")
        config = load_config(TrainConfig, "quickstart", [
            f"policy={start}", f"shards={args.train}", f"out={out}", f"seed={args.seed}", "device=cpu",
            f"length.amount={args.steps}", f"curriculum.amount={max(1, round(0.3 * args.steps))}", *overrides],
            package="taro.train.recipes")
        report = train(config, resume=(out / "config.yaml").is_file())
        print(f"{name}: {report.steps} steps, {time.monotonic() - began:.0f} s", flush=True)
        result[name] = answers(report.export, args.held_out, args.seed)
        for row in result[name]:
            print(name, {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()
                         if key != "intervals"}, flush=True)
    (args.out / "no-think.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{'trained':<10}{'asked':<10}{'decoding':<10}{'mIoU':>7}{'R1@.5':>7}{'R1@.7':>7}{'tokens':>8}")
    for name, rows in result.items():
        for row in rows:
            print(f"{name:<10}{row['asked']:<10}{'sampled' if row['sampled'] else 'greedy':<10}{row['miou']:>7.3f}"
                  f"{row['r1@0.5']:>7.3f}{row['r1@0.7']:>7.3f}{row['tokens']:>8.1f}")


if __name__ == "__main__":
    main()
