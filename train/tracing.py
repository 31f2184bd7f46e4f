"""`--profile N`: where the time of N steps goes, as a table and as traces that a browser opens (ui.perfetto.dev).

The first step only warms up. Each phase of a traced step has a trace of its own, RUN/profile/step-N-PHASE.json.gz. That
of rollouts and that of scores end after LONGEST products with the head: decoding makes one a token, each beside
thousands of events, and the first ones show what the others do. The split counts whole phases; starting and ending
traces is not in it. Tracing changes no number of the run. Left out: shapes, stacks and memory of operations (they
multiply the files)."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from taro.core.files import make_folders, write_atomically
from taro.train.phases import Phases

__all__ = ["LONGEST", "StepTraces", "busy_seconds", "split_lines"]

LONGEST = 64
"""products with the head in a trace: tokens of a decoding, stretches of a scoring"""
TOP = 8
"""kernels (on a CPU: operations) that the split names"""
TRACED = ("rollouts", "scores", "update")


class StepTraces:
    """Traces `steps` steps of a run with the language models `models`. `step()` goes around each step, the first one
    warms up unless it is the `only` one; `write` puts the split into `folder`."""

    def __init__(self, folder: Path, models: Sequence[Any], phases: Phases, *, steps: int, only: bool) -> None:
        self._folder, self._phases, self._steps = folder, phases, steps
        self._heads = {id(model.head): model.head for model in models}.values()  # where both are one, once
        self._seen, self._passes = (1 if only else 0), 0
        self._number: int | None = None
        self._open: tuple[str, torch.profiler.profile, float] | None = None
        self._lines: list[Mapping[str, Any]] = []
        self._cost: dict[str, float] = {}
        self._found: dict[str, dict[str, Any]] = {}

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[list[Mapping[str, Any]]]:
        """Traces the block where it is one of the steps; what is put into the list that it yields is its line."""
        line: list[Mapping[str, Any]] = []
        self._seen += 1
        if not 1 < self._seen <= self._steps + 1:
            yield line
            return
        make_folders(self._folder)
        self._number = number
        hooks = [head.register_forward_pre_hook(self._count) for head in self._heads]
        self._phases.observers.append(self._phase)
        try:
            yield line
        finally:
            self._phases.observers.remove(self._phase)
            for hook in hooks:
                hook.remove()
            self._end()
        self._lines += line

    def _phase(self, name: str, begins: bool) -> None:
        if begins and name in TRACED and self._open is None:
            started = time.monotonic()
            kinds = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                kinds.append(torch.profiler.ProfilerActivity.CUDA)
                torch.cuda.synchronize()
            profile = torch.profiler.profile(activities=kinds)
            profile.start()
            self._passes, self._open = 0, (name, profile, time.monotonic())
            self._cost[name] = self._cost.get(name, 0.0) + self._open[2] - started
        elif not begins and self._open is not None and self._open[0] == name:
            self._end()

    def _count(self, *_: Any) -> None:
        """Before each product with the head; it is outside of the CUDA graphs of decoding. An update is traced whole: a
        trace does not end inside a backward pass."""
        self._passes += self._open is not None and self._open[0] != "update"
        if self._passes > LONGEST:
            self._end()

    def _end(self) -> None:
        """Ends the trace that is open: writes it, and keeps what the split says of it."""
        if self._open is None:
            return
        (name, profile, began), self._open = self._open, None
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ended = time.monotonic()
        profile.stop()
        profile.export_chrome_trace(str(self._folder / f"step-{self._number:06d}-{name}.json.gz"))
        self._keep(name, profile, ended - began)
        self._cost[name] += time.monotonic() - ended

    def _keep(self, name: str, profile: torch.profiler.profile, seconds: float) -> None:
        found = self._found.setdefault(name, {"traced_s": 0.0, "busy_s": 0.0, "gpu": False, "top": {}})
        found["traced_s"] += seconds
        events = list(profile.events() or ())
        kernels = [event for event in events if event.device_type.name == "CUDA"]
        found["gpu"] = found["gpu"] or bool(kernels)
        found["busy_s"] += busy_seconds([(one.time_range.start, one.time_range.end) for one in kernels])
        for one in kernels or events:
            took = one.time_range.elapsed_us() if kernels else one.self_cpu_time_total
            known = found["top"].setdefault(str(one.name)[:120], [0.0, 0])
            found["top"][str(one.name)[:120]] = [known[0] + took / 1e6, known[1] + 1]

    def write(self) -> dict[str, Any] | None:
        """Writes profile/split.json: {"steps", "seconds", "phases": {name: {"seconds", "share", "tokens_per_s",
        "traced_s", "gpu_busy", "top"}}}. None where no step was traced."""
        if not self._lines:
            return None
        names = list(dict.fromkeys(name for line in self._lines for name in line["phases"]))
        cost, phases = sum(self._cost.values()), dict[str, dict[str, Any]]()
        whole = max(sum(float(line["seconds"]) for line in self._lines) - cost, 1e-9)
        for name in names:
            seconds = sum(line["phases"].get(name, 0.0) for line in self._lines) - self._cost.get(name, 0.0)
            tokens = sum(line["tokens_per_s_by_phase"].get(name, 0.0) * line["phases"].get(name, 0.0)
                         for line in self._lines)
            phases[name] = {"seconds": seconds, "share": seconds / whole,
                            "tokens_per_s": tokens / max(seconds, 1e-9) if tokens else None}
            if name in self._found:
                found = self._found[name]
                top = sorted(found["top"].items(), key=lambda item: -item[1][0])[:TOP]
                phases[name] |= {
                    "traced_s": found["traced_s"],
                    "gpu_busy": found["busy_s"] / max(found["traced_s"], 1e-9) if found["gpu"] else None,
                    "top": [{"name": kernel, "seconds": took, "calls": calls} for kernel, (took, calls) in top]}
        rest = whole - sum(one["seconds"] for one in phases.values())
        phases["between"] = {"seconds": rest, "share": rest / whole, "tokens_per_s": None}
        split = {"steps": len(self._lines), "seconds": whole, "phases": phases}
        write_atomically(self._folder / "split.json", (json.dumps(split, indent=1) + "\n").encode())
        return split


def busy_seconds(spans_us: Sequence[tuple[float, float]]) -> float:
    """Seconds in which at least one of the spans (microseconds) is under way.

    >>> busy_seconds([(0, 2e6), (1e6, 3e6), (5e6, 6e6)])
    4.0
    """
    busy, until = 0.0, float("-inf")
    for start, end in sorted(spans_us):
        busy, until = busy + max(0.0, end - max(start, until)), max(until, end)
    return busy / 1e6


def split_lines(split: Mapping[str, Any]) -> list[str]:
    """The split for people: a line a phase, then what took the most of each."""
    gpu = any(one.get("gpu_busy") is not None for one in split["phases"].values())
    lines = [f"{split['steps']} steps, {split['seconds']:.2f} s",
             f"{'phase':<10} {'seconds':>9} {'share':>6} {'tokens/s':>10}" + (f" {'GPU busy':>9}" if gpu else "")]
    for name, one in split["phases"].items():
        tokens = "" if one["tokens_per_s"] is None else f"{one['tokens_per_s']:,.0f}"
        busy = "" if one.get("gpu_busy") is None else f" {one['gpu_busy']:>9.0%}"
        lines.append(f"{name:<10} {one['seconds']:>9.2f} {one['share']:>6.0%} {tokens:>10}{busy}".rstrip())
    for name, one in split["phases"].items():
        if one.get("top"):
            lines.append(f"{name}, the first {one['traced_s']:.2f} s traced: " + ", ".join(
                f"{top['name'][:48]} {top['seconds']:.3f} s" for top in one["top"][:3]))
    return lines
