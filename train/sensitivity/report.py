"""What a sensitivity measure says: a table, the same as JSON, and a page with charts.

Drops of different policies are nats per token and comparable; their intervals draw videos. `vs elsewhere` is the mean
difference to the control of the same radius and boundary over the rollouts that have both: near 0, the drop is about
broken order anywhere, not about the boundaries. AUC asks whether right answers (IoU >= 0.5) have the higher drop: over
all pairs, and within groups, which is what the bonus sees. Left out: any verdict.
Legend: C conditions, N rollouts, K bins of relative position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from taro.metrics.bootstrap import video_interval
from taro.pages.cards import MAX_TEXT, Card, Clips, Table, caption_lanes, find_clip, window_lane
from taro.pages.charts import LinesChart, lines_chart
from taro.pages.render import number, render, windows_text
from taro.pages.timeline import Lane, Span, timeline
from taro.train.disruption import Disruption
from taro.train.sensitivity.measure import MeasuredRollout, Sensitivity
from taro.train.sensitivity.stats import auc, auc_within, centred, pairs_within, spearman

__all__ = ["CORRECT_IOU", "sensitivity_page", "sensitivity_table", "summarise"]

CORRECT_IOU = 0.5
"""from which on a rollout counts as right"""

EXAMPLES = 3
"""rollouts shown with the largest drop, and with the smallest"""

HEAD = ["kind", "radius s", "boundary", "rollouts", "not disruptable", "drop, nats a token", "> 0", "vs elsewhere",
        "AUC", "in group"]
NOTE = ('Intervals: 95 %, over videos. "not disruptable": rollouts whose video has no such disruption. "vs elsewhere": '
        "mean difference to the control on the rollouts that have both.")
CORRELATION_HEAD = ["kinds", "radius s", "boundary", "rollouts", "rho of d", "in group"]


def summarise(measured: Sensitivity, *, seed: int = 0) -> dict[str, Any]:
    """Everything of the table, for JSON: nan and missing intervals are null."""
    right_N = np.array([rollout.iou >= CORRECT_IOU for rollout in measured.rollouts])
    return {"queries": len({rollout.group for rollout in measured.rollouts}), "rollouts": len(measured.rollouts),
            "videos": len({rollout.video for rollout in measured.rollouts}),
            "without_reasoning": sum(not rollout.pieces for rollout in measured.rollouts),
            "right": float(right_N.mean()), "right_iou": CORRECT_IOU, "lead": measured.conditions[0].name,
            "conditions": [_condition(measured, c, right_N, seed) for c in range(len(measured.conditions))],
            "rank_correlations": _correlations(measured)}


def _condition(measured: Sensitivity, c: int, right_N: np.ndarray, seed: int) -> dict[str, Any]:
    condition, drop_N = measured.conditions[c], measured.drops_CN[c]
    known = np.flatnonzero(np.isfinite(drop_N))
    drops, right = drop_N[known], right_N[known]
    videos, groups = ([getattr(measured.rollouts[n], name) for n in known] for name in ("video", "group"))
    wins, pairs, of = pairs_within(drops, right, groups)
    return {
        "kind": condition.kind, "radius_s": condition.dt_s, "boundary": condition.boundary,
        "rollouts": len(known), "undisrupted": int((~measured.disrupted_CN[c]).sum()),
        "drop": _known(drops.mean() if len(drops) else math.nan),
        "drop_interval": video_interval(lambda at: float(drops[at].mean()), videos, seed),
        "drop_std": _known(drops.std() if len(drops) else math.nan),
        "positive": _known((drops > 0).mean() if len(drops) else math.nan),
        **_against_elsewhere(measured, c, seed),
        "auc": _known(auc(drops, right)),
        "auc_interval": video_interval(lambda at: auc(drops[at], right[at]), videos, seed),
        "auc_within": _known(auc_within(drops, right, groups)), "auc_within_pairs": int(pairs.sum()),
        "auc_within_interval": video_interval(lambda at: float(wins[at].sum() / pairs[at].sum()),
                                              [videos[n] for n in of], seed),
        "by_position": [_known(value) for value in _position_means(measured.positions_CNK[c])],
    }


def _against_elsewhere(measured: Sensitivity, c: int, seed: int) -> dict[str, Any]:
    condition = measured.conditions[c]
    control = Disruption("elsewhere", condition.dt_s, condition.boundary)
    if control == condition or control not in measured.conditions:
        return {"vs_elsewhere": None, "vs_elsewhere_interval": None, "vs_elsewhere_rollouts": 0}
    gap_N = measured.drops_CN[c] - measured.drops_CN[measured.conditions.index(control)]
    both = np.flatnonzero(np.isfinite(gap_N))
    gaps = gap_N[both]
    return {"vs_elsewhere": _known(gaps.mean() if len(gaps) else math.nan),
            "vs_elsewhere_interval": video_interval(lambda at: float(gaps[at].mean()),
                                                    [measured.rollouts[n].video for n in both], seed),
            "vs_elsewhere_rollouts": len(both)}


def _correlations(measured: Sensitivity) -> list[dict[str, Any]]:
    """Spearman's rho of d between the kinds, at the same radius and boundary, over the rollouts that have both."""
    found = []
    for a, b in combinations(range(len(measured.conditions)), 2):
        one, other = measured.conditions[a], measured.conditions[b]
        if (one.dt_s, one.boundary) != (other.dt_s, other.boundary):
            continue
        both = np.flatnonzero(np.isfinite(measured.drops_CN[a]) & np.isfinite(measured.drops_CN[b]))
        groups = [measured.rollouts[n].group for n in both]
        x, y = measured.drops_CN[a][both], measured.drops_CN[b][both]
        found.append({"kinds": [one.kind, other.kind], "radius_s": one.dt_s, "boundary": one.boundary,
                      "rollouts": len(both), "rho": _known(spearman(x, y)),
                      "rho_within": _known(spearman(centred(x, groups), centred(y, groups)))})
    return found


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _position_means(positions_NK: np.ndarray) -> list[float]:
    """Each column's mean over the rollouts that have a token there."""
    return [float(column[np.isfinite(column)].mean()) if np.isfinite(column).any() else math.nan
            for column in positions_NK.T]


def _cells(row: dict[str, Any]) -> list[str]:
    def with_interval(name: str, digits: int) -> str:
        pair = row[f"{name}_interval"]
        return number(row[name], digits) + (
            "" if pair is None else f" [{number(pair[0], digits)}, {number(pair[1], digits)}]")

    return [row["kind"], f"{row['radius_s']:g}", row["boundary"], str(row["rollouts"]), str(row["undisrupted"]),
            with_interval("drop", 3), number(row["positive"], 2), with_interval("vs_elsewhere", 3),
            with_interval("auc", 2), with_interval("auc_within", 2)]


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


def _counts_text(summary: dict[str, Any]) -> str:
    return (f"{summary['rollouts']} rollouts of {summary['queries']} queries in {summary['videos']} videos, "
            f"{summary['without_reasoning']} without reasoning; {summary['right']:.0%} right (IoU >= {CORRECT_IOU})")


def sensitivity_table(summary: dict[str, Any]) -> str:
    """Plain text: a line a condition, then a line a pair of kinds."""
    lines = [_counts_text(summary), "", *_aligned([HEAD, *map(_cells, _sorted(summary))])]
    if pairs := _correlation_cells(summary):
        lines += ["", *_aligned([CORRELATION_HEAD, *pairs])]
    return "\n".join(lines)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, wide, strict=True)).rstrip() for row in rows]


def sensitivity_page(measured: Sensitivity, summary: dict[str, Any], *, title: str, made_by: str,
                     sets: Sequence[Clips] = ()) -> str:
    """A self-contained page: tables, per-token drop by relative position, and reasonings with their tokens' drops.
    `sets`: where the clips are, for their contact sheets and captions."""
    return render("sensitivity.html", title=title, lead=_counts_text(summary), made_by=made_by,
                  lead_condition=measured.conditions[0].name, conditions_note=NOTE, charts=_charts(summary),
                  conditions=Table(HEAD, [_cells(row) for row in _sorted(summary)], texts=3),
                  correlations=Table(CORRELATION_HEAD, _correlation_cells(summary), texts=3),
                  groups=[(name, [(_card(rollout, drop, sets), _tokens(rollout)) for rollout, drop in chosen])
                          for name, chosen in _examples(measured).items() if chosen])


def _charts(summary: dict[str, Any]) -> list[LinesChart]:
    """A chart for each radius and boundary with a line a kind; all share their axis."""
    rows = _sorted(summary)
    places = dict.fromkeys((row["radius_s"], row["boundary"]) for row in rows)
    every = [value for row in rows for value in row["by_position"] if value is not None]
    low, high = min([0.0, *every]), max([0.0, *every])
    high = high if high - low > 1e-12 else low + 1.0
    return [lines_chart(f"{place[0]:g} s, {place[1]}", [
        (row["kind"], row["by_position"]) for row in rows if (row["radius_s"], row["boundary"]) == place], low, high)
        for place in places]


def _examples(measured: Sensitivity) -> dict[str, list[tuple[MeasuredRollout, float]]]:
    """The rollouts with the largest and the smallest drop under the lead condition, one a query, with their drops."""
    ranked = sorted((n for n in range(len(measured.rollouts)) if np.isfinite(measured.drops_CN[0, n])),
                    key=lambda n: (-measured.drops_CN[0, n], n))
    found: dict[str, list[tuple[MeasuredRollout, float]]] = {"largest": [], "smallest": []}
    used: set[str] = set()
    for chosen, order in zip(found.values(), (ranked, ranked[::-1]), strict=True):
        for n in order:
            if len(chosen) < EXAMPLES and measured.rollouts[n].group not in used:
                chosen.append((measured.rollouts[n], float(measured.drops_CN[0, n])))
                used.add(measured.rollouts[n].group)
    return found


def _card(rollout: MeasuredRollout, drop: float, sets: Sequence[Clips]) -> Card:
    clip, sheet = find_clip(rollout.key, sets)
    said = [] if rollout.predicted is None else [rollout.predicted]
    lanes = [window_lane("ground truth", rollout.windows, "truth"),
             Lane("boundaries", [Span(w.start_s, w.end_s, "", "heat", 0.6) for w in rollout.stretches]),
             window_lane("answer" if said else "no answer", said, "after", f"IoU {rollout.iou:.2f}")]
    return Card(rollout.query[:MAX_TEXT], f"{rollout.group}: drop {number(drop)}, IoU {rollout.iou:.2f}",
                [("ground truth", "truth", windows_text(rollout.windows)), ("answer", "after", windows_text(said))],
                timeline=timeline(rollout.duration_s, [*lanes, *caption_lanes(clip)], sheet))


def _tokens(rollout: MeasuredRollout) -> list[tuple[str, float, int]]:
    """(text, log-prob lost, strength of its colour in percent) of each counted token, as far as a page shows them."""
    most = max([abs(gap) for gap in rollout.gaps] + [1e-9])
    found, used = [], 0
    for piece, gap in zip(rollout.pieces, rollout.gaps, strict=True):
        used += len(piece)
        if used > MAX_TEXT:
            break
        found.append((piece, gap, round(60 * abs(gap) / most)))
    return found
