"""Percentile bootstrap over videos, not queries: queries of one video share its frames and are no independent draws.

Draw V videos with replacement, keep all queries of each, take the mean. The draws are a function of the seed and of V
alone, so two systems that answered the same queries see the same resamples: differences are paired for nothing.
Legend: Q queries, V videos, M metrics, R resamples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from taro.core.draws import rng

__all__ = ["RESAMPLES", "means_M", "percentiles_M", "resampled_means_RM", "video_interval"]

RESAMPLES = 1000

Floats = NDArray[np.float64]


def means_M(values_QM: Floats) -> list[float]:
    """The mean of each column, exactly rounded: whatever the order of the queries, it is the same to the last digit."""
    return [math.fsum(column) / len(column) for column in values_QM.T.tolist()]


def resampled_means_RM(values_QM: Floats, videos: Sequence[str], seed: int) -> Floats | None:
    """[R, M]: means of `values_QM` over resampled videos; None below two videos, which vary in no way that is seen."""
    _, video_Q = np.unique(np.array(videos), return_inverse=True)
    count_V = np.bincount(video_Q).astype(np.float64)
    if len(count_V) < 2:
        return None
    ordered_Q = np.lexsort((values_QM[:, 0], video_Q))  # so that sums do not depend on the order of the queries
    sums_VM = np.stack([np.bincount(video_Q[ordered_Q], weights=column) for column in values_QM[ordered_Q].T], axis=1)
    means = []
    for picks_V in _draws(len(count_V), seed):
        times_V = np.bincount(picks_V, minlength=len(count_V))
        means.append((times_V @ sums_VM) / (times_V @ count_V))
    return np.array(means)


def percentiles_M(values_QM: Floats, videos: Sequence[str], seed: int) -> list[tuple[float, float] | None]:
    """A 95 % interval for the mean of each column."""
    means_RM = resampled_means_RM(values_QM, videos, seed)
    if means_RM is None:
        return [None] * values_QM.shape[1]
    low_M, high_M = np.percentile(means_RM, [2.5, 97.5], axis=0)
    return [(float(low), float(high)) for low, high in zip(low_M, high_M, strict=True)]


def video_interval(statistic: Callable[[NDArray[np.int64]], float], videos: Sequence[str],
                   seed: int) -> tuple[float, float] | None:
    """A 95 % interval of `statistic`, a function of the indices of the rows that count: all rows of each drawn video.
    None below two videos; draws where it is nan are left out."""
    _, video_Q = np.unique(np.array(videos), return_inverse=True)
    count = int(video_Q.max(initial=-1)) + 1
    if count < 2:
        return None
    of_video = [np.flatnonzero(video_Q == v) for v in range(count)]
    found = [statistic(np.concatenate([of_video[v] for v in picks_V])) for picks_V in _draws(count, seed)]
    known = [value for value in found if np.isfinite(value)]
    if not known:
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def _draws(count: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Each resample: `count` videos drawn with replacement, [V]."""
    generator = rng("bootstrap", seed)
    for _ in range(RESAMPLES):
        yield generator.integers(count, size=count)
