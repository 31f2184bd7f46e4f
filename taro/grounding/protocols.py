"""Evaluation protocols: which ground truth counts, how an IoU is taken, whether a threshold is reached or exceeded.

On one set of predictions the choice moves mIoU by seven points and R1@0.5 by two and a half, so no score is printed
without the name of its protocol (docs/evaluation.md). How a protocol reads an answer from a response is the entry of
the same name in `taro.grounding.answers.ANSWER_PARSERS`.

Left out: ranked predictions, mAP and highlights of `moment-detr`; they are in `taro.metrics.ranked`.
Legend: Q queries, M metrics (mIoU, then R1 at each threshold)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from taro.core.errors import ConfigError
from taro.grounding.moment import Moment, best_iou

__all__ = ["METRICS", "PROTOCOLS", "THRESHOLDS", "Protocol", "merged", "protocol_named", "set_iou"]

THRESHOLDS = (0.3, 0.5, 0.7)
METRICS = ("miou", *(f"r1@{threshold}" for threshold in THRESHOLDS))

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Protocol:
    """How an IoU becomes a score. `strict`: a threshold must be exceeded, not reached; `truth`: which ground-truth
    window counts, or all of them as one; `clip`: ground truth is limited to the video first; `several`: an answer may
    hold several windows, all of which count; `clip_answers`: an answer is limited to the video too."""

    name: str
    strict: bool
    truth: Literal["best", "first", "union"]
    clip: bool
    several: bool = False
    clip_answers: bool = False

    def answer(self, predicted: Moment | None, duration_s: float | None) -> Moment | None:
        """The moment that is scored for an answer."""
        return predicted.clip(duration_s) if self.clip_answers and predicted and duration_s is not None else predicted

    def truths(self, windows: Sequence[Moment], duration_s: float | None) -> tuple[Moment, ...]:
        """The windows that a prediction is compared with."""
        kept = tuple(windows[:1]) if self.truth == "first" else tuple(windows)
        if self.clip and duration_s is not None:
            kept = tuple(w.clip(duration_s) for w in kept)
        return merged(kept) if self.truth == "union" else kept

    def iou(self, predicted: Moment | None, truths: Sequence[Moment], answers: Sequence[Moment] = ()) -> float:
        """IoU of an answer with what `truths` gave; 0 for no answer. `answers`: all its windows, where there are
        several; `predicted` is the first."""
        if predicted is None:
            return 0.0
        if self.several and answers:
            return set_iou(answers, truths)
        return set_iou([predicted], truths) if self.truth == "union" else best_iou(predicted, tuple(truths))

    def constant_ious(self, start_Q: Floats, end_Q: Floats, truths: Sequence[tuple[Moment, ...]]) -> Floats:
        """`iou` of one predicted window a query, over arrays; predictions must not be reversed."""
        query = np.repeat(np.arange(len(truths)), [len(windows) for windows in truths])
        true_start = np.array([w.start_s for windows in truths for w in windows])
        true_end = np.array([w.end_s for windows in truths for w in windows])
        overlap = np.minimum(end_Q[query], true_end) - np.maximum(start_Q[query], true_start)
        overlap = np.where(true_end < true_start, 0.0, np.maximum(overlap, 0.0))
        result_Q = np.zeros(len(truths))
        if self.truth == "union":
            np.add.at(result_Q, query, overlap)
            true_Q = np.zeros(len(truths))
            np.add.at(true_Q, query, true_end - true_start)
            union_Q = end_Q - start_Q + true_Q - result_Q
            return np.where(union_Q > 0, result_Q / np.where(union_Q > 0, union_Q, 1.0), 0.0)
        hull = np.maximum(end_Q[query], true_end) - np.minimum(start_Q[query], true_start)
        np.maximum.at(result_Q, query, np.where(hull > 0, overlap / np.where(hull > 0, hull, 1.0), 0.0))
        return result_Q

    def hits_QM(self, ious_Q: Floats) -> Floats:
        """[Q, M]: the IoU itself, then 1 where it passes each threshold."""
        passes = [ious_Q > t if self.strict else ious_Q >= t for t in THRESHOLDS]
        return np.stack([ious_Q, *(np.asarray(p, dtype=np.float64) for p in passes)], axis=1)


PROTOCOLS = {protocol.name: protocol for protocol in (
    Protocol("taro", strict=False, truth="best", clip=True),
    Protocol("clock", strict=False, truth="best", clip=True, clip_answers=True),
    Protocol("time-r1", strict=True, truth="first", clip=False),
    Protocol("taro-official", strict=False, truth="best", clip=False),
    Protocol("taro-train", strict=False, truth="first", clip=True),
    Protocol("timelens", strict=False, truth="first", clip=False),
    Protocol("union", strict=True, truth="union", clip=False),
    Protocol("moment-detr", strict=False, truth="best", clip=False),
    Protocol("multi-window", strict=False, truth="union", clip=True, several=True))}
"""Protocols by name; the names are those of `taro.grounding.answers.ANSWER_PARSERS`."""


def protocol_named(name: str) -> Protocol:
    """The protocol of that name; ConfigError where there is none."""
    if name not in PROTOCOLS:
        raise ConfigError(f"{name}: no such evaluation protocol; expected one of: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def merged(windows: Sequence[Moment]) -> tuple[Moment, ...]:
    """The same stretches of time as disjoint windows in order; empty and reversed ones hold no time and are left out.

    >>> merged([Moment(5, 8), Moment(1, 3), Moment(2, 6), Moment(9, 9)])
    (Moment(start_s=1, end_s=8),)
    """
    joined: list[Moment] = []
    for window in sorted(w for w in windows if w.duration_s > 0):
        if joined and window.start_s <= joined[-1].end_s:
            joined[-1] = Moment(joined[-1].start_s, max(joined[-1].end_s, window.end_s))
        else:
            joined.append(window)
    return tuple(joined)


def set_iou(answers: Sequence[Moment], windows: Sequence[Moment]) -> float:
    """|P n W| / |P u W| where P and W are all time that any of `answers` and of `windows` holds; 0 where P holds none.
    Of one window each it is the IoU of moment.py.

    >>> set_iou([Moment(0, 2), Moment(6, 8)], [Moment(0, 2), Moment(6, 10)])
    0.6666666666666666
    >>> set_iou([Moment(0, 10)], [Moment(0, 2), Moment(6, 10)])
    0.6
    """
    ours, theirs = merged(answers), merged(windows)
    overlap_s = sum(max(0.0, min(a.end_s, w.end_s) - max(a.start_s, w.start_s)) for a in ours for w in theirs)
    union_s = sum(a.duration_s for a in ours) + sum(w.duration_s for w in theirs) - overlap_s
    return overlap_s / union_s if ours else 0.0
