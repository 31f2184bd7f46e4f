"""The panel of `taro train` on a terminal, below its bar: what the run does now, and how its numbers go.

At most twelve short lines: the phase, parts of the reward with their last steps, drop, KL, entropy, lengths, tokens a
second of each phase, memory of each rank, the last validation, the last warning. The bar is above it, so that a low
terminal cuts the panel. Every text goes through a console that writes control characters out. Left out: logs and pipes,
which get lines (taro/cli/progress.py)."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from taro.cli.progress import Shown, span
from taro.core.text import one_line

__all__ = ["Panel", "heard_warnings", "trend"]

LEVELS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
KEPT = 5
"""steps in a trend"""
REWARDS = (("reward", "total"), ("format", "format"), ("tiou", "tIoU"), ("bonus", "bonus"))
LEARNED = (("loss", "loss"), ("accuracy", "accuracy"))
"""of a run with objective=sft, which has no rewards"""
OTHERS = (("drop_mean", "drop", ".2f"), ("kl", "KL", ".3g"), ("entropy", "entropy", ".2f"))


def trend(values: list[float]) -> str:
    """The values as small bars from the least to the most of them; those that are no number are left out.

    >>> trend([0.0, 1.0]) == LEVELS[0] + LEVELS[-1] and trend([2.0]) == ""
    True
    """
    known = [value for value in values if math.isfinite(value)]
    if len(known) < 2:
        return ""
    low, high = min(known), max(known)
    return "".join(LEVELS[int((value - low) / (high - low) * 7.999) if high > low else 3] for value in known)


class Panel:
    """Takes lines of metrics.jsonl, phases and warnings; `rows` is what it shows, `render` draws it."""

    def __init__(self) -> None:
        self._phase, self._since_s = "", time.monotonic()
        self._line: Mapping[str, Any] = {}
        self._last: dict[str, deque[float]] = {key: deque(maxlen=KEPT) for key, _ in (*REWARDS, *LEARNED)}
        self._validated = self._warned = ""
        self._best: tuple[float, int] | None = None

    def phase(self, name: str, begins: bool) -> None:
        """A phase of a step begins, or ends."""
        self._phase, self._since_s = name if begins else "", time.monotonic()

    def warn(self, text: str) -> None:
        """A warning: the last one stays."""
        self._warned = one_line(text)

    def see(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl: a step or an evaluation."""
        if "eval" not in line:
            self._line = line
            for key, kept in self._last.items():
                kept.append(_number(line.get(key)))
            return
        found, step = line["eval"], int(line["step"])
        score = _number(found.get("miou"))
        if math.isfinite(score) and (self._best is None or score > self._best[0]):
            self._best = score, step
        best = "" if self._best is None or self._best[1] == step else f", best {self._best[0]:.3f} at {self._best[1]}"
        self._validated = f"step {step}: mIoU {score:.3f}, R1@0.5 {_number(found.get('r1@0.5')):.3f}{best}"

    def rows(self) -> list[tuple[str, str]]:
        """(name, text) of each line; what is not known yet is left out."""
        line, now = self._line, time.monotonic() - self._since_s
        found = [("now", f"{self._phase}, {span(now)}" if self._phase else "")]
        if line:
            sft = line.get("phase") == "sft"
            found.append(("learned" if sft else "rewards", "  ".join(
                f"{name} {_number(line.get(key)):.2f} {trend(list(self._last[key]))}".rstrip()
                for key, name in (LEARNED if sft else REWARDS))))
            tokens = f"mean {_number(line.get('length')):.0f}"
            if not sft:
                found.append(("policy", "  ".join(f"{name} {_number(line.get(key)):{how}}"
                                                  for key, name, how in OTHERS)))
                tokens += (f", {_number(line.get('length_min')):.0f} to {_number(line.get('length_max')):.0f}, "
                           f"{_number(line.get('truncated')):.0%} cut off")
            found.append(("tokens", tokens))
            speeds = line.get("tokens_per_s_by_phase") or {}
            found.append(("tokens/s", "  ".join(f"{name} {value:,.0f}" for name, value in speeds.items())))
            ranks = line.get("memory_gib_ranks") or [_number(line.get("memory_gib"))]
            found.append(("memory", " ".join(f"{value:.1f}" for value in ranks) + " GiB"))
        return [(name, text) for name, text in (
            *found, ("validated", self._validated), ("warning", self._warned)) if text]

    def render(self, height: int) -> Any:
        """For rich; nothing on a terminal of less than 16 lines."""
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 1, 0, 0), expand=True)
        grid.add_column(no_wrap=True, min_width=9)
        grid.add_column(ratio=1, overflow="fold")
        for name, text in self.rows() if height >= 16 else ():
            grid.add_row(Text(name, style="dim"), Text(text if name != "warning" else text[:240]))
        return grid


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


class _Heard(logging.Handler):
    def __init__(self, hear: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self._hear(record.getMessage())


@contextmanager
def heard_warnings(panel: Panel, shown: Shown) -> Iterator[None]:
    """While the block runs, taro's warnings are printed above the bar, and the last stays in the panel. Where there is
    no panel, they go where they go."""
    if not shown.panel:
        yield
        return
    logger, plain = logging.getLogger("taro"), not logging.getLogger().handlers

    def hear(text: str) -> None:
        panel.warn(text)
        if plain:  # else whoever set logging up prints it
            shown.say(text)

    handler = _Heard(hear)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
