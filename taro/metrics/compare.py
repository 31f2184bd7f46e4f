"""Two systems on the same queries: is the difference more than luck of the videos that were drawn?

Paired bootstrap: both systems are scored on the same resampled videos, and what is resampled is their difference, query
by query. Two intervals that overlap say little; the interval of the difference says what is asked.
Legend: Q queries, M metrics, R resamples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taro.core.errors import AnnotationError
from taro.grounding.protocols import METRICS
from taro.metrics.bootstrap import RESAMPLES, means_M, resampled_means_RM
from taro.metrics.scores import Prediction, query_hits

__all__ = ["Comparison", "compare_predictions"]

SAME_IOU = 1e-9


@dataclass(frozen=True)
class Comparison:
    """B against A, over the same queries. `difference`: B minus A; `intervals`: 95 %, None below two videos; `p_value`:
    two-sided, twice the smaller share of resamples on either side of no difference, the data themselves counted as one
    resample on each side (so it is never 0); `better`, `equal`, `worse`: queries by the IoU of B against that of A."""

    protocol: str
    queries: int
    videos: int
    a: dict[str, float]
    b: dict[str, float]
    difference: dict[str, float]
    intervals: dict[str, tuple[float, float] | None]
    p_value: dict[str, float | None]
    better: int
    equal: int
    worse: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON: fractions, not percents."""
        names = ("protocol", "queries", "videos", "a", "b", "difference", "p_value", "better", "equal", "worse")
        intervals = {name: list(ends) if ends else None for name, ends in self.intervals.items()}
        return {name: getattr(self, name) for name in names} | {"intervals": intervals}

    def table(self) -> str:
        """Plain text, percents."""
        width = max(10, *(len(name) + 2 for name in self.difference))
        lines = [f"protocol {self.protocol}: B against A on {self.queries} queries of {self.videos} videos, percent",
                 f"{'':<{width}}{'A':>8}{'B':>8}{'B - A':>8}{'95 % interval':>17}{'p':>8}"]
        for name in self.difference:
            ends, p = self.intervals[name], self.p_value[name]
            interval = "-" if ends is None else f"{100 * ends[0]:+.1f}..{100 * ends[1]:+.1f}"
            values = f"{100 * self.a[name]:>8.1f}{100 * self.b[name]:>8.1f}{100 * self.difference[name]:>+8.1f}"
            lines.append(f"{name:<{width}}{values}{interval:>17}{'-' if p is None else f'{p:.3f}':>8}")
        lines.append(f"IoU higher with B in {self.better}, equal in {self.equal}, lower in {self.worse} queries")
        return "\n".join(lines)


def compare_predictions(
        a: Sequence[Prediction], b: Sequence[Prediction], *, protocol: str = "taro", bootstrap_seed: int = 0,
        more: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]] | None = None) -> Comparison:
    """Compares two lists of predictions that answer the same queries in the same order. `more`: further metrics, a name
    and ([Q] of a, [Q] of b).

    >>> from taro.grounding.moment import Moment
    >>> right = [Prediction(str(v), str(v), Moment(0, 10), (Moment(0, 10),), 20.0) for v in range(9)]
    >>> wrong = [Prediction(p.query_id, p.video, None, p.windows, p.duration_s) for p in right]
    >>> compare_predictions(wrong, right).intervals["miou"]
    (1.0, 1.0)
    """
    if [(p.query_id, p.video, p.windows) for p in a] != [(p.query_id, p.video, p.windows) for p in b] or not a:
        raise AnnotationError(
            f"expected two systems that answer the same queries in the same order, got {len(a)} and {len(b)} queries; "
            "join both with the same annotations")
    names = (*METRICS, *(more or {}))
    a_QM, b_QM = (
        np.column_stack([query_hits(answers, protocol=protocol), *(pair[side] for pair in (more or {}).values())])
        for side, answers in enumerate((a, b)))
    change_QM = b_QM - a_QM
    videos = [p.video for p in a]
    means_RM = resampled_means_RM(change_QM, videos, bootstrap_seed)
    intervals: dict[str, tuple[float, float] | None] = dict.fromkeys(names)
    p_value: dict[str, float | None] = dict.fromkeys(names)
    for index, name in enumerate(names if means_RM is not None else ()):
        assert means_RM is not None
        low, high = np.percentile(means_RM[:, index], [2.5, 97.5])
        intervals[name] = (float(low), float(high))
        sides = (int((means_RM[:, index] <= 0).sum()), int((means_RM[:, index] >= 0).sum()))
        p_value[name] = min(1.0, 2 * (min(sides) + 1) / (RESAMPLES + 1))
    change_Q = change_QM[:, 0]
    return Comparison(protocol, len(a), len(set(videos)), _named(a_QM, names), _named(b_QM, names),
                      _named(change_QM, names), intervals, p_value, better=int((change_Q > SAME_IOU).sum()),
                      equal=int((np.abs(change_Q) <= SAME_IOU).sum()), worse=int((change_Q < -SAME_IOU).sum()))


def _named(values_QM: NDArray[np.float64], names: Sequence[str]) -> dict[str, float]:
    return dict(zip(names, means_M(values_QM), strict=True))
