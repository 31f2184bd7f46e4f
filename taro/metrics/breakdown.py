"""The same scores over groups of queries: by the length of what is sought, and by where in the video it lies.

A model that answers from habit is good where answers usually lie. Groups depend on the annotation alone, never on the
prediction, so that two systems are compared over the same queries. A query with several windows has no one length or
place and is a group of its own.
Legend: Q queries, M metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from taro.grounding.moment import Moment
from taro.grounding.protocols import METRICS
from taro.metrics.bootstrap import means_M

__all__ = ["Breakdown", "breakdown", "breakdown_table", "length_group", "position_group"]

LENGTHS_S = {"short (0, 10] s": 10.0, "middle (10, 30] s": 30.0, "long (30, ..) s": math.inf}
THIRDS = ("first third", "middle third", "last third")
SEVERAL, UNKNOWN = "several windows", "unknown"

Breakdown = dict[str, dict[str, dict[str, float]]]
""""length" and "position" -> group -> "queries" and the metrics; groups without a query are left out."""


def length_group(windows: Sequence[Moment]) -> str:
    """The group of a query by the length of its window.

    >>> length_group([Moment(0, 10)]), length_group([Moment(0, 10.5)]), length_group([Moment(0, 1), Moment(3, 4)])
    ('short (0, 10] s', 'middle (10, 30] s', 'several windows')
    """
    if len(windows) != 1:
        return SEVERAL if windows else UNKNOWN
    return next((name for name, most_s in LENGTHS_S.items() if windows[0].duration_s <= most_s), UNKNOWN)


def position_group(windows: Sequence[Moment], duration_s: float | None) -> str:
    """The group of a query by the third of the video that holds the middle of its window.

    >>> [position_group([Moment(0, 12)], 30.0), position_group([Moment(18, 30)], 30.0), position_group([], None)]
    ['first third', 'last third', 'unknown']
    """
    if len(windows) != 1:
        return SEVERAL if windows else UNKNOWN
    if duration_s is None or not duration_s > 0:
        return UNKNOWN
    middle = (windows[0].start_s + windows[0].end_s) / 2 / duration_s
    return THIRDS[min(max(math.floor(3 * middle), 0), 2)]


def breakdown(hits_QM: NDArray[np.float64], windows: Sequence[Sequence[Moment]],
              durations_s: Sequence[float | None]) -> Breakdown:
    """Means of the metrics over each group."""
    lengths = [length_group(w) for w in windows]
    positions = [position_group(w, d) for w, d in zip(windows, durations_s, strict=True)]
    return {"length": _means(hits_QM, lengths, (*LENGTHS_S, SEVERAL, UNKNOWN)),
            "position": _means(hits_QM, positions, (*THIRDS, SEVERAL, UNKNOWN))}


def _means(hits_QM: NDArray[np.float64], groups: list[str], names: Sequence[str]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name in names:
        members = np.array([group == name for group in groups])
        if members.any():
            means = dict(zip(METRICS, means_M(hits_QM[members]), strict=True))
            found[name] = {"queries": float(members.sum()), **means}
    return found


def breakdown_table(parts: Breakdown) -> str:
    """Plain text, percents: one block for lengths, one for positions."""
    lines = []
    for what, groups in parts.items():
        lines.append(f"{'by ' + what:<20}{'queries':>9}" + "".join(f"{name:>9}" for name in METRICS))
        for name, scores in groups.items():
            row = "".join(f"{100 * scores[metric]:>9.1f}" for metric in METRICS)
            lines.append(f"{name:<20}{scores['queries']:>9,.0f}{row}")
    return "\n".join(lines)
