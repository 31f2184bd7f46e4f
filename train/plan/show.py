"""A plan as plain text, and as values for --json; also beside what a GPU held when it was full."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from taro.train.plan.fits import Way
from taro.train.plan.make import Plan

__all__ = ["fit_lines", "plan_lines", "plan_values", "run_lines", "use_text"]

GIB = 2**30
SHOWN = 0.005
"""GiB below which a part is no row"""


def plan_lines(plan: Plan) -> list[str]:
    """The memory table of one GPU: a row a part, a column a phase, GiB."""
    phases = list(plan.phases)
    rows = [(name, [size] * len(phases)) for name, size in plan.always.items()]
    names = dict.fromkeys(name for parts in plan.phases.values() for name in parts)
    rows += [(name, [parts.get(name, 0) for parts in plan.phases.values()]) for name in names]
    gaps = [int(plan.gaps * plan.allocated(phase) / plan.allocated(plan.peak_phase)) for phase in phases]
    rows += [("CUDA's context", [plan.context] * len(phases)), ("gaps between blocks", gaps)]
    total = [plan.allocated(phase) + plan.context + gap for phase, gap in zip(phases, gaps, strict=True)]
    width = max(len(name) for name, _ in rows)
    lines = [f"{'GiB of one GPU':{width}}" + "".join(f"{phase:>10}" for phase in phases)]
    lines += [f"{name:{width}}" + "".join(_cell(size) for size in sizes) for name, sizes in rows
              if max(sizes) >= SHOWN * GIB]
    return [*lines, f"{'together':{width}}" + "".join(_cell(size) for size in total)]


def _cell(size: int) -> str:
    return f"{size / GIB:10.2f}" if size >= SHOWN * GIB else f"{'-':>10}"


def plan_values(plan: Plan) -> dict[str, Any]:
    """The same for --json, in bytes."""
    job = plan.job
    (expected, tokens), (least, most) = plan.response_tokens, plan.hours
    return {
        "gpus": job.world, "gpu": plan.gpu, "memory": plan.memory, "fits": plan.fits, "peak": plan.peak,
        "peak_phase": plan.peak_phase, "parameters": job.shape.parameters, "trained": job.trained,
        "always": plan.always, "phases": plan.phases, "context": plan.context, "gaps": plan.gaps,
        "steps": plan.steps, "hours": least, "hours_with_redraws": most, "speed": asdict(plan.speed),
        "prompt_tokens": {"longest": plan.lengths.longest, "mean": plan.lengths.mean, "known": plan.lengths.known},
        "response_tokens": {"expected": round(expected), "most": tokens, "mean": plan.response[0],
                            "mean_known": plan.response[1]},
    }


def run_lines(plan: Plan) -> list[str]:
    """What is trained, and how much of it there is to draw."""
    job, (expected, most) = plan.job, plan.response_tokens
    known = "of this run's last steps" if plan.response[1] else "assumed"
    asked = f"of {plan.lengths.queries:,} queries" if plan.lengths.known else "assumed, since there is no shard set"
    unit, name = (1e9, "billion") if job.shape.parameters >= 1e8 else (1e6, "million")
    return [
        f"trained: {job.trained / unit:.2f} of {job.shape.parameters / unit:.2f} {name} parameters, on {job.world} "
        f"GPU{'s' * (job.world > 1)}",
        f"prompts: at most {plan.lengths.longest:,} tokens, {plan.lengths.video:,} of them video ({asked}); responses: "
        f"at most {job.R:,}, {plan.response[0]:,.0f} on average ({known})",
        f"steps: {plan.steps:,} of {plan.prompts:,} prompts x {job.G} {'paths' if job.sft else 'rollouts'}; response "
        f"tokens: {expected / 1e6:.1f} million, at most {most / 1e6:.1f}",
        f"time: about {plan.hours[0]:.1f} hours{_redrawn(plan)} ({_measured(plan)})"]


def _redrawn(plan: Plan) -> str:
    if not plan.job.redraws:
        return ""
    return f", and {plan.hours[1]:.1f} where every group is drawn again in each of {plan.job.redraws} rounds"


def _measured(plan: Plan) -> str:
    speed = plan.speed
    if speed.steps:
        return f"from {speed.steps} steps on {speed.gpu}, of a run of this kind"
    return f"from figures of {speed.gpu}; for this machine's own let a run of five steps end on it"


def fit_lines(plan: Plan, ways: list[Way]) -> list[str]:
    """Whether it fits, and what would."""
    of = f"{plan.gpu or 'a GPU'} with {plan.memory / GIB:.1f} GiB"
    peak = f"peak: {plan.peak / GIB:.1f} GiB, in the phase {plan.peak_phase}"
    if plan.fits:
        return [f"{peak}; it fits {of}"]
    lines = [f"{peak}; it does not fit {of}"]
    for way in ways:
        gpus = f" --gpus {way.gpus}" if way.gpus != plan.job.world else ""
        line = "".join(f" --set {setting}" for setting in way.settings)
        lines.append(f"would fit, {way.peak / GIB:.1f} GiB:{gpus}{line}")
    return lines if ways else [*lines, "no setting that taro knows makes it fit: take a smaller policy, shorter videos "
                                       "or rollout.max_new_tokens, or larger GPUs"]


def use_text(plan: Plan) -> str:
    """What of this process's GPU is in use, and the plan's table beside it."""
    import torch

    free, total = torch.cuda.mem_get_info()
    held = torch.cuda.memory_reserved()
    used = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated(), held, total - free - held, total
    now, most, gaps, others, whole = (f"{size / GIB:.2f} GiB" for size in used)
    return "\n".join([f"In use of {whole}: {now} by the run (at most {most}; {gaps} with gaps), {others} by CUDA and "
                      "other programs. Planned:", *plan_lines(plan)])
