"""Charts of a report as inline SVG strings: small curves over steps, and intervals on one axis.

Pure functions from numbers to markup; no script, no library; colours come from the page's CSS variables, so light and
dark work. Every number drawn is also written as text beside its chart or in a table, and every mark has a tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from taro.pages.timeline import safe_text

__all__ = ["CHART_CSS", "Curve", "Interval", "IntervalRow", "curve_svg", "intervals_svg", "number",
           "running_mean"]

WIDTH, HEIGHT = 330, 132
LEFT, RIGHT, TOP, BOTTOM = 36, 10, 8, 20
SMOOTH = 5
"""steps of the running mean drawn over the raw curve"""

CHART_CSS = """
svg.chart { display: block; width: 100%; height: auto; font: 10px system-ui, sans-serif; }
svg.chart text { fill: var(--dim); font-variant-numeric: tabular-nums; } svg.chart text.ink { fill: var(--ink); }
svg.chart .rule { stroke: var(--rule); } svg.chart .guided { fill: var(--path); fill-opacity: .13; }
svg.chart .raw { fill: none; stroke: var(--after); stroke-opacity: .35; stroke-width: 1; }
svg.chart .mean { fill: none; stroke: var(--after); stroke-width: 2; stroke-linejoin: round; }
svg.chart .dot { fill: var(--after); }
svg.chart .before { stroke: var(--before); fill: var(--before); }
svg.chart .after { stroke: var(--after); fill: var(--after); }
svg.chart .whisker { stroke-width: 2; stroke-opacity: .55; } svg.chart .mark { stroke: var(--dim); stroke-width: 1.5; }
"""


@dataclass(frozen=True)
class Curve:
    """One number over the steps of a run; None where a step has none. `low`, `high`: the axis, where it is known."""

    title: str
    note: str
    steps: Sequence[int]
    values: Sequence[float | None]
    low: float | None = None
    high: float | None = None


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


def number(value: float | None, digits: int = 3) -> str:
    """A number as a report writes it.

    >>> number(0.5), number(None), number(float("nan")), number(12345.6, 0), number(3.2e-6)
    ('0.500', '-', '-', '12,346', '3.2e-06')
    """
    if value is None or not math.isfinite(value):
        return "-"
    if value != 0 and abs(value) < 0.5 * 10.0**-digits:
        return f"{value:.1e}"
    return f"{value:,.{digits}f}"


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


def curve_svg(curve: Curve, guided: Sequence[tuple[int, int]] = ()) -> str:
    """One small chart: the raw values thin, their running mean strong, guided steps shaded."""
    values = [value if value is not None and math.isfinite(value) else None for value in curve.values]
    low, high = _limits([value for value in values if value is not None], curve.low, curve.high)
    first, last = (min(curve.steps), max(curve.steps)) if curve.steps else (0, 1)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / max(last - first, 1)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    parts = []
    for start, end in guided:
        x0, x1 = x(max(start - 0.5, first)), x(min(end + 0.5, last))
        parts.append(f'<rect class="guided" x="{x0:.1f}" y="{TOP}" width="{max(x1 - x0, 1):.1f}" '
                     f'height="{HEIGHT - TOP - BOTTOM}"><title>guided steps {start} to {end}</title></rect>')
    for tick in (low, (low + high) / 2, high):
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
                     f'<text x="{LEFT - 4}" y="{y(tick) + 3:.1f}" text-anchor="end">{_tick(tick)}</text>')
    for step, anchor in ((first, "start"), (last, "end"))[: 1 if first == last else 2]:
        word = "step " if step == first else ""
        parts.append(f'<text x="{x(step):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{word}{step}</text>')
    parts.append(_path("raw", [(x(s), v if v is None else y(v)) for s, v in zip(curve.steps, values, strict=True)]))
    means = running_mean(values)
    parts.append(_path("mean", [(x(s), v if v is None else y(v)) for s, v in zip(curve.steps, means, strict=True)]))
    if means and means[-1] is not None:
        parts.append(f'<circle class="dot" cx="{x(last):.1f}" cy="{y(means[-1]):.1f}" r="2.5"/>')
    label = safe_text(f"{curve.title} over steps {first} to {last}")
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def intervals_svg(rows: Sequence[IntervalRow], *, width_px: int = 500) -> str:
    """Before above after for each row, as a dot on its interval, on one axis from 0 to 1."""
    label_px, row_px, top = 58, 30, 20
    height = top + row_px * len(rows) + 4

    def x(value: float) -> float:
        return label_px + (width_px - label_px - 14) * min(max(value, 0.0), 1.0)

    parts = []
    for tick in range(6):
        at = x(tick / 5)
        parts.append(f'<line class="rule" x1="{at:.1f}" x2="{at:.1f}" y1="{top - 4}" y2="{height}"/>'
                     f'<text x="{at:.1f}" y="{top - 8}" text-anchor="middle">{tick / 5:.1f}</text>')
    for index, row in enumerate(rows):
        y = top + row_px * index
        parts.append(f'<text class="ink" x="0" y="{y + 16}" font-size="11">{safe_text(row.label)}</text>')
        for name, value in row.marks:
            parts.append(f'<line class="mark" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{y + 2}" y2="{y + 22}">'
                         f"<title>{safe_text(name)}: {number(value)}</title></line>")
        parts.append(_whisker("before", "before", row.before, y + 7, x))
        parts.append(_whisker("after", "after", row.after, y + 17, x))
    return (f'<svg class="chart" viewBox="0 0 {width_px} {height}" role="img" '
            f'aria-label="Scores before and after training with 95 % intervals">{"".join(parts)}</svg>')


def _whisker(css: str, name: str, interval: Interval, y: float, x: object) -> str:
    assert callable(x)
    if not math.isfinite(interval.value):
        return ""
    tip = f"{name}: {number(interval.value)} [{number(interval.low)}, {number(interval.high)}]"
    return (f'<g class="{css}"><title>{tip}</title><line class="whisker" x1="{x(interval.low):.1f}" '
            f'x2="{x(interval.high):.1f}" y1="{y}" y2="{y}"/><circle cx="{x(interval.value):.1f}" cy="{y}" r="4"/></g>')


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


def _path(css: str, points: Sequence[tuple[float, float | None]]) -> str:
    drawn, pen_up = [], True
    for x, y in points:
        if y is None:
            pen_up = True
            continue
        drawn.append(f"{'M' if pen_up else 'L'}{x:.1f} {y:.1f}")
        pen_up = False
    return f'<path class="{css}" d="{"".join(drawn)}"/>' if drawn else ""
