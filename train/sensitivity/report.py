"""What a probe says: a table, the same as JSON, and a page with charts.

Drops of different policies are nats per token and comparable; their intervals draw videos. `vs elsewhere` is the mean
difference to the control of the same radius and boundary over the rollouts that have both: near 0, the drop is about
broken order anywhere, not about the boundaries. AUC asks whether right answers (IoU >= 0.5) have the higher drop: over
all pairs, and within groups, which is what the bonus sees. Left out: any verdict.
Legend: C conditions, N rollouts, K bins of relative position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from taro.pages.timeline import Lane, Span, page, safe_text, timeline_svg
from taro.train.report.charts import CHART_CSS, number
from taro.train.sensitivity.measure import Condition, Probe, Probed
from taro.train.sensitivity.stats import auc, auc_within, centred, pairs_within, spearman, video_interval

__all__ = ["CORRECT_IOU", "probe_page", "probe_table", "summarise"]

CORRECT_IOU = 0.5
"""from which on a rollout counts as right"""

EXAMPLES = 3
"""rollouts shown with the largest drop, and with the smallest"""

MAX_TEXT = 4000

COLOURS = ("after", "before", "path", "truth", "heat")

PAGE_CSS = CHART_CSS + """
.wide { overflow-x: auto; font-size: 13px; } .wide th, .wide td { white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 18px; }
svg.chart polyline { fill: none; stroke-width: 2; } svg.chart .zero { stroke: var(--dim); }
.tokens { font-family: ui-monospace, monospace; white-space: pre-wrap; background: var(--panel); padding: 8px 10px; }
""" + "".join(f"svg.chart .line-{c} {{ stroke: var(--{c}); }} svg.chart text.key-{c} {{ fill: var(--{c}); }}\n"
              for c in COLOURS)


def summarise(probe: Probe, *, seed: int = 0) -> dict[str, Any]:
    """Everything of the table, for JSON: nan and missing intervals are null."""
    right_N = np.array([rollout.iou >= CORRECT_IOU for rollout in probe.rollouts])
    return {
        "queries": len({rollout.group for rollout in probe.rollouts}), "rollouts": len(probe.rollouts),
        "videos": len({rollout.video for rollout in probe.rollouts}),
        "without_reasoning": sum(not rollout.pieces for rollout in probe.rollouts),
        "right": float(right_N.mean()), "right_iou": CORRECT_IOU, "lead": probe.conditions[0].name,
        "conditions": [_condition(probe, c, right_N, seed) for c in range(len(probe.conditions))],
        "rank_correlations": _correlations(probe),
    }


def _condition(probe: Probe, c: int, right_N: np.ndarray, seed: int) -> dict[str, Any]:
    condition, drop_N = probe.conditions[c], probe.drops_CN[c]
    known = np.flatnonzero(np.isfinite(drop_N))
    drops, right = drop_N[known], right_N[known]
    videos, groups = ([getattr(probe.rollouts[n], name) for n in known] for name in ("video", "group"))
    wins, pairs, of = pairs_within(drops, right, groups)
    return {
        "kind": condition.kind, "radius_s": condition.radius_s, "boundary": condition.boundary,
        "rollouts": len(known), "undisrupted": int((~probe.disrupted_CN[c]).sum()),
        "drop": _known(drops.mean() if len(drops) else math.nan),
        "drop_interval": video_interval(lambda at: float(drops[at].mean()), videos, seed),
        "drop_std": _known(drops.std() if len(drops) else math.nan),
        "positive": _known((drops > 0).mean() if len(drops) else math.nan),
        **_against_elsewhere(probe, c, seed),
        "auc": _known(auc(drops, right)),
        "auc_interval": video_interval(lambda at: auc(drops[at], right[at]), videos, seed),
        "auc_within": _known(auc_within(drops, right, groups)), "auc_within_pairs": int(pairs.sum()),
        "auc_within_interval": video_interval(lambda at: float(wins[at].sum() / pairs[at].sum()),
                                              [videos[n] for n in of], seed),
        "by_position": [_known(value) for value in _position_means(probe.positions_CNK[c])],
    }


def _against_elsewhere(probe: Probe, c: int, seed: int) -> dict[str, Any]:
    condition = probe.conditions[c]
    control = _index(probe, Condition("elsewhere", condition.radius_s, condition.boundary))
    if control is None or control == c:
        return {"vs_elsewhere": None, "vs_elsewhere_interval": None, "vs_elsewhere_rollouts": 0}
    gap_N = probe.drops_CN[c] - probe.drops_CN[control]
    both = np.flatnonzero(np.isfinite(gap_N))
    gaps = gap_N[both]
    return {"vs_elsewhere": _known(gaps.mean() if len(gaps) else math.nan),
            "vs_elsewhere_interval": video_interval(lambda at: float(gaps[at].mean()),
                                                    [probe.rollouts[n].video for n in both], seed),
            "vs_elsewhere_rollouts": len(both)}


def _correlations(probe: Probe) -> list[dict[str, Any]]:
    """Spearman's rho of d between the kinds, at the same radius and boundary, over the rollouts that have both."""
    found = []
    for a, b in combinations(range(len(probe.conditions)), 2):
        one, other = probe.conditions[a], probe.conditions[b]
        if (one.radius_s, one.boundary) != (other.radius_s, other.boundary):
            continue
        both = np.flatnonzero(np.isfinite(probe.drops_CN[a]) & np.isfinite(probe.drops_CN[b]))
        groups = [probe.rollouts[n].group for n in both]
        x, y = probe.drops_CN[a][both], probe.drops_CN[b][both]
        found.append({"kinds": [one.kind, other.kind], "radius_s": one.radius_s, "boundary": one.boundary,
                      "rollouts": len(both), "rho": _known(spearman(x, y)),
                      "rho_within": _known(spearman(centred(x, groups), centred(y, groups)))})
    return found


def _index(probe: Probe, condition: Condition) -> int | None:
    return probe.conditions.index(condition) if condition in probe.conditions else None


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _position_means(positions_NK: np.ndarray) -> list[float]:
    """Each column's mean over the rollouts that have a token there."""
    return [float(column[np.isfinite(column)].mean()) if np.isfinite(column).any() else math.nan
            for column in positions_NK.T]


def _cells(row: dict[str, Any]) -> list[str]:
    def told(name: str, digits: int) -> str:
        pair = row[f"{name}_interval"]
        return number(row[name], digits) + (
            "" if pair is None else f" [{number(pair[0], digits)}, {number(pair[1], digits)}]")

    return [row["kind"], f"{row['radius_s']:g}", row["boundary"], str(row["rollouts"]), str(row["undisrupted"]),
            told("drop", 3), number(row["positive"], 2), told("vs_elsewhere", 3), told("auc", 2), told("auc_within", 2)]


HEAD = ["kind", "radius s", "boundary", "rollouts", "no room", "drop, nats a token", "> 0", "vs elsewhere", "AUC",
        "in group"]
CORRELATION_HEAD = ["kinds", "radius s", "boundary", "rollouts", "rho of d", "in group"]


def _sorted(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Conditions by radius, then boundary, then kind in the order asked: rows to compare stand together."""
    rows: list[dict[str, Any]] = summary["conditions"]
    boundaries = list(dict.fromkeys(row["boundary"] for row in rows))
    return sorted(rows, key=lambda row: (row["radius_s"], boundaries.index(row["boundary"])))


def _correlation_cells(summary: dict[str, Any]) -> list[list[str]]:
    return [[" ".join(row["kinds"]), f"{row['radius_s']:g}", row["boundary"], str(row["rollouts"]),
             number(row["rho"], 2), number(row["rho_within"], 2)]
            for row in sorted(summary["rank_correlations"], key=lambda row: row["radius_s"])
            if row["boundary"] == "both" or all(c["boundary"] != "both" for c in summary["conditions"])]


def _told(summary: dict[str, Any]) -> str:
    return (f"{summary['rollouts']} rollouts of {summary['queries']} queries in {summary['videos']} videos, "
            f"{summary['without_reasoning']} without reasoning; {summary['right']:.0%} right (IoU >= {CORRECT_IOU})")


def probe_table(summary: dict[str, Any]) -> str:
    """Plain text: a line a condition, then a line a pair of kinds."""
    lines = [_told(summary), "", *_aligned([HEAD, *map(_cells, _sorted(summary))])]
    if pairs := _correlation_cells(summary):
        lines += ["", *_aligned([CORRELATION_HEAD, *pairs])]
    return "\n".join(lines)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, wide, strict=True)).rstrip() for row in rows]


def probe_page(probe: Probe, summary: dict[str, Any], *, title: str, made_by: str) -> str:
    """A self-contained page: tables, per-token drop by relative position, and reasonings with their tokens' drops."""
    parts = [f"<h1>{safe_text(title)}</h1><p>{safe_text(_told(summary))}</p><pre>{safe_text(made_by)}</pre>",
             "<h2>Drop by kind, radius and boundary</h2>", _html_table([HEAD, *map(_cells, _sorted(summary))]),
             '<p class="dim">Intervals: 95 %, over videos. "no room": rollouts whose video has no such disruption. '
             '"vs elsewhere": mean difference to the control on the rollouts that have both.</p>',
             "<h2>Drop over a reasoning</h2><p class=\"dim\">Mean log-probability lost by a token, by its relative "
             "place in the reasoning.</p>", f'<div class="charts">{_charts(summary)}</div>']
    if pairs := _correlation_cells(summary):
        parts += ["<h2>Do the kinds agree?</h2>", _html_table([CORRELATION_HEAD, *pairs])]
    parts += _examples(probe)
    return page(title, "\n".join(parts), PAGE_CSS)


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{safe_text(cell)}</th>" for cell in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{safe_text(cell)}</td>' for cell in row)}</tr>" for row in rows[1:])
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _charts(summary: dict[str, Any]) -> str:
    rows = _sorted(summary)
    places = dict.fromkeys((row["radius_s"], row["boundary"]) for row in rows)
    every = [value for row in rows for value in row["by_position"] if value is not None]
    low, high = min([0.0, *every]), max([0.0, *every])
    high = high if high - low > 1e-12 else low + 1.0
    return "".join(_chart([row for row in rows if (row["radius_s"], row["boundary"]) == place], low, high)
                   for place in places)


def _chart(rows: Sequence[dict[str, Any]], low: float, high: float) -> str:
    """One small chart with a line a kind; all charts of a page share their axis."""
    width, height, left, top, bottom = 330, 170, 44, 8, 34

    def y(value: float) -> float:
        return top + (height - top - bottom) * (high - value) / (high - low)

    parts = []
    step = min(70, (width - left) // len(rows))  # of the key's words
    for tick in (t for t in (low, 0.0, high) if t == 0 or abs(y(t) - y(0.0)) > 10):  # labels must not touch
        css = "zero" if tick == 0 else "rule"
        parts.append(f'<line class="{css}" x1="{left}" x2="{width - 8}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
                     f'<text x="{left - 4}" y="{y(tick) + 3:.1f}" text-anchor="end">{number(tick, 2)}</text>')
    for index, row in enumerate(rows):
        colour, count = COLOURS[index % len(COLOURS)], len(row["by_position"])
        points = [(left + (width - 8 - left) * (k + 0.5) / count, y(value))
                  for k, value in enumerate(row["by_position"]) if value is not None]
        values = ", ".join(number(value) for value in row["by_position"])
        parts.append(f'<g><title>{safe_text(row["kind"])}: {values}</title><polyline class="line-{colour}" points="'
                     f'{" ".join(f"{px:.1f},{py:.1f}" for px, py in points)}"/></g>'
                     f'<text class="key-{colour}" x="{left + step * index}" y="{height - 4}">{safe_text(row["kind"])}'
                     "</text>")
    name = f"{rows[0]['radius_s']:g} s, {rows[0]['boundary']}"
    parts.append(f'<text x="{left}" y="{height - 18}">start</text>'
                 f'<text x="{width - 8}" y="{height - 18}" text-anchor="end">end of the reasoning</text>')
    return (f'<div><h3>{safe_text(name)}</h3><svg class="chart" viewBox="0 0 {width} {height}" role="img" '
            f'aria-label="drop by position, {safe_text(name)}">{"".join(parts)}</svg></div>')


def _examples(probe: Probe) -> list[str]:
    """The rollouts with the largest and the smallest drop under the lead condition, one a query."""
    ranked = sorted((n for n in range(len(probe.rollouts)) if np.isfinite(probe.drops_CN[0, n])),
                    key=lambda n: (-probe.drops_CN[0, n], n))
    parts: list[str] = []
    used: set[str] = set()
    for name, order in (("largest", ranked), ("smallest", ranked[::-1])):
        chosen: list[int] = []
        for n in order:
            if len(chosen) < EXAMPLES and probe.rollouts[n].group not in used:
                chosen.append(n)
                used.add(probe.rollouts[n].group)
        if chosen:
            parts.append(f"<h2>The {name} drops, {safe_text(probe.conditions[0].name)}</h2>")
            parts += [_example(probe.rollouts[n], float(probe.drops_CN[0, n])) for n in chosen]
    return parts


def _example(rollout: Probed, drop: float) -> str:
    lanes = [Lane("truth", [Span(w.start_s, w.end_s, "", "truth") for w in rollout.windows]),
             Lane("boundaries", [Span(w.start_s, w.end_s, "", "heat", 0.6) for w in rollout.stretches])]
    if rollout.predicted is not None:
        lanes.append(Lane("answer", [Span(rollout.predicted.start_s, rollout.predicted.end_s, "", "after")]))
    most = max([abs(gap) for gap in rollout.gaps] + [1e-9])
    tokens, used = [], 0
    for piece, gap in zip(rollout.pieces, rollout.gaps, strict=True):
        used += len(piece)
        if used > MAX_TEXT:
            break
        colour = "--heat" if gap > 0 else "--after"
        tokens.append(f'<span title="{number(gap)}" style="background: color-mix(in srgb, var({colour}) '
                      f'{60 * abs(gap) / most:.0f}%, transparent)">{safe_text(piece)}</span>')
    return (f"<h3>{safe_text(rollout.query[:MAX_TEXT])}</h3><p class=\"dim\">{safe_text(rollout.group)}: drop "
            f"{number(drop)}, IoU {rollout.iou:.2f}; red tokens lost log-probability, blue ones gained it</p>"
            f'{timeline_svg(rollout.duration_s, lanes)}<div class="tokens">{"".join(tokens)}</div>')
