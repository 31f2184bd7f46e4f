"""Progress output: in a terminal a bar with step, count and time left, elsewhere a line now and then.

Everything goes to stderr. The bar begins with the command, before anything heavy is imported, and fits 80 columns: the
label gives way, the count and the time do not. Where nobody knows how much there is (a model that loads), the bar
pulses beside the time so far. A line comes with the first step after `every_s` seconds, so in a log a command of
seconds says nothing. Left out: a pulse inside one step in a log (a timer would speak for work that hangs)."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from taro.cli.output import console, visible_streams
from taro.core.text import one_line

__all__ = ["Lines", "Pace", "Shown", "columns", "count_and_time", "load_libraries", "progress", "span"]

EVERY_S = 30.0


class Pace:
    """How fast a piece of work goes: parts since the first count, so that a resumed job is not thought fast."""

    def __init__(self) -> None:
        self.began_s = time.monotonic()
        self._since: tuple[float, float] | None = None
        self._now: tuple[float, float] | None = None
        self._total: float | None = None
        self._ended_s: float | None = None

    def end(self) -> None:
        """The work is finished: from here on `text` is what it took."""
        self._ended_s = time.monotonic()

    def update(self, done: float, total: float | None) -> None:
        """`done` of `total` parts are finished; another total is another piece of work."""
        now = time.monotonic(), done
        if self._since is None or total != self._total or done < self._since[1]:
            self._since = now
        self._now, self._total = now, total

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest takes at the pace so far; None while that is not known."""
        if self._since is None or self._now is None or self._total is None or self._now[1] <= self._since[1]:
            return None
        per_part_s = (self._now[0] - self._since[0]) / (self._now[1] - self._since[1])
        return max(0.0, per_part_s * (self._total - self._now[1]) - (time.monotonic() - self._now[0]))

    @property
    def text(self) -> str:
        """For people: the time left, else the time so far."""
        if self._ended_s is not None:
            return span(self._ended_s - self.began_s)
        left_s = self.left_s
        return f"{span(time.monotonic() - self.began_s)} so far" if left_s is None else f"{span(left_s)} left"


class Lines:
    """Progress as lines of text, at most one in `every_s` seconds."""

    def __init__(self, say: Callable[[str], None], *, every_s: float = EVERY_S) -> None:
        self._say, self._every_s = say, every_s
        self._began_s = self._said_s = time.monotonic()
        self._pace = Pace()

    def update(self, done: float, total: float | None, label: str) -> None:
        """`done` of `total` parts are finished; None: nobody knows how many there are."""
        self._pace.update(done, total)
        now_s = time.monotonic()
        if now_s - self._said_s < self._every_s:
            return
        self._said_s = now_s
        far = f": {done:,.0f} of {total:,.0f}" if total else f": {done:,.0f}" if done else ""
        left_s = self._pace.left_s
        left = "" if left_s is None else f", {span(left_s)} left"
        self._say(f"{label}{far}, {span(now_s - self._began_s)} so far{left}")


class Shown:
    """Progress of one command: `update` moves the bar, `stage` names the next piece of work, `say` prints a line.
    `panel`: whether something is shown below the bar."""

    def __init__(self, screen: Any, bar: Any, label: str, *, panel: bool = False) -> None:
        self._console, self._bar, self._label, self.panel = screen, bar, one_line(label), panel
        self._lines = Lines(self.say)
        self._beside: Shown | None = None
        self._task = bar.add_task(self._label, total=None, pace=Pace(), count="")

    def update(self, done: float, total: float | None = None, label: str | None = None) -> None:
        """`done` of `total` parts are finished."""
        self._label = self._label if label is None else one_line(label)
        task = next(task for task in self._bar.tasks if task.id == self._task)
        task.fields["pace"].update(done, total)
        count = f"{done:,.0f}/{total:,.0f}" if total else ""
        self._bar.update(self._task, completed=done, total=total or None, description=self._label, count=count)
        if not self._console.is_terminal:
            self._lines.update(done, total, self._label)

    def stage(self, label: str) -> None:
        """Another piece of work begins; nobody knows yet how much it is."""
        self._bar.update(self._task, pace=Pace())
        self.update(0, None, label)

    def beside(self, label: str | None, done: float = 0, total: float | None = None) -> None:
        """Work that interrupts what the bar counts, on a bar of its own below; None: it is over."""
        if label is None:
            if self._beside is not None:
                self._bar.remove_task(self._beside._task)
            self._beside = None
            return
        self._beside = self._beside or Shown(self._console, self._bar, label)
        self._beside.update(done, total, label)

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        self._console.print(one_line(text), markup=False, highlight=False, soft_wrap=True)


def columns() -> list[Any]:
    """Label, bar, count and time; the label takes what the others leave of a line."""
    from rich.progress import BarColumn, TextColumn
    from rich.table import Column

    return [TextColumn("{task.description}", markup=False, table_column=Column(
                ratio=1, no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=12, table_column=Column(min_width=12, no_wrap=True)), *count_and_time()]


def count_and_time() -> list[Any]:
    """The two columns that never give way."""
    from rich.progress import TextColumn
    from rich.table import Column

    return [TextColumn("{task.fields[count]}", markup=False, justify="right", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[pace].text}", markup=False, justify="right",
                       table_column=Column(min_width=10, no_wrap=True))]


@contextmanager
def progress(label: str, *, quiet: bool = False, below: Callable[[int], Any] | None = None) -> Iterator[Shown]:
    """Shows progress while the block runs; `quiet`: not at all. What others print meanwhile appears above the bar.
    `below`: of the terminal's lines, what rich shows under the bar; not where NO_COLOR or TERM=dumb ask for plainness.
    """
    from rich.progress import Progress

    screen = console(err=True, quiet=quiet)
    off = quiet or not screen.is_terminal
    panel = below is not None and not (off or screen.no_color or screen.is_dumb_terminal)

    class Bar(Progress):
        """The bars, and what is below them."""

        def get_renderables(self) -> Iterator[Any]:
            """What is drawn, from the top."""
            yield from super().get_renderables()
            if panel and below is not None:
                yield below(screen.height)

    with Bar(*columns(), console=screen, transient=True, disable=off, expand=True,
             refresh_per_second=4 if panel else 10) as bar, visible_streams():
        yield Shown(screen, bar, label, panel=panel)


def load_libraries(*, quiet: bool) -> None:
    """Imports what takes seconds (torch, transformers) while a bar says so."""
    with progress("loading torch", quiet=quiet):
        importlib.import_module("taro.models.load")


def span(seconds: float) -> str:
    """For people: whole seconds, minutes, or hours with a decimal."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
