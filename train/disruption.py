"""Where a video's order is broken for the log-probability drop: the `patch` disruption of METHOD 5.

The temporal patches within `dt_s` of each ground-truth boundary are permuted. A patch is encoded on its own by the
frozen tower, so permuting features equals permuting pixels and no video is needed. One disruption per (seed, epoch,
sample), shared by the group. Left out: shuffling single frames (`frame`), which needs variants encoded offline.
Legend: S temporal patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from taro import draws
from taro.moment import Moment

__all__ = ["boundary_windows", "patch_disruption"]


def boundary_windows(times_S: np.ndarray, windows: Sequence[Moment], *, dt_s: float = 3.0) -> list[np.ndarray]:
    """Ascending patch indices of each stretch to shuffle: a patch belongs iff `|time - boundary| <= dt_s`.

    Every boundary of every window counts; a stretch of fewer than 2 patches is widened to the 2 nearest; stretches
    that share a patch merge. Empty where the video has fewer than 2 patches.

    >>> [w.tolist() for w in boundary_windows(np.arange(12) + 0.5, [Moment(2, 8)], dt_s=1.0)]
    [[1, 2], [7, 8]]
    >>> [w.tolist() for w in boundary_windows(np.arange(12) + 0.5, [Moment(2, 4)], dt_s=1.6)]
    [[0, 1, 2, 3, 4, 5]]
    """
    if len(times_S) < 2:
        return []
    spans: list[tuple[int, int]] = []  # first and last index; times ascend, so every stretch is contiguous
    for boundary_s in sorted({edge for window in windows for edge in (window.start_s, window.end_s)}):
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


def patch_disruption(times_S: np.ndarray, windows: Sequence[Moment], *, seed: int, epoch: int, sample: str,
                     dt_s: float = 3.0) -> np.ndarray | None:
    """Order [S] for `VideoFeatures.permuted`: each stretch of `boundary_windows` under a permutation drawn uniformly
    from all but the identity. None where the video has fewer than 2 patches or the query no window.

    >>> order = patch_disruption(np.arange(8.0), [Moment(0, 7)], seed=0, epoch=0, sample="v:1", dt_s=1.0)
    >>> order.tolist()
    [1, 0, 2, 3, 4, 5, 7, 6]
    """
    stretches = boundary_windows(times_S, windows, dt_s=dt_s)
    if not stretches:
        return None
    generator = draws.rng("disruption", seed, epoch, sample)
    order_S = np.arange(len(times_S))
    for stretch in stretches:
        drawn = stretch
        while np.array_equal(drawn, stretch):
            drawn = generator.permutation(stretch)
        order_S[stretch] = drawn
    return order_S
