"""What a set of predictions is worth: R1@m, mIoU, trivial baselines, intervals, under a named protocol.

Conventions differ between evaluations by more than methods do (docs/annotations.md has the table), so a score never
travels without the name of its protocol, two baselines that looked at no video, a 95 % interval and the number of
queries that were not answered. An unanswered query is a miss; it never leaves the denominator.

The interval is a bootstrap over videos, not queries: queries of one video share its frames and are no independent
draws. The best constant window is searched on the same queries that it is scored on, on a grid of 1/20 of the
duration, so it is an upper bound for answers that ignore the video.

Left out: mAP and highlight detection, and the protocols that need ranked predictions.
Legend: Q queries, V videos, M metrics (mIoU, then R1 at each threshold).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from taro.draws import rng
from taro.errors import AnnotationError, ConfigError
from taro.moment import Moment, best_iou
from taro.prompts import Reasoning, parse_reasoning, reasoning_stats

__all__ = ["PROTOCOLS", "THRESHOLDS", "Prediction", "Protocol", "Scores", "evaluate_predictions", "first_span_hit"]

THRESHOLDS = (0.3, 0.5, 0.7)
METRICS = ("miou", *(f"r1@{threshold}" for threshold in THRESHOLDS))
RESAMPLES = 1000
GRID = 20
FIRST_SPAN_IOU = 0.5
LISTED = 10

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Protocol:
    """How an IoU becomes a score. `strict`: a threshold must be exceeded, not reached; `truth`: which ground-truth
    window counts; `clip`: ground truth is limited to the video first. How answers are read is the entry of the same
    name in `taro.prompts.ANSWER_PARSERS`."""

    name: str
    strict: bool
    truth: Literal["best", "first"]
    clip: bool

    def truths(self, windows: Sequence[Moment], duration_s: float | None) -> tuple[Moment, ...]:
        """The windows that a prediction is compared with."""
        kept = tuple(windows) if self.truth == "best" else tuple(windows[:1])
        return tuple(w.clip(duration_s) for w in kept) if self.clip and duration_s is not None else kept

    def hits_QM(self, ious_Q: Floats) -> Floats:
        """[Q, M]: the IoU itself, then 1 where it passes each threshold."""
        passes = [ious_Q > t if self.strict else ious_Q >= t for t in THRESHOLDS]
        return np.stack([ious_Q, *(np.asarray(p, dtype=np.float64) for p in passes)], axis=1)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("taro", strict=False, truth="best", clip=True),
        Protocol("time-r1", strict=True, truth="first", clip=False),
        Protocol("taro-official", strict=False, truth="best", clip=False),
        Protocol("timelens", strict=False, truth="first", clip=False),
    )
}
"""Protocols by name; the names are those of `taro.prompts.ANSWER_PARSERS`."""


@dataclass(frozen=True)
class Prediction:
    """One query and what was answered. `predicted` None: nothing (`missing`), or a response that holds no moment.
    `reasoning`: what stood between the think tags, None where responses have none; `duration_s`: of the clip, None
    where unknown (baselines are then not computed, ground truth is not clipped)."""

    query_id: str
    video: str
    predicted: Moment | None
    windows: tuple[Moment, ...]
    duration_s: float | None
    reasoning: str | None = None
    missing: bool = False


@dataclass(frozen=True)
class Scores:
    """Scores in [0, 1] of `queries` queries over `videos` videos. `intervals`: 95 %, None below two videos;
    `answered`: the same metrics over the queries that have a response, to compare with evaluations that drop the rest;
    `timestamps`, `first_span`: shares of the responses, None where no response has a reasoning."""

    protocol: str
    queries: int
    videos: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float] | None]
    answered: dict[str, float]
    missing: tuple[str, ...]
    unparsable: tuple[str, ...]
    timestamps: float | None
    first_span: float | None
    baselines: dict[str, dict[str, float]]
    constant_window: tuple[float, float] | None

    @property
    def miou(self) -> float:
        """Mean IoU over all queries."""
        return self.metrics["miou"]

    @property
    def r1(self) -> dict[float, float]:
        """Share of the queries whose prediction passes each threshold."""
        return {threshold: self.metrics[f"r1@{threshold}"] for threshold in THRESHOLDS}

    def as_dict(self) -> dict[str, Any]:
        """For JSON: fractions, not percents; the lists of ids are whole."""
        return {
            "protocol": self.protocol,
            "queries": self.queries,
            "videos": self.videos,
            **self.metrics,
            "intervals": {name: list(ends) if ends else None for name, ends in self.intervals.items()},
            "missing": len(self.missing),
            "missing_ids": list(self.missing),
            "unparsable": len(self.unparsable),
            "unparsable_ids": list(self.unparsable),
            "answered": self.answered,
            "timestamps": self.timestamps,
            "first_span": self.first_span,
            "baselines": self.baselines,
            "constant_window": list(self.constant_window) if self.constant_window else None,
        }

    def table(self) -> str:
        """Plain text, percents: the score with its interval, the baselines beside it, what was not answered."""
        rows = [["", "mIoU", *(f"R1@{threshold}" for threshold in THRESHOLDS)]]
        rows.append(["prediction", *(f"{100 * self.metrics[name]:.1f}" for name in METRICS)])
        rows.append(["  95 % interval", *(_interval_text(self.intervals[name]) for name in METRICS)])
        for name, scores in self.baselines.items():
            rows.append([name, *(f"{100 * scores[metric]:.1f}" for metric in METRICS)])
        if self.missing and self.answered:
            rows.append(["answered only", *(f"{100 * self.answered[name]:.1f}" for name in METRICS)])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
        lines.insert(0, f"protocol {self.protocol}: {self.queries} queries of {self.videos} videos, percent")
        return "\n".join(lines + self._notes())

    def _notes(self) -> list[str]:
        notes = [
            f"{_ids_text('missing', self.missing)}; {_ids_text('unparsable', self.unparsable)} (counted as misses)"
        ]
        if self.timestamps is not None and self.first_span is not None:
            notes.append(
                f"timestamps in {100 * self.timestamps:.1f} %, first span right in {100 * self.first_span:.1f} %"
            )
        if self.constant_window is not None:
            start, end = self.constant_window
            notes.append(f"best constant window: {start:.2f} to {end:.2f} of the duration, searched on these queries")
        elif not self.baselines:
            notes.append("no baselines: the duration of some videos is not known")
        return notes


def evaluate_predictions(
    predictions: Sequence[Prediction], *, protocol: str = "taro", bootstrap_seed: int = 0
) -> Scores:
    """Scores one prediction a query, under a protocol of `PROTOCOLS`.

    >>> p = Prediction("q", "v", Moment(0, 10), (Moment(5, 10),), 20.0)
    >>> evaluate_predictions([p]).r1
    {0.3: 1.0, 0.5: 1.0, 0.7: 0.0}
    >>> evaluate_predictions([p], protocol="time-r1").r1
    {0.3: 1.0, 0.5: 0.0, 0.7: 0.0}
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(f"{protocol}: no such evaluation protocol; expected one of: {', '.join(PROTOCOLS)}")
    if not predictions:
        raise AnnotationError(
            "nothing to evaluate: expected at least one query, got none; check the split and the file"
        )
    rules = PROTOCOLS[protocol]
    truths = [rules.truths(p.windows, p.duration_s) for p in predictions]
    ious = [
        best_iou(p.predicted, t) if p.predicted is not None else 0.0 for p, t in zip(predictions, truths, strict=True)
    ]
    hits_QM = rules.hits_QM(np.array(ious))
    responded = [not p.missing for p in predictions]
    videos = list(dict.fromkeys(p.video for p in predictions))
    timestamps, first_span = _reasoning_shares(predictions)
    baselines, constant = _baselines(predictions, truths, rules)
    return Scores(
        protocol=protocol,
        queries=len(predictions),
        videos=len(videos),
        metrics=_means(hits_QM),
        intervals=_intervals(hits_QM, [p.video for p in predictions], bootstrap_seed),
        answered=_means(hits_QM[responded]) if any(responded) else {},
        missing=tuple(p.query_id for p in predictions if p.missing),
        unparsable=tuple(p.query_id for p in predictions if p.predicted is None and not p.missing),
        timestamps=timestamps,
        first_span=first_span,
        baselines=baselines,
        constant_window=constant,
    )


def first_span_hit(reasoning: Reasoning, windows: Sequence[Moment]) -> bool:
    """Whether the first time range of a reasoning has IoU >= 0.5 with the best window (METHOD 5b)."""
    return bool(reasoning.spans) and best_iou(reasoning.spans[0], tuple(windows)) >= FIRST_SPAN_IOU


def _means(hits_QM: Floats) -> dict[str, float]:
    return dict(zip(METRICS, map(float, hits_QM.mean(axis=0)), strict=True))


def _reasoning_shares(predictions: Sequence[Prediction]) -> tuple[float | None, float | None]:
    """Shares of the responses; a response without reasoning counts as one without timestamps."""
    present = [p for p in predictions if not p.missing]
    if all(p.reasoning is None for p in present):
        return None, None
    stats = [_stats(p.reasoning or "") for p in present]
    first = [
        first_span_hit(s, [w if p.duration_s is None else w.clip(p.duration_s) for w in p.windows])
        for s, p in zip(stats, present, strict=True)
    ]
    return sum(s.has_timestamp for s in stats) / len(stats), sum(first) / len(first)


def _stats(reasoning: str) -> Reasoning:
    return parse_reasoning(reasoning) if "<think>" in reasoning else reasoning_stats(reasoning)


def _intervals(hits_QM: Floats, videos: list[str], seed: int) -> dict[str, tuple[float, float] | None]:
    """Percentile bootstrap over videos: draw V videos with replacement, keep all their queries, take the mean."""
    _, video_Q = np.unique(np.array(videos), return_inverse=True)
    count_V = np.bincount(video_Q).astype(np.float64)
    if len(count_V) < 2:
        return dict.fromkeys(METRICS)
    sums_VM = np.stack([np.bincount(video_Q, weights=column) for column in hits_QM.T], axis=1)
    generator = rng("bootstrap", seed)
    means = []
    for _ in range(RESAMPLES):
        times_V = np.bincount(generator.integers(len(count_V), size=len(count_V)), minlength=len(count_V))
        means.append((times_V @ sums_VM) / (times_V @ count_V))
    low_M, high_M = np.percentile(np.array(means), [2.5, 97.5], axis=0)
    return {name: (float(low_M[i]), float(high_M[i])) for i, name in enumerate(METRICS)}


def _baselines(
    predictions: Sequence[Prediction], truths: Sequence[tuple[Moment, ...]], rules: Protocol
) -> tuple[dict[str, dict[str, float]], tuple[float, float] | None]:
    """The whole video, and the constant fraction of the duration with the best mIoU on these very queries."""
    durations = [p.duration_s for p in predictions if p.duration_s is not None]
    if len(durations) < len(predictions):
        return {}, None
    duration_Q = np.array(durations)
    ends = [(i / GRID, j / GRID) for i in range(GRID) for j in range(i + 1, GRID + 1)]
    ious = [_constant_ious(a * duration_Q, b * duration_Q, truths) for a, b in ends]
    best = int(np.argmax([iou_Q.mean() for iou_Q in ious]))
    whole = ends.index((0.0, 1.0))
    scores = {
        "whole video": _means(rules.hits_QM(ious[whole])),
        "best constant window": _means(rules.hits_QM(ious[best])),
    }
    return scores, ends[best]


def _constant_ious(start_Q: Floats, end_Q: Floats, truths: Sequence[tuple[Moment, ...]]) -> Floats:
    """Best IoU of one predicted window a query; the formula of `taro.moment.iou` over arrays."""
    counts_Q = [len(windows) for windows in truths]
    query = np.repeat(np.arange(len(truths)), counts_Q)
    true_start = np.array([w.start_s for windows in truths for w in windows])
    true_end = np.array([w.end_s for windows in truths for w in windows])
    hull = np.maximum(end_Q[query], true_end) - np.minimum(start_Q[query], true_start)
    overlap = np.minimum(end_Q[query], true_end) - np.maximum(start_Q[query], true_start)
    ious = np.where(hull > 0, np.maximum(overlap, 0.0) / np.where(hull > 0, hull, 1.0), 0.0)
    ious = np.where(true_end < true_start, 0.0, ious)
    best_Q = np.zeros(len(truths))
    np.maximum.at(best_Q, query, ious)
    return best_Q


def _interval_text(ends: tuple[float, float] | None) -> str:
    return "-" if ends is None else f"{100 * ends[0]:.1f}..{100 * ends[1]:.1f}"


def _ids_text(what: str, ids: tuple[str, ...]) -> str:
    if not ids:
        return f"{what} 0"
    shown = ", ".join(ids[:LISTED]) + (", ..." if len(ids) > LISTED else "")
    return f"{what} {len(ids)} ({shown})"
