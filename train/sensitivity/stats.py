"""The statistics of the sensitivity measure as pure functions: ranks, areas, means by position, and their intervals.

All work on plain arrays with one entry a rollout; nan means "has none" and must be dropped by the caller where a
function does not say that it does. Intervals are those of taro/metrics/bootstrap.py.
Legend: N rollouts, R response tokens, K bins of relative position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["auc", "auc_within", "centred", "means_by_position", "pairs_within", "ranks", "spearman"]


def ranks(values_N: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties sharing their mean rank.

    >>> ranks(np.array([3.0, 1.0, 3.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, group_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[group_N], dtype=np.float64)


def auc(values_N: np.ndarray, positive_N: np.ndarray) -> float:
    """P(a positive's value > a negative's) + P(equal) / 2 over all pairs (Mann-Whitney); nan without a pair.

    >>> auc(np.array([.9, .8, .1]), np.array([True, True, False]))
    1.0
    >>> auc(np.array([.5, .5]), np.array([True, False]))
    0.5
    """
    positive_N = positive_N.astype(bool)
    most, least = int(positive_N.sum()), int((~positive_N).sum())
    if not most or not least:
        return float("nan")
    return float((ranks(values_N)[positive_N].sum() - most * (most + 1) / 2) / (most * least))


def pairs_within(values_N: np.ndarray, positive_N: np.ndarray,
                 groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each group that has a pair of a positive and a negative: pairs won (ties half), pairs, a rollout of it."""
    _, first, group_N = np.unique(np.array(groups), return_index=True, return_inverse=True)
    positive_N = positive_N.astype(bool)
    rows = []
    for index, rollout in enumerate(first):
        mine = group_N == index
        count = int(positive_N[mine].sum()) * int((~positive_N[mine]).sum())
        if count:
            rows.append((auc(values_N[mine], positive_N[mine]) * count, count, int(rollout)))
    table = np.array(rows, dtype=np.float64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2].astype(np.int64)


def auc_within(values_N: np.ndarray, positive_N: np.ndarray, groups: Sequence[str]) -> float:
    """As `auc`, over pairs of one group alone: what a bonus that compares inside the group can see. nan without any.

    >>> round(auc(np.array([5., 4., 2., 1.]), np.array([0, 1, 0, 1])), 3)
    0.25
    >>> auc_within(np.array([4., 5., 1., 2.]), np.array([0, 1, 0, 1]), ["a", "a", "b", "b"])
    1.0
    """
    wins, pairs, _ = pairs_within(values_N, positive_N, groups)
    return float(wins.sum() / pairs.sum()) if len(pairs) else float("nan")


def spearman(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Correlation of ranks, ties shared; nan below two rollouts or where one of them does not vary.

    >>> spearman(np.array([1., 2., 3.]), np.array([10., 20., 90.]))
    1.0
    """
    if len(a_N) < 2:
        return float("nan")
    x_N, y_N = ranks(a_N) - (len(a_N) + 1) / 2, ranks(b_N) - (len(b_N) + 1) / 2
    size = float(np.sqrt((x_N**2).sum() * (y_N**2).sum()))
    return float((x_N * y_N).sum() / size) if size else float("nan")


def centred(values_N: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Each value less its group's mean.

    >>> centred(np.array([1., 3., 7.]), ["a", "a", "b"]).tolist()
    [-1.0, 1.0, 0.0]
    """
    _, group_N = np.unique(np.array(groups), return_inverse=True)
    means = np.bincount(group_N, weights=values_N) / np.maximum(np.bincount(group_N), 1)
    return np.asarray(values_N - means[group_N])


def means_by_position(gap_R: np.ndarray, over_R: np.ndarray, bins: int = 10) -> np.ndarray:
    """[K]: mean of `gap_R` over the counted tokens of each tenth of their sequence; nan where a tenth holds none.

    >>> means_by_position(np.array([9., 1., 3., 5., 7.]), np.array([0, 1, 1, 1, 1]), bins=2).tolist()
    [2.0, 6.0]
    """
    gaps = gap_R[over_R.astype(bool)]
    bin_of = np.arange(len(gaps)) * bins // max(len(gaps), 1)
    counts_K = np.bincount(bin_of, minlength=bins)
    sums_K = np.bincount(bin_of, weights=gaps, minlength=bins)
    return np.where(counts_K > 0, sums_K / np.maximum(counts_K, 1), np.nan)
