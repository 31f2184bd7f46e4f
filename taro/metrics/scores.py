"""What a set of predictions is worth: R1@m, mIoU, trivial baselines, intervals, under a named protocol.

Conventions differ between evaluations by more than methods do (docs/evaluation.md has the table), so a score never
travels without the name of its protocol, two baselines that looked at no video, a 95 % interval and the number of
queries that were not answered. An unanswered query is a miss; it never leaves the denominator.

The best constant window is searched on the same queries that it is scored on, on a grid of 1/20 of the
duration, so it is an upper bound for answers that ignore the video.

Left out: mAP and highlight detection, which need ranked predictions (`taro.metrics.ranked`), and comparing two systems
(`taro.metrics.compare`).
Legend: Q queries, V videos, M metrics (mIoU, then R1 at each threshold)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taro.core.errors import AnnotationError
from taro.core.text import one_line
from taro.grounding.answers import Reasoning, parse_reasoning, reasoning_stats
from taro.grounding.moment import Moment, best_iou
from taro.grounding.protocols import METRICS, PROTOCOLS, THRESHOLDS, Protocol, protocol_named
from taro.metrics.bootstrap import means_M, percentiles_M
from taro.metrics.breakdown import Breakdown, breakdown, breakdown_table

__all__ = ["METRICS", "PROTOCOLS", "THRESHOLDS", "Prediction", "Protocol", "Scores", "evaluate_predictions",
           "first_span_hit", "query_hits"]

GRID = 20
FIRST_SPAN_IOU = 0.5
LISTED = 10

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """One query and what was answered. `predicted` None: nothing (`missing`), or a response that holds no moment.
    `reasoning`: what stood between the think tags, None where responses have none; `duration_s`: of the clip, None
    where unknown (baselines are then not computed, ground truth is not clipped); `unclipped`: the windows as annotated,
    where `windows` were clipped to the clip already, for protocols that do not clip; `answers`: all windows of the
    answer where it has several, `predicted` first."""

    query_id: str
    video: str
    predicted: Moment | None
    windows: tuple[Moment, ...]
    duration_s: float | None
    reasoning: str | None = None
    missing: bool = False
    unclipped: tuple[Moment, ...] | None = None
    answers: tuple[Moment, ...] = ()

    def truths(self, rules: Protocol) -> tuple[Moment, ...]:
        """The windows that a protocol compares the answer with."""
        windows = self.windows if rules.clip or self.unclipped is None else self.unclipped
        return rules.truths(windows, self.duration_s)

    def iou(self, rules: Protocol) -> float:
        """IoU of the answer with them, as a protocol takes it."""
        return rules.iou(rules.answer(self.predicted, self.duration_s), self.truths(rules), self.answers)

    @property
    def past_end(self) -> bool:
        """Whether a window of the answer ends behind the clip."""
        ends = [window.end_s for window in self.answers or (self.predicted,) if window is not None]
        return self.duration_s is not None and any(end_s > self.duration_s for end_s in ends)


@dataclass(frozen=True)
class Scores:
    """Scores in [0, 1] of `queries` queries over `videos` videos. `intervals`: 95 %, None below two videos;
    `answered`: the same metrics over the queries that have a response, to compare with evaluations that drop the rest;
    `timestamps`, `first_span`: shares of the responses, None where no response has a reasoning; `breakdown`: by the
    length and the place of the ground truth; `past_end`: answers that end behind their clip."""

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
    breakdown: Breakdown = field(default_factory=dict)
    past_end: int = 0

    @property
    def miou(self) -> float:
        """Mean IoU over all queries."""
        return self.metrics["miou"]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: fractions, not percents; the lists of ids are whole."""
        return {"protocol": self.protocol, "queries": self.queries, "videos": self.videos, **self.metrics,
                "intervals": {name: list(ends) if ends else None for name, ends in self.intervals.items()},
                "missing": len(self.missing), "missing_ids": list(self.missing), "unparsable": len(self.unparsable),
                "unparsable_ids": list(self.unparsable), "answered": self.answered, "timestamps": self.timestamps,
                "first_span": self.first_span, "baselines": self.baselines,
                "constant_window": list(self.constant_window) if self.constant_window else None,
                "breakdown": self.breakdown, "past_end": self.past_end}

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

    def breakdown_table(self) -> str:
        """Plain text, percents: the metrics by length and by place of what is sought."""
        return breakdown_table(self.breakdown)

    def _notes(self) -> list[str]:
        notes = [
            f"{_ids_text('missing', self.missing)}; {_ids_text('unparsable', self.unparsable)} (counted as misses)"]
        if self.past_end:
            how = "clipped" if PROTOCOLS[self.protocol].clip_answers else "compared as they are"
            notes.append(f"{self.past_end} answers end past their video ({how})")
        if self.timestamps is not None and self.first_span is not None:
            notes.append(
                f"timestamps in {100 * self.timestamps:.1f} %, first span right in {100 * self.first_span:.1f} %")
        if self.constant_window is not None:
            start, end = self.constant_window
            notes.append(f"best constant window: {start:.2f} to {end:.2f} of the duration, searched on these queries")
        elif not self.baselines:
            notes.append("no baselines: the duration of some videos is not known")
        return notes


def evaluate_predictions(predictions: Sequence[Prediction], *, protocol: str = "taro",
                         bootstrap_seed: int = 0) -> Scores:
    """Scores one prediction a query, under a protocol of `PROTOCOLS`.

    >>> p = Prediction("q", "v", Moment(0, 10), (Moment(5, 10),), 20.0)
    >>> evaluate_predictions([p]).metrics
    {'miou': 0.5, 'r1@0.3': 1.0, 'r1@0.5': 1.0, 'r1@0.7': 0.0}
    >>> evaluate_predictions([p], protocol="time-r1").metrics["r1@0.5"]
    0.0
    """
    rules = protocol_named(protocol)
    if not predictions:
        raise AnnotationError(
            "nothing to evaluate: expected at least one query, got none; check the split and the file")
    truths = [p.truths(rules) for p in predictions]
    hits_QM = query_hits(predictions, protocol=protocol)
    videos_Q = [p.video for p in predictions]
    responded = [not p.missing for p in predictions]
    timestamps, first_span = _reasoning_shares(predictions)
    baselines, constant = _baselines(predictions, truths, rules)
    return Scores(protocol=protocol, queries=len(predictions), videos=len(set(videos_Q)), metrics=_means(hits_QM),
                  intervals=dict(zip(METRICS, percentiles_M(hits_QM, videos_Q, bootstrap_seed), strict=True)),
                  answered=_means(hits_QM[responded]) if any(responded) else {},
                  missing=tuple(p.query_id for p in predictions if p.missing),
                  unparsable=tuple(p.query_id for p in predictions if p.predicted is None and not p.missing),
                  timestamps=timestamps, first_span=first_span, baselines=baselines, constant_window=constant,
                  past_end=sum(p.past_end for p in predictions),
                  breakdown=breakdown(hits_QM, [p.windows for p in predictions], [p.duration_s for p in predictions]))


def query_hits(predictions: Sequence[Prediction], *, protocol: str = "taro") -> Floats:
    """[Q, M]: what each query is worth by itself; the scores are the means."""
    rules = protocol_named(protocol)
    ious = [p.iou(rules) for p in predictions]
    return rules.hits_QM(np.array(ious))


def first_span_hit(reasoning: Reasoning, windows: Sequence[Moment]) -> bool:
    """Whether the first time range of a reasoning has IoU >= 0.5 with the best window."""
    return bool(reasoning.spans) and best_iou(reasoning.spans[0], tuple(windows)) >= FIRST_SPAN_IOU


def _means(hits_QM: Floats) -> dict[str, float]:
    return dict(zip(METRICS, means_M(hits_QM), strict=True))


def _reasoning_shares(predictions: Sequence[Prediction]) -> tuple[float | None, float | None]:
    """Shares of the responses; a response without reasoning counts as one without timestamps."""
    present = [p for p in predictions if not p.missing]
    if all(p.reasoning is None for p in present):
        return None, None
    texts = [p.reasoning or "" for p in present]
    stats = [parse_reasoning(text) if "<think>" in text else reasoning_stats(text) for text in texts]
    first = [first_span_hit(s, [w if p.duration_s is None else w.clip(p.duration_s) for w in p.windows])
             for s, p in zip(stats, present, strict=True)]
    return sum(s.has_timestamp for s in stats) / len(stats), sum(first) / len(first)


def _baselines(predictions: Sequence[Prediction], truths: Sequence[tuple[Moment, ...]],
               rules: Protocol) -> tuple[dict[str, dict[str, float]], tuple[float, float] | None]:
    """The whole video, and the constant fraction of the duration with the best mIoU on these very queries; of a missing
    video whose duration nobody knows, 0 for both."""
    if any(p.duration_s is None and not p.missing for p in predictions) or all(p.missing for p in predictions):
        return {}, None
    duration_Q = np.array([p.duration_s or 0.0 for p in predictions])
    ends = [(i / GRID, j / GRID) for i in range(GRID) for j in range(i + 1, GRID + 1)]
    ious = [rules.constant_ious(a * duration_Q, b * duration_Q, truths) for a, b in ends]
    best = int(np.argmax(means_M(np.stack(ious, axis=1))))
    whole = ends.index((0.0, 1.0))
    scores = {"whole video": _means(rules.hits_QM(ious[whole])),
              "best constant window": _means(rules.hits_QM(ious[best]))}
    return scores, ends[best]


def _interval_text(ends: tuple[float, float] | None) -> str:
    return "-" if ends is None else f"{100 * ends[0]:.1f}..{100 * ends[1]:.1f}"


def _ids_text(what: str, ids: tuple[str, ...]) -> str:
    if not ids:
        return f"{what} 0"
    shown = ", ".join(one_line(one[:100]) for one in ids[:LISTED]) + (", ..." if len(ids) > LISTED else "")
    return f"{what} {len(ids)} ({shown})"
