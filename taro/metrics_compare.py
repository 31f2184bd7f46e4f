"""Two systems on the same queries: is the difference more than luck of the videos that were drawn?

Paired bootstrap: both systems are scored on the same resampled videos, and what is resampled is their difference, query
by query. Two intervals that overlap say little; the interval of the difference says what is asked.
Legend: Q queries, M metrics, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from taro.errors import AnnotationError
from taro.metrics import Prediction, query_hits
from taro.metrics_bootstrap import resampled_means_RM
from taro.metrics_protocols import METRICS

__all__ = ["Comparison", "compare_predictions"]

SAME_IOU = 1e-9


@dataclass(frozen=True)
class Comparison:
    """B against A, over the same queries. `difference`: B minus A; `intervals`: 95 %, None below two videos; `p_value`:
    two-sided, twice the smaller share of resamples on either side of no difference; `better`, `equal`, `worse`: queries
    by the IoU of B against that of A."""

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
        lines = [f"protocol {self.protocol}: B against A on {self.queries} queries of {self.videos} videos, percent",
                 f"{'':<10}{'A':>8}{'B':>8}{'B - A':>8}{'95 % interval':>17}{'p':>8}"]  # fmt: skip
        for name in METRICS:
            ends, p = self.intervals[name], self.p_value[name]
            interval = "-" if ends is None else f"{100 * ends[0]:+.1f}..{100 * ends[1]:+.1f}"
            values = f"{100 * self.a[name]:>8.1f}{100 * self.b[name]:>8.1f}{100 * self.difference[name]:>+8.1f}"
            lines.append(f"{name:<10}{values}{interval:>17}{'-' if p is None else f'{p:.3f}':>8}")
        lines.append(f"IoU higher with B in {self.better}, equal in {self.equal}, lower in {self.worse} queries")
        return "\n".join(lines)


def compare_predictions(
    a: Sequence[Prediction], b: Sequence[Prediction], *, protocol: str = "taro", bootstrap_seed: int = 0
) -> Comparison:
    """Compares two lists of predictions that answer the same queries in the same order.

    >>> from taro.moment import Moment
    >>> right = [Prediction(str(v), str(v), Moment(0, 10), (Moment(0, 10),), 20.0) for v in range(9)]
    >>> wrong = [Prediction(p.query_id, p.video, None, p.windows, p.duration_s) for p in right]
    >>> compare_predictions(wrong, right).intervals["miou"]
    (1.0, 1.0)
    """
    if [(p.query_id, p.video, p.windows) for p in a] != [(p.query_id, p.video, p.windows) for p in b] or not a:
        raise AnnotationError(
            f"expected two systems that answer the same queries in the same order, got {len(a)} and {len(b)} queries; "
            "join both with the same annotations"
        )
    a_QM, b_QM = query_hits(a, protocol=protocol), query_hits(b, protocol=protocol)
    change_QM = b_QM - a_QM
    videos = [p.video for p in a]
    means_RM = resampled_means_RM(change_QM, videos, bootstrap_seed)
    intervals: dict[str, tuple[float, float] | None] = dict.fromkeys(METRICS)
    p_value: dict[str, float | None] = dict.fromkeys(METRICS)
    for index, name in enumerate(METRICS if means_RM is not None else ()):
        assert means_RM is not None
        low, high = np.percentile(means_RM[:, index], [2.5, 97.5])
        intervals[name] = (float(low), float(high))
        sides = (float((means_RM[:, index] <= 0).mean()), float((means_RM[:, index] >= 0).mean()))
        p_value[name] = min(1.0, 2 * min(sides))
    change_Q = change_QM[:, 0]
    return Comparison(
        protocol, len(a), len(set(videos)), _named(a_QM), _named(b_QM), _named(change_QM), intervals, p_value,
        better=int((change_Q > SAME_IOU).sum()), equal=int((np.abs(change_Q) <= SAME_IOU).sum()),
        worse=int((change_Q < -SAME_IOU).sum()),
    )  # fmt: skip


def _named(values_QM: Any) -> dict[str, float]:
    return dict(zip(METRICS, map(float, values_QM.mean(axis=0)), strict=True))
