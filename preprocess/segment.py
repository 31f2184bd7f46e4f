"""Event boundaries: kernel change-point detection on frame features, or uniform windows.

Change points (Harchaoui and Cappe, 2007; "KTS", Potapov et al., 2014). For frames i..j-1 of a segment with kernel
matrix K the cost is the scatter around their mean in feature space,

    c(i, j) = sum_t K[t, t] - (1 / (j - i)) sum_{t, u} K[t, u]      (t, u in i..j-1)

and the segmentation minimises `sum of c + price * number of change points`, exactly, by dynamic programming over the
last change point: O(T^2) with 2-d prefix sums. The price is `penalty * noise * log T`, with noise = half the median of
K's frame-to-frame distance, so it does not depend on the scale of the features. Where that gives more segments than
wanted, the price rises by a quarter until it does not.

Legend: T sampled frames, D width of a frame's features."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from taro.grounding.moment import Moment
from taro.preprocess.config import SegmentConfig

__all__ = ["boundary_s", "change_points", "change_segments", "uniform_segments"]

TINY = 1e-9
"""floor of the noise estimate: a still video must not make every rounding error an event"""


def change_points(features_TD: np.ndarray, *, penalty: float, min_frames: int = 1, max_segments: int = 64,
                  kernel: Literal["cosine", "linear"] = "cosine") -> list[int]:
    """Indices of the first frame of every segment but the first, ascending.

    >>> steps = np.array([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 4)
    >>> change_points(steps, penalty=4.0)
    [4]
    >>> change_points(np.ones((8, 2)), penalty=4.0)
    []
    """
    x = np.asarray(features_TD, dtype=np.float64)
    T = len(x)
    if kernel == "cosine":
        x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), TINY)
    noise = max(float(np.median(((x[1:] - x[:-1]) ** 2).sum(1))) / 2, TINY) if T > 1 else TINY
    price = penalty * noise * math.log(max(T, 2))
    cost = _costs(x @ x.T)
    while True:
        starts = _best(cost, price, max(1, min_frames))
        if len(starts) < max_segments:
            return starts
        price *= 1.25


def change_segments(features_TD: np.ndarray, times_s: np.ndarray, duration_s: float, config: SegmentConfig
                    ) -> list[Moment]:
    """Segments that cover `[0, duration_s]`, cut at change points of the features of frames shown at `times_s` [T]."""
    step_s = duration_s / max(len(times_s), 1)
    starts = change_points(features_TD, penalty=config.penalty, min_frames=max(1, math.ceil(config.min_s / step_s)),
                           max_segments=config.max_segments, kernel=config.kernel)
    cuts = [boundary_s(float(times_s[i - 1]), float(times_s[i]), config.round_s) for i in starts]
    return _between(cuts, duration_s)


def uniform_segments(duration_s: float, *, window_s: float, round_s: float) -> list[Moment]:
    """Windows of `window_s`, the last one shorter; a last one under half a window is joined to the one before.

    >>> uniform_segments(11.0, window_s=5.0, round_s=0.1)
    [Moment(start_s=0.0, end_s=5.0), Moment(start_s=5.0, end_s=11.0)]
    """
    count = max(1, round(duration_s / window_s))
    return _between([round(round(i * window_s / round_s) * round_s, 6) for i in range(1, count)], duration_s)


def boundary_s(before_s: float, after_s: float, round_s: float) -> float:
    """A change seen between two frames, as a multiple of `round_s`: the one in `(before_s, after_s]` that is nearest
    to the middle; where there is none, the middle rounded.

    >>> boundary_s(19.36, 19.875, 0.5), boundary_s(0.0, 0.51, 0.5), boundary_s(1.04, 1.08, 0.5)
    (19.5, 0.5, 1.0)
    """
    middle = (before_s + after_s) / 2 / round_s
    low, high = math.floor(before_s / round_s + 1e-6) + 1, math.floor(after_s / round_s + 1e-6)
    step = round(middle) if low > high else min(max(round(middle), low), high)
    return round(step * round_s, 6)


def _between(cuts_s: Sequence[float], duration_s: float) -> list[Moment]:
    inside = sorted({cut for cut in cuts_s if 0 < cut < duration_s})
    edges = [0.0, *inside, duration_s]
    return [Moment(a, b) for a, b in itertools.pairwise(edges)]


def _costs(K: np.ndarray) -> np.ndarray:
    """c(i, j) for all 0 <= i < j <= T, [T + 1, T + 1]; infinite where j <= i."""
    T = len(K)
    block = np.zeros((T + 1, T + 1))
    block[1:, 1:] = K.cumsum(0).cumsum(1)
    trace = np.concatenate([[0.0], np.diag(K).cumsum()])
    corner = np.diag(block)
    inner = corner[None, :] - block - block.T + corner[:, None]
    length = np.arange(T + 1)[None, :] - np.arange(T + 1)[:, None]
    cost = trace[None, :] - trace[:, None] - inner / np.maximum(length, 1)
    return np.where(length > 0, np.maximum(cost, 0.0), np.inf)


def _best(cost: np.ndarray, price: float, min_frames: int) -> list[int]:
    """Starts of all segments but the first of the cheapest segmentation whose segments have `min_frames` or more."""
    T = len(cost) - 1
    total = np.full(T + 1, np.inf)
    total[0] = -price
    last = np.zeros(T + 1, dtype=np.int64)
    for j in range(min(min_frames, T), T + 1):
        stop = max(j - min_frames, 0)
        sums = total[: stop + 1] + cost[: stop + 1, j] + price
        last[j] = int(sums.argmin())
        total[j] = sums[last[j]]
    starts, j = [], T
    while j > 0:
        j = int(last[j])
        starts.append(j)
    return [start for start in reversed(starts) if start > 0]
