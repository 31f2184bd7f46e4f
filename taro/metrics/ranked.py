"""The protocol `moment-detr` (QVHighlights): ranked windows scored by mAP, and highlight detection.

Moments. A system gives up to 10 windows a query, each with a score. For a threshold t in .5, .55, ..., .95 they are
taken by falling score; each is right where its IoU with a ground-truth window that is not taken yet reaches t, the best
such window then being taken. Average precision is the area under the precision envelope, as VOC has it:

    AP = sum_k (r_k - r_{k-1}) max_{j >= k} p_j        r, p: recall and precision after k windows

and mAP its mean over queries, and over t. Short (0, 10], middle (10, 30] and long (30, 150] keep the ground truth of
that length alone, and the queries that have any.

Highlights. A system gives one number to every 2 s clip. A clip is a highlight for an annotator who gave it at least 2,
3 or 4; AP (precision envelope, mean over the recall levels that are reached) is averaged over annotators, then queries;
Hit@1 asks whether the clip with the highest number is a highlight for any annotator.

Deviations from the published evaluation: windows are sorted by score before the first 10 are kept; a query without a
prediction has 0 and stays in the denominator; a reversed window is wrong (there one as long as a ground-truth window
has the IoU 0/0, which is below no threshold, and counts as right).
Legend: Q queries, K predicted windows, W ground-truth windows, A annotators.
Reference: Lei et al., "QVHighlights", NeurIPS 2021."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taro.annotations.rows import Saliency
from taro.grounding.moment import Moment, iou
from taro.grounding.protocols import PROTOCOLS
from taro.metrics.bootstrap import means_M, percentiles_M
from taro.metrics.scores import Prediction, Scores, evaluate_predictions

__all__ = ["HIGHLIGHT_MARKS", "MAP_THRESHOLDS", "RankedPrediction", "RankedScores", "as_written", "average_precisions",
           "comparable_columns", "evaluate_ranked", "highlight_precision", "highlight_scores", "voc_precision"]

MAP_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
MAX_RANKED = 10
LENGTHS_S = {"short": (0.0, 10.0), "middle": (10.0, 30.0), "long": (30.0, 150.0)}
HIGHLIGHT_MARKS = (2, 3, 4)
CLIP_S = 2.0

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RankedPrediction:
    """A query, its windows of any score, and its numbers for 2 s clips. `ranked`: (window, score); `clip_scores` None:
    the file has none; `saliency`: the annotators' marks, None where the dataset has none."""

    answer: Prediction
    ranked: tuple[tuple[Moment, float], ...]
    clip_scores: tuple[float, ...] | None = None
    saliency: Saliency | None = None

    @property
    def top(self) -> tuple[Moment, ...]:
        """Up to 10 windows by falling score, the first of the file first among equals."""
        return tuple(window for window, _ in sorted(self.ranked, key=lambda pair: -pair[1])[:MAX_RANKED])


def as_written(windows: Sequence[Moment]) -> tuple[tuple[Moment, float], ...]:
    """Windows without scores, ranked as they are written.

    >>> as_written([Moment(3, 4), Moment(0, 1)])[1]
    (Moment(start_s=0, end_s=1), -1.0)
    """
    return tuple((window, -float(rank)) for rank, window in enumerate(windows))


@dataclass(frozen=True)
class RankedScores:
    """`top`: the scores of the best window of each query; `maps`: mAP by name; `highlights`: by name, empty where the
    files have none; `intervals`: 95 % for both; `baselines`: mAP of answers that looked at no video; `queries`: how
    many have ground truth of each length."""

    top: Scores
    maps: dict[str, float]
    highlights: dict[str, float]
    intervals: dict[str, tuple[float, float] | None]
    baselines: dict[str, dict[str, float]]
    queries: dict[str, int]

    @property
    def metrics(self) -> dict[str, float]:
        """Of the best windows, as `Scores.metrics`."""
        return self.top.metrics

    def breakdown_table(self) -> str:
        """Of the best windows, as `Scores.breakdown_table`."""
        return self.top.breakdown_table()

    def as_dict(self) -> dict[str, Any]:
        """For JSON: fractions, not percents."""
        intervals = {name: list(ends) if ends else None for name, ends in self.intervals.items()}
        return self.top.as_dict() | {"map": self.maps, "highlights": self.highlights, "map_intervals": intervals,
                                     "map_baselines": self.baselines, "map_queries": self.queries}

    def table(self) -> str:
        """Plain text, percents: the best windows, then mAP, then highlights."""
        lines = [self.top.table(), f"{'mAP, up to 10 windows':<24}{'score':>8}{'95 % interval':>15}"]
        lines[-1] += "".join(f"{name:>22}" for name in self.baselines)
        for name, value in (self.maps | self.highlights).items():
            ends = self.intervals.get(name)
            interval = "-" if ends is None else f"{100 * ends[0]:.1f}..{100 * ends[1]:.1f}"
            beside = "".join(f"{100 * scores[name]:>22.1f}" for scores in self.baselines.values() if name in scores)
            label = f"{name} ({self.queries[name]} queries)" if name in self.queries else name
            lines.append(f"{label:<24}{100 * value:>8.1f}{interval:>15}{beside}")
        return "\n".join(lines)


def evaluate_ranked(predictions: Sequence[RankedPrediction], *, bootstrap_seed: int = 0) -> RankedScores:
    """Scores ranked predictions, one a query, under `moment-detr`."""
    answers = [p.answer for p in predictions]
    top = evaluate_predictions(answers, protocol="moment-detr", bootstrap_seed=bootstrap_seed)
    truths = [a.truths(PROTOCOLS["moment-detr"]) for a in answers]
    columns = _map_columns([p.top for p in predictions], truths)
    baselines = {name: {metric: _mean(values) for metric, values in _map_columns(windows, truths).items()}
                 for name, windows in _constant_answers(answers, top).items()}
    highlights = _highlight_columns(predictions)
    videos = np.array([a.video for a in answers])
    intervals = {}
    for name, values_Q in (columns | highlights).items():
        there = ~np.isnan(values_Q)
        values_Q1, drawn = values_Q[there, None], list(videos[there])
        intervals[name] = percentiles_M(values_Q1, drawn, bootstrap_seed)[0] if drawn else None
    return RankedScores(top=top, maps={name: _mean(values) for name, values in columns.items()},
                        highlights={name: _mean(values) for name, values in highlights.items()}, intervals=intervals,
                        baselines=baselines,
                        queries={name: int((~np.isnan(columns[name])).sum()) for name in LENGTHS_S})


def comparable_columns(a: Sequence[RankedPrediction],
                       b: Sequence[RankedPrediction]) -> dict[str, tuple[Floats, Floats]]:
    """What two systems can be compared by, beside their best windows: name -> ([Q] of a, [Q] of b). mAP; and highlight
    detection at the highest mark, where every query has marks and both systems have numbers."""
    truths = [p.answer.truths(PROTOCOLS["moment-detr"]) for p in a]
    sides = [_map_columns([p.top for p in side], truths) | _highlight_columns(side) for side in (a, b)]
    names = ("mAP", f"HL mAP >= {HIGHLIGHT_MARKS[-1]}", f"HL Hit@1 >= {HIGHLIGHT_MARKS[-1]}")
    return {name: (sides[0][name], sides[1][name]) for name in names
            if all(name in side and not np.isnan(side[name]).any() for side in sides)}


def _mean(values_Q: Floats) -> float:
    known_Q = values_Q[~np.isnan(values_Q)]
    return means_M(known_Q[:, None])[0] if len(known_Q) else 0.0


def _constant_answers(answers: Sequence[Prediction], top: Scores) -> dict[str, list[tuple[Moment, ...]]]:
    """Answers of the trivial baselines, one window a query; none where a duration is unknown."""
    if top.constant_window is None:
        return {}
    ends = {"whole video": (0.0, 1.0), "best constant window": top.constant_window}
    return {name: [(Moment(start * (a.duration_s or 0.0), end * (a.duration_s or 0.0)),) for a in answers]
            for name, (start, end) in ends.items()}


def _map_columns(ranked: Sequence[Sequence[Moment]], windows: Sequence[Sequence[Moment]]) -> dict[str, Floats]:
    """Metric -> [Q], nan where a query has no ground truth of that length."""
    full = np.array([average_precisions(p, w) for p, w in zip(ranked, windows, strict=True)])
    columns = {"mAP": full.mean(axis=1)}
    columns |= {f"mAP@{t}": full[:, MAP_THRESHOLDS.index(t)] for t in (0.5, 0.75)}
    for name, (least_s, most_s) in LENGTHS_S.items():
        kept = [[w for w in windows_of if least_s < w.duration_s <= most_s] for windows_of in windows]
        columns[name] = np.array(
            [np.mean(average_precisions(p, w)) if w else np.nan for p, w in zip(ranked, kept, strict=True)])
    return columns


def average_precisions(ranked: Sequence[Moment], windows: Sequence[Moment]) -> list[float]:
    """AP of one query at each of `MAP_THRESHOLDS`; `ranked` best first.

    >>> average_precisions([Moment(0, 5), Moment(10, 20)], [Moment(10, 20)])[0]
    0.5
    """
    ious_KW = [[iou(predicted, window) for window in windows] for predicted in ranked]
    return [voc_precision(_matches(ious_KW, threshold), len(windows)) for threshold in MAP_THRESHOLDS]


def _matches(ious_KW: list[list[float]], threshold: float) -> list[bool]:
    """Whether each window is right, in their order: each ground truth is matched once, by the best IoU."""
    taken: set[int] = set()
    right = []
    for ious_W in ious_KW:
        free = [index for index, value in enumerate(ious_W) if value >= threshold and index not in taken]
        if free:
            taken.add(max(free, key=lambda index: ious_W[index]))
        right.append(bool(free))
    return right


def voc_precision(right: Sequence[bool], positives: int) -> float:
    """Area under the precision envelope of a ranked list that should find `positives` things.

    >>> voc_precision([True, False, True], 2)
    0.8333333333333333
    """
    if positives == 0:
        return 0.0
    precisions = [sum(right[: k + 1]) / (k + 1) for k in range(len(right))]
    envelope = [max(precisions[k:]) for k in range(len(right))]
    return sum(best for best, hit in zip(envelope, right, strict=True) if hit) / positives


def _highlight_columns(predictions: Sequence[RankedPrediction]) -> dict[str, Floats]:
    """Metric -> [Q]; empty where no query has marks, or no prediction has numbers."""
    if all(p.saliency is None for p in predictions) or all(p.clip_scores is None for p in predictions):
        return {}
    columns: dict[str, list[float]] = {}
    for p in predictions:
        for mark in HIGHLIGHT_MARKS:
            scores = (np.nan, np.nan)
            if p.saliency is not None:
                scores = highlight_scores(p.clip_scores or (), p.saliency, p.answer.duration_s, mark=mark)
            columns.setdefault(f"HL mAP >= {mark}", []).append(scores[0])
            columns.setdefault(f"HL Hit@1 >= {mark}", []).append(scores[1])
    return {name: np.array(values) for name, values in columns.items()}


def highlight_scores(clip_scores: Sequence[float], saliency: Saliency, duration_s: float | None, *,
                     mark: float) -> tuple[float, float]:
    """(AP averaged over annotators, Hit@1) of one query; clips that no number was given to have 0, a video without any
    number is a miss.

    >>> highlight_scores([0.1, 0.9, 0.3], Saliency((1, 2), ((4, 1), (2, 2))), 6.0, mark=2)
    (0.75, 1.0)
    """
    if not clip_scores:
        return 0.0, 0.0
    clips = max(int((duration_s or 0.0) / CLIP_S), 1 + max(saliency.clips, default=-1), 1)
    annotators = len(saliency.scores[0]) if saliency.scores else 1
    relevant_CA = np.zeros((clips, annotators), dtype=bool)
    for clip, marks in zip(saliency.clips, saliency.scores, strict=True):
        relevant_CA[clip] = np.array(marks) >= mark
    best = int(np.argmax(np.array(clip_scores)))
    numbers = np.zeros(clips)
    numbers[: min(len(clip_scores), clips)] = clip_scores[:clips]
    precisions = [highlight_precision(relevant_CA[:, a], numbers) for a in range(annotators)]
    return float(np.mean(precisions)), float(best < clips and relevant_CA[best].any())


def highlight_precision(relevant_C: NDArray[np.bool_], numbers_C: Floats) -> float:
    """Precision envelope, averaged over the thresholds at which another relevant clip is found. Clips with one number
    are found at once. Nothing relevant: 0; everything relevant: 1.

    >>> highlight_precision(np.array([True, False, True]), np.array([0.9, 0.5, 0.5]))
    0.8333333333333333
    """
    if not relevant_C.any():
        return 0.0
    order = np.argsort(-numbers_C, kind="stable")
    found = np.cumsum(relevant_C[order])
    last = np.append(np.flatnonzero(np.diff(numbers_C[order])), len(order) - 1)
    found_T, precision_T = found[last], found[last] / (last + 1)
    envelope_T = np.maximum.accumulate(precision_T[::-1])[::-1]
    grows_T = np.diff(found_T, prepend=0) > 0
    return float(envelope_T[grows_T].mean())
