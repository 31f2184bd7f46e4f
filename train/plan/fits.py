"""Where a run does not fit: which settings would make it fit, tried in one order, from what costs least to what costs
most.

`LADDER` first, all parameters trained: recomputed activations (a third more time in the update), the reference on the
host (it is streamed in each step), fewer prompts decoded at once (slower rollouts), activations kept on the host, and
states of fewer bytes (rounding). What turns out not to be needed is taken out again. Then LoRA, then more GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from taro.train.plan.make import Plan, with_job
from taro.train.plan.memory import Adapters

__all__ = ["LADDER", "Way", "ways_to_fit"]

LADDER: tuple[tuple[str, dict[str, Any]], ...] = (
    ("optimizer.checkpoint_activations=true", {"recompute": True}),
    ("reference=host", {"reference": "host"}),
    ("rollout.batch_prompts=8", {"batch": 8}),
    ("rollout.batch_prompts=4", {"batch": 4}),
    ("optimizer.offload_activations=true", {"offload": True}),
    ("rollout.batch_prompts=2", {"batch": 2}),
    ("optimizer.states=bfloat16", {"states": "bfloat16"}),
    ("optimizer.states=8bit", {"states": "8bit"}),
)
"""settings in the order in which they are tried, each on top of those before, and what they change in a `Job`"""
RANK = 64
GPUS = (2, 4, 8)


@dataclass(frozen=True)
class Way:
    """Settings with which a run fits, what else it takes (more GPUs), and its peak in bytes."""

    settings: tuple[str, ...]
    gpus: int
    peak: int


def ways_to_fit(plan: Plan) -> list[Way]:
    """At most one way of each kind: other settings for the same GPUs, LoRA, more GPUs. None where the plan fits."""
    return [] if plan.fits else [*_full(plan, plan.job.world), *_lora(plan), *_more(plan)]


def _changes(plan: Plan) -> list[tuple[str, dict[str, Any]]]:
    """The steps of the ladder that would change something."""
    job = plan.job
    useless = {"optimizer.offload_activations=true"} if job.micro * job.T == 0 else set()
    found = []
    for line, change in LADDER:
        name, value = next(iter(change.items()))
        if line in useless or getattr(job, name) == value or (name == "batch" and job.batch <= value):
            continue
        if name == "reference" and (job.reference == "none" or job.adapters is not None):
            continue
        if name == "states" and (job.adapters is not None or (job.states, value) == ("8bit", "bfloat16")):
            continue
        found.append((line, change))
    return found


def _applied(plan: Plan, steps: list[tuple[str, dict[str, Any]]]) -> Plan:
    changes: dict[str, Any] = {}
    for _, change in steps:
        changes |= change
    return with_job(plan, **changes)


def _full(plan: Plan, gpus: int) -> Iterator[Way]:
    """The shortest beginning of the ladder that fits, without what it does not need."""
    steps = _changes(plan)
    for end in range(1, len(steps) + 1):
        if not _applied(plan, steps[:end]).fits:
            continue
        needed = steps[:end]
        for step in steps[:end][::-1]:
            rest = [one for one in needed if one is not step]
            if _applied(plan, rest).fits:
                needed = rest
        last = {next(iter(change)): line for line, change in needed}  # of two values of a setting the last counts
        yield Way(tuple(last.values()), gpus, _applied(plan, needed).peak)
        return


def _lora(plan: Plan) -> Iterator[Way]:
    """LoRA on every Linear, with as much of the ladder as it takes."""
    if plan.job.adapters is not None:
        return
    adapted = with_job(plan, adapters=Adapters(RANK, tuple(plan.job.shape.linears)))
    line = f"lora.rank={RANK}"
    if adapted.fits:
        yield Way((line,), plan.job.world, adapted.peak)
    for way in _full(adapted, plan.job.world) if not adapted.fits else ():
        yield replace(way, settings=(line, *way.settings))


def _more(plan: Plan) -> Iterator[Way]:
    """The fewest GPUs on which the run fits as it is, or with recomputed activations."""
    job = plan.job
    for gpus in GPUS:
        if gpus <= job.world or plan.prompts % gpus:
            continue
        share = plan.prompts // gpus
        spread = with_job(plan, world=gpus, prompts=share, batch=min(job.batch, share))
        for settings in ((), LADDER[:1]):
            changed = _applied(spread, list(settings))
            if changed.fits and not (settings and job.recompute):
                yield Way(tuple(line for line, _ in settings), gpus, changed.peak)
                return
