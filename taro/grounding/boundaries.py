"""Which stretch of a clip lies around a query's boundaries, and how a stretch is shuffled: what both stages share.

Stage 1 shuffles frames before they are encoded (`taro.preprocess.variants`), stage 2 permutes the encoded temporal
patches (`taro.train.disruption`); a stretch is defined here once, over any ascending times. Left out: what is shuffled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from taro.grounding.moment import Moment

__all__ = ["BOUNDARIES", "Boundary", "boundary_windows", "shuffled"]

Boundary = Literal["both", "start", "end"]
BOUNDARIES: tuple[Boundary, ...] = get_args(Boundary)


def boundary_windows(times_S: np.ndarray, windows: Sequence[Moment], *, dt_s: float = 3.0,
                     boundary: Boundary = "both") -> list[np.ndarray]:
    """Ascending indices of each stretch to shuffle: a time belongs iff `|time - boundary| <= dt_s`.

    Every boundary of every window counts, or with `boundary` their starts or their ends alone; a stretch of fewer
    than 2 times is widened to the 2 nearest; stretches that share a time merge. Empty where there are fewer than 2.

    >>> [w.tolist() for w in boundary_windows(np.arange(12) + 0.5, [Moment(2, 8)], dt_s=1.0)]
    [[1, 2], [7, 8]]
    >>> [w.tolist() for w in boundary_windows(np.arange(12) + 0.5, [Moment(2, 4)], dt_s=1.6)]
    [[0, 1, 2, 3, 4, 5]]
    """
    if len(times_S) < 2:
        return []
    spans: list[tuple[int, int]] = []  # first and last index; times ascend, so every stretch is contiguous
    for boundary_s in sorted({edge for window in windows for edge in _edges(window, boundary)}):
        distance_S = np.abs(times_S - boundary_s)
        inside = np.flatnonzero(distance_S <= dt_s)
        if len(inside) < 2:
            inside = np.sort(np.argsort(distance_S, kind="stable")[:2])
        spans.append((int(inside[0]), int(inside[-1])))
    merged: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return [np.arange(first, last + 1) for first, last in merged]


def _edges(window: Moment, boundary: Boundary) -> tuple[float, ...]:
    return {"start": (window.start_s,), "end": (window.end_s,)}.get(boundary, (window.start_s, window.end_s))


def shuffled(stretch: np.ndarray, generator: np.random.Generator, *, content: np.ndarray | None = None) -> np.ndarray:
    """A permutation of `stretch` drawn uniformly from all that change something.

    `content`: what each index of the clip shows, where two may show the same; None: each its own. The stretch must
    hold two that differ.

    >>> shuffled(np.array([4, 5]), np.random.default_rng(0)).tolist()
    [5, 4]
    """
    content = np.arange(stretch[-1] + 1) if content is None else content
    assert len(np.unique(content[stretch])) > 1, f"nothing can change in {stretch.tolist()}"
    while True:
        drawn = generator.permutation(stretch)
        if not np.array_equal(content[drawn], content[stretch]):
            return drawn
