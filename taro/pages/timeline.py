"""Spans of time drawn as lanes on one axis, and the page around them: the shared look of shard views and reports.

Pure functions from numbers and texts to strings; inline SVG and CSS, no script, no external resource, light and dark.
Every text that enters is escaped here, and control and bidirectional characters are shown as `[U+202E]`, so that what a
stranger wrote in a caption can neither run nor reorder the page. Left out: interaction, and any opinion on what the
lanes mean; `css_class` says which of the colours of `CSS` a span has (`truth`, `caption`, `path`, `before`, `after`,
`heat`, `plain`), and a caller's own css may add classes.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from taro.core.text import visible

__all__ = ["CSS", "Lane", "Span", "page", "safe_text", "timeline_svg"]

LABEL_PX = 132
ROW_PX = 20
GAP_PX = 6
AXIS_PX = 22
CHAR_PX = 6.2
MAX_ROWS = 40
"""rows that overlapping spans of a lane may take; the rest share the last one"""

CSS = """
:root { color-scheme: light dark; --ink: #1d2327; --dim: #66717a; --rule: #d9dee2; --paper: #fdfdfc; --panel: #f3f5f6;
  --truth: #2e8b57; --caption: #b8c4d6; --path: #8f7fc4; --before: #b06a28; --after: #2f74c0; --heat: #c0392b;
  --on: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --dim: #98a3ad; --rule: #363d44; --paper: #15181b;
  --panel: #1e2327; --truth: #4fb07c; --caption: #46566e; --path: #8b7bc8; --before: #d69555; --after: #5b9bde;
  --heat: #e06a5c; --on: #101418; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1100px; padding: 24px 20px 60px; background: var(--paper); color: var(--ink);
  font: 14px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 22px; } h2 { font-size: 17px; margin-top: 32px; } h3 { font-size: 14px; margin: 18px 0 6px; }
table { border-collapse: collapse; } th, td { text-align: left; padding: 2px 12px 2px 0; vertical-align: top;
  border-bottom: 1px solid var(--rule); font-variant-numeric: tabular-nums; } th { overflow-wrap: break-word; }
img { max-width: 100%; } .dim { color: var(--dim); }
pre { white-space: pre-wrap; background: var(--panel); padding: 8px 10px; margin: 6px 0; border-radius: 4px; }
svg.timeline { display: block; width: 100%; height: auto; font: 11px system-ui, sans-serif; margin: 6px 0; }
svg.timeline text { fill: var(--ink); } svg.timeline .label, svg.timeline .tick { fill: var(--dim); }
svg.timeline .grid { stroke: var(--rule); } svg.timeline .span { fill: var(--caption); }
svg.timeline .truth { fill: var(--truth); } svg.timeline .path { fill: var(--path); }
svg.timeline .before { fill: var(--before); } svg.timeline .after { fill: var(--after); }
svg.timeline .heat { fill: var(--heat); } svg.timeline .plain { fill: var(--rule); }
svg.timeline .on { fill: var(--on); }
"""

_CLASS = re.compile(r"[a-z][a-z0-9-]*")
_DARK = {"truth", "path", "before", "after"}


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch `[start_s, end_s]` with a text; `level` in [0, 1] sets its opacity (a heat lane), None: full."""

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


def safe_text(text: str) -> str:
    """Escaped for HTML text, attributes and SVG; control, bidirectional and unencodable characters are made visible.

    >>> safe_text('<b a="1">')
    '&lt;b a=&quot;1&quot;&gt;'
    >>> safe_text("a" + chr(0x202E) + "b" + chr(0) + chr(10) + "c")
    'a[U+202E]b[U+0000]\\nc'
    """
    return html.escape(visible(text), quote=True)


def timeline_svg(duration_s: float, lanes: Sequence[Lane], width_px: int = 1000) -> str:
    """An inline SVG of `lanes` over `[0, duration_s]` with an axis in seconds.

    Spans are clipped to the axis; a span that is empty, reversed or outside is drawn as a thin mark at its start, and
    one that is not finite is left out (its text stays in the lane's label tooltip). Labels that do not fit are cut;
    the whole text is the tooltip.
    """
    duration_s = duration_s if math.isfinite(duration_s) and duration_s > 0 else 1.0
    width = max(int(width_px), LABEL_PX + 100)
    parts: list[str] = []
    y = AXIS_PX
    for lane in lanes:
        drawn, rows = _lane(lane, y, duration_s, width)
        parts.append(drawn)
        y += rows * ROW_PX + GAP_PX
    grid = _axis(duration_s, width, y)
    return (f'<svg class="timeline" viewBox="0 0 {width} {y}" role="img" '
            f'xmlns="http://www.w3.org/2000/svg">{grid}{"".join(parts)}</svg>')


def page(title: str, body: str, css: str = "") -> str:
    """A whole self-contained HTML document; `body` and `css` are trusted markup made by the caller, `title` is not.

    A content-security policy in the page forbids scripts and external resources, in case an escape was missed.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{safe_text(title)}</title><style>{CSS}{css}</style></head>\n<body>\n{body}\n</body></html>\n")


def _x(time_s: float, duration_s: float, width: int) -> float:
    return LABEL_PX + (width - LABEL_PX - 8) * min(max(time_s / duration_s, 0.0), 1.0)


def _axis(duration_s: float, width: int, height: int) -> str:
    step_s = next((s for s in (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600) if duration_s / s <= 12),
                  duration_s / 10)
    marks = []
    for index in range(int(duration_s / step_s + 1e-9) + 1):
        x = _x(index * step_s, duration_s, width)
        anchor = "end" if x > width - 20 else "middle"
        marks.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{AXIS_PX - 6}" y2="{height}"/>'
                     f'<text class="tick" x="{x:.1f}" y="12" text-anchor="{anchor}">{index * step_s:g}s</text>')
    return "".join(marks)


def _lane(lane: Lane, top: int, duration_s: float, width: int) -> tuple[str, int]:
    spans = [span for span in lane.spans if math.isfinite(span.start_s) and math.isfinite(span.end_s)]
    lost = [span.text for span in lane.spans if not (math.isfinite(span.start_s) and math.isfinite(span.end_s))]
    rows_of, rows = _rows(spans)
    drawn = [_span(span, top + row * ROW_PX, duration_s, width) for span, row in zip(spans, rows_of, strict=True)]
    tip = lane.label + "".join(f"\nnot finite: {text}" for text in lost)
    label = (f'<text class="label" x="4" y="{top + 14}"><title>{safe_text(tip)}</title>'
             f"{safe_text(_cut(lane.label, LABEL_PX - 10))}</text>")
    return label + "".join(drawn), rows


def _rows(spans: Sequence[Span]) -> tuple[list[int], int]:
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


def _span(span: Span, top: int, duration_s: float, width: int) -> str:
    x0, x1 = _x(span.start_s, duration_s, width), _x(span.end_s, duration_s, width)
    wide = max(x1 - x0, 2.0)
    css = span.css_class if _CLASS.fullmatch(span.css_class) else "plain"
    opacity = "" if span.level is None else f' fill-opacity="{min(max(span.level, 0.0), 1.0):.2f}"'
    times = f"{span.start_s:.1f}s to {span.end_s:.1f}s"
    tip = safe_text(f"{times}: {span.text}" if span.text else times)
    text = safe_text(_cut(span.text, wide - 8))
    on = ' class="on"' if css in _DARK and span.level is None else ""
    shown = f'<text{on} x="{x0 + 4:.1f}" y="{top + 13}">{text}</text>' if text else ""
    return (f'<g><title>{tip}</title><rect class="span {css}" x="{x0:.1f}" y="{top + 1}" width="{wide:.1f}" '
            f'height="{ROW_PX - 3}" rx="3"{opacity}/>{shown}</g>')


def _cut(text: str, room_px: float) -> str:
    """The first characters of `text` that fit (by width guessed from their number), on one line."""
    text = " ".join(text.split())
    most = int(room_px / CHAR_PX)
    if len(text) <= most:
        return text
    return text[: most - 2] + ".." if most > 4 else ""
