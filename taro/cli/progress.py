"""Progress output: a bar in a terminal, elsewhere a line now and then, so that a long job is not silent.

Everything goes to stderr. A line comes with the first step after `every_s` seconds, so a command of seconds says
nothing. Left out: a pulse inside one step (a timer would speak for work that hangs)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from taro.core.text import visible

__all__ = ["Lines", "Shown", "progress"]

EVERY_S = 30.0


class Lines:
    """Progress as lines of text, at most one in `every_s` seconds."""

    def __init__(self, say: Callable[[str], None], *, every_s: float = EVERY_S) -> None:
        self._say, self._every_s = say, every_s
        self._began_s = self._said_s = time.monotonic()

    def update(self, done: float, total: float | None, label: str) -> None:
        """`done` of `total` parts are finished; None: nobody knows how many there are."""
        now_s = time.monotonic()
        if now_s - self._said_s < self._every_s:
            return
        self._said_s = now_s
        far = f"{done:,.0f}" if total is None else f"{done:,.0f} of {total:,.0f}"
        self._say(f"{label}: {far}, {_span(now_s - self._began_s)} so far")


class Shown:
    """Progress of one command: `update` moves the bar, `say` prints a line beside it."""

    def __init__(self, console: Any, bar: Any, label: str) -> None:
        self._console, self._bar, self._label, self._total = console, bar, label, None
        self._lines = Lines(self.say)
        self._task = bar.add_task(label, total=None)

    def update(self, done: float, total: float | None = None, label: str | None = None) -> None:
        """`done` of `total` parts are finished."""
        self._label = label or self._label
        self._bar.update(self._task, completed=done, total=total, description=self._label)
        if not self._console.is_terminal:
            self._lines.update(done, total, self._label)

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        self._console.print(visible(text), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(label: str, *, quiet: bool = False) -> Iterator[Shown]:
    """Shows progress while the block runs; `quiet`: not at all."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, quiet=quiet)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        yield Shown(console, bar, label)


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
