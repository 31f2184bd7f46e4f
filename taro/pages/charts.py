"""Charts of a page as points and labels: curves over steps, intervals on one axis, lines over positions.

Pure functions from numbers to coordinates of an SVG, which templates/charts.html draws. A chart is as wide, in units of
its drawing, as the narrowest place that a page gives it, so that its text is never drawn below its size. Every number
drawn is also written as text beside its chart or in a table, and every mark has a tooltip."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from taro.pages.render import number

__all__ = ["CurveChart", "Interval", "IntervalRow", "IntervalsChart", "LinesChart", "Whisker", "curve_chart",
           "intervals_chart", "lines_chart", "running_mean"]

WIDTH, HEIGHT = 300, 130
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 8, 22
ROW_HEIGHT, AXIS_HEIGHT = 32, 22
SMOOTH = 5
"""steps of the running mean drawn over the raw curve"""
COLOURS = ("after", "before", "path", "truth", "heat")
LEAST_TICK_GAP = 14
"""below it two labels of an axis would touch"""


@dataclass(frozen=True)
class CurveChart:
    """Drawn: `shades` (x, width, tooltip), `ticks` (y, text), `ends` (x, anchor, text) of the steps, `raw` and `mean`
    as SVG paths, `dot` the last mean (x, y) or None."""

    label: str
    shades: Sequence[tuple[float, float, str]]
    ticks: Sequence[tuple[float, str]]
    ends: Sequence[tuple[float, str, str]]
    raw: str
    mean: str
    dot: tuple[float, float] | None


@dataclass(frozen=True)
class Interval:
    """A value with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class IntervalRow:
    """A line of an interval chart, values in [0, 1]. `marks`: named reference values, drawn as ticks."""

    label: str
    before: Interval
    after: Interval
    marks: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True)
class Whisker:
    """A dot at `x` on its interval `[low, high]`."""

    css_class: str
    x: float
    low: float
    high: float
    y: float
    tip: str


@dataclass(frozen=True)
class IntervalsChart:
    """Drawn: `ticks` (x, text), `rows` (y, label, marks of (x, tip), whiskers)."""

    height: int
    ticks: Sequence[tuple[float, str]]
    rows: Sequence[tuple[float, str, Sequence[tuple[float, str]], Sequence[Whisker]]]


@dataclass(frozen=True)
class LinesChart:
    """Drawn: `ticks` (y, text, is zero), `lines` (colour, name, points of a polyline, values as text, x of the key)."""

    title: str
    ticks: Sequence[tuple[float, str, bool]]
    lines: Sequence[tuple[str, str, str, str, float]]


def running_mean(values: Sequence[float | None], width: int = SMOOTH) -> list[float | None]:
    """Mean over the last `width` values that exist, where one exists.

    >>> running_mean([1.0, 3.0, None, 5.0], 2)
    [1.0, 2.0, 3.0, 5.0]
    """
    out: list[float | None] = []
    for index in range(len(values)):
        window = [value for value in values[max(0, index - width + 1) : index + 1] if value is not None]
        out.append(sum(window) / len(window) if window else None)
    return out


def curve_chart(title: str, steps: Sequence[int], values: Sequence[float | None],
                guided: Sequence[tuple[int, int]] = (), *, low: float | None = None,
                high: float | None = None) -> CurveChart:
    """One number over the steps of a run, None where a step has none: the raw values thin, their running mean strong,
    guided steps shaded. `low`, `high`: the axis, where it is known."""
    values = [value if value is not None and math.isfinite(value) else None for value in values]
    low, high = _limits([value for value in values if value is not None], low, high)
    first, last = (min(steps), max(steps)) if steps else (0, 1)
    y = _scale(high, low, TOP, HEIGHT - BOTTOM)
    x = _scale(first, max(last, first + 1), LEFT, WIDTH - RIGHT)

    def path(shown: Sequence[float | None]) -> str:
        """One SVG path; a step without a value lifts the pen."""
        points = [None if value is None else f"{x(step)} {y(value)}" for step, value in zip(steps, shown, strict=True)]
        return "".join(f"{'M' if at == 0 or points[at - 1] is None else 'L'}{point}"
                       for at, point in enumerate(points) if point is not None)

    shades = []
    for start, end in guided:
        x0, x1 = x(max(start - 0.5, first)), x(min(end + 0.5, last))
        shades.append((x0, round(max(x1 - x0, 1), 1), f"guided steps {start} to {end}"))
    means = running_mean(values)
    final = means[-1] if means else None
    ends = [(x(first), "start", f"step {first}"), (x(last), "end", str(last))][: 1 if first == last else 2]
    return CurveChart(f"{title} over steps {first} to {last}", shades,
                      [(y(tick), _tick(tick)) for tick in (low, (low + high) / 2, high)], ends, path(values),
                      path(means), None if final is None else (x(last), y(final)))


def intervals_chart(rows: Sequence[IntervalRow]) -> IntervalsChart:
    """Before above after for each row, as a dot on its interval, on one axis from 0 to 1."""
    place = _scale(0.0, 1.0, LEFT + 14, WIDTH - RIGHT - 4)

    def x(value: float) -> float:
        return place(min(max(value, 0.0), 1.0))

    drawn = []
    for index, row in enumerate(rows):
        y = AXIS_HEIGHT + ROW_HEIGHT * index
        pair = (("before", row.before, y + 9), ("after", row.after, y + 20))
        whiskers = [
            Whisker(name, x(one.value), x(one.low), x(one.high), at,
                    f"{name}: {number(one.value)} [{number(one.low)}, {number(one.high)}]")
            for name, one, at in pair if math.isfinite(one.value)]
        marks = [(x(value), f"{name}: {number(value)}") for name, value in row.marks]
        drawn.append((float(y), row.label, marks, whiskers))
    return IntervalsChart(AXIS_HEIGHT + ROW_HEIGHT * len(rows) + 2, [(x(n / 4), f"{n / 4:g}") for n in range(5)], drawn)


def lines_chart(title: str, lines: Sequence[tuple[str, Sequence[float | None]]], low: float, high: float) -> LinesChart:
    """A line a name over positions 0 to 1, on an axis `[low, high]` that several charts may share; it holds 0."""
    y = _scale(high, low, TOP, HEIGHT - BOTTOM)
    ticks = [(y(tick), number(tick, 2), tick == 0) for tick in (low, 0.0, high)
             if tick == 0 or abs(y(tick) - y(0.0)) > LEAST_TICK_GAP]
    wide = min(70, (WIDTH - LEFT) // len(lines))  # of the key's words
    drawn = []
    for index, (name, values) in enumerate(lines):
        x = _scale(0.0, len(values), LEFT, WIDTH - RIGHT)
        points = " ".join(f"{x(at + 0.5)},{y(value)}" for at, value in enumerate(values) if value is not None)
        drawn.append((COLOURS[index % len(COLOURS)], name, points, ", ".join(number(value) for value in values),
                      float(LEFT + wide * index)))
    return LinesChart(title, ticks, drawn)


def _scale(start: float, end: float, from_px: float, to_px: float) -> Callable[[float], float]:
    """The line through (start, from_px) and (end, to_px), in tenths of a pixel."""
    return lambda value: round(from_px + (to_px - from_px) * (value - start) / (end - start), 1)


def _limits(values: Sequence[float], low: float | None, high: float | None) -> tuple[float, float]:
    """Ends of an axis that holds every value: the known ones, widened where a value lies outside."""
    least = min([*values, *([] if low is None else [low])], default=0.0)
    most = max([*values, *([] if high is None else [high])], default=1.0)
    if most - least < 1e-12:
        pad = abs(most) * 0.1 or 1.0
        return (least, most + pad) if low is not None else (least - pad, most + pad)
    pad = (most - least) * 0.06
    return (least if low is not None and least == low else least - pad,
            most if high is not None and most == high else most + pad)


def _tick(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 10_000 or abs(value) < 0.005:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
