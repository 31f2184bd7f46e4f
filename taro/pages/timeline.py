"""Spans of time as lanes on one axis: where each bar lies, for `timeline` of templates/macros.html to draw.

Lanes are boxes of the page, not a picture: their text keeps its size on a narrow screen and is cut by the browser where
a bar is short; the whole text is the tooltip. Places are percent of the axis. Left out: what a lane means; `css_class`
names a colour of templates/style.css (`truth`, `caption`, `path`, `before`, `after`, `heat`, `good`, `bad`)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Bar", "DrawnLane", "Lane", "Span", "Timeline", "timeline"]

MAX_ROWS = 40
"""rows that overlapping spans of a lane may take; the rest share the last one"""

STEPS_S = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)
MAX_TICKS = 12
LEAST_TEXT_PERCENT = 3.0
"""of the axis: a shorter bar has its text in the tooltip alone"""

FULL = frozenset({"truth", "path", "before", "after", "heat"})
"""classes whose bars have their full colour where no level is given"""
_CLASS = re.compile(r"[a-z][a-z0-9-]*")


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch `[start_s, end_s]` with a text; `level` in [0, 1] sets how strong its colour is, None: full."""

    start_s: float
    end_s: float
    text: str = ""
    css_class: str = "caption"
    level: float | None = None


@dataclass(frozen=True, slots=True)
class Lane:
    """One labelled line of spans; spans that overlap are put in rows below each other."""

    label: str
    spans: Sequence[Span]


@dataclass(frozen=True, slots=True)
class Bar:
    """A span in its place: `left` and `width` in percent of the axis, `row` from 0, `level` in percent or None."""

    left: float
    width: float
    row: int
    css_class: str
    level: int | None
    text: str
    tip: str

    @property
    def style(self) -> str:
        """Its place as CSS: one value to escape, where a page may have hundreds of bars."""
        level = "" if self.level is None else f";--level:{self.level}%"
        return f"left:{self.left}%;width:{self.width}%;--row:{self.row}{level}"

    @property
    def classes(self) -> str:
        """Its CSS classes; `on` has the full colour."""
        return f"bar {self.css_class} on" if self.level is None and self.css_class in FULL else f"bar {self.css_class}"


@dataclass(frozen=True, slots=True)
class DrawnLane:
    """A lane in its place, `rows` high."""

    label: str
    tip: str
    rows: int
    bars: Sequence[Bar]


@dataclass(frozen=True, slots=True)
class Timeline:
    """An axis in seconds, `ticks` (percent, label), with the contact sheet of the clip over its lanes: the picture's
    bytes, or its address from the page."""

    ticks: Sequence[tuple[float, str]]
    lanes: Sequence[DrawnLane]
    sheet: bytes | str | None = None


def timeline(duration_s: float, lanes: Sequence[Lane], sheet: bytes | str | None = None) -> Timeline:
    """`lanes` over `[0, duration_s]`; 1 s where the duration is not a positive number.

    Spans are clipped to the axis; a span that is empty, reversed or outside becomes a thin mark at its start, and one
    that is not finite is left out (its text stays in the tooltip of the lane's label)."""
    duration_s = duration_s if math.isfinite(duration_s) and duration_s > 0 else 1.0
    step_s = next((step_s for step_s in STEPS_S if duration_s / step_s <= MAX_TICKS), duration_s / 10)
    ticks = [(_percent(index * step_s, duration_s), f"{index * step_s:g}s")
             for index in range(int(duration_s / step_s + 1e-9) + 1)]
    return Timeline(ticks, [_lane(lane, duration_s) for lane in lanes], sheet)


def _percent(time_s: float, duration_s: float) -> float:
    return round(100 * min(max(time_s / duration_s, 0.0), 1.0), 3)


def _lane(lane: Lane, duration_s: float) -> DrawnLane:
    finite = [math.isfinite(span.start_s) and math.isfinite(span.end_s) for span in lane.spans]
    spans = [span for span, shown in zip(lane.spans, finite, strict=True) if shown]
    lost = [span.text for span, shown in zip(lane.spans, finite, strict=True) if not shown]
    rows_of, rows = _rows(spans)
    bars = [_bar(span, row, duration_s) for span, row in zip(spans, rows_of, strict=True)]
    return DrawnLane(lane.label, "\n".join([lane.label, *(f"not finite: {text}" for text in lost)]), rows, bars)


def _bar(span: Span, row: int, duration_s: float) -> Bar:
    left = _percent(span.start_s, duration_s)
    width = round(max(_percent(span.end_s, duration_s) - left, 0.0), 3)
    times = f"{span.start_s:.1f}s to {span.end_s:.1f}s"
    return Bar(left, width, row, span.css_class if _CLASS.fullmatch(span.css_class) else "plain",
               None if span.level is None else round(100 * min(max(span.level, 0.0), 1.0)),
               " ".join(span.text.split()) if width >= LEAST_TEXT_PERCENT else "",
               f"{times}: {span.text}" if span.text else times)


def _rows(spans: Sequence[Span]) -> tuple[list[int], int]:
    """The row of each span, and how many rows there are: the first row that is free when a span starts."""
    ends_s: list[float] = []
    rows = [0] * len(spans)
    for index in sorted(range(len(spans)), key=lambda i: (spans[i].start_s, spans[i].end_s)):
        span = spans[index]
        row = next((r for r, end_s in enumerate(ends_s) if end_s <= span.start_s), len(ends_s))
        row = min(row, MAX_ROWS - 1)
        if row == len(ends_s):
            ends_s.append(-math.inf)
        ends_s[row] = max(ends_s[row], span.end_s, span.start_s)
        rows[index] = row
    return rows, max(len(ends_s), 1)
