"""Clips on their way to their records: CLIP features, segments, captions with their alignment, then windows and paths.

Captions are asked of the job's captioner, a batch of clips at once, or taken from what somebody else wrote; CLIP sees
one clip at a time.

Legend: T sampled frames, D width of CLIP features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import ValidationError

from taro.grounding.moment import Moment
from taro.grounding.records import ClipRecord, DenseCaption, QueryRecord
from taro.preprocess.captioners.base import Failure, Request
from taro.preprocess.captioners.cache import CachedCaptioner
from taro.preprocess.captioners.imported import Given
from taro.preprocess.clip import ClipModel, alignment
from taro.preprocess.config import PathsConfig, SegmentConfig
from taro.preprocess.ledger import SkippedRow
from taro.preprocess.paths import candidate_paths
from taro.preprocess.plan import PlannedClip
from taro.preprocess.segment import change_segments, uniform_segments
from taro.preprocess.video.decode import Frames

__all__ = ["Describer", "Draft", "record_of"]


@dataclass
class Draft:
    """One clip. given: how the captions ended that somebody wrote for it; failure: why it has no captions, where the
    captioner failed."""

    planned: PlannedClip
    frames: Frames
    clip_TD: np.ndarray | None = None
    captions: list[DenseCaption] = field(default_factory=list)
    given: Counter[str] = field(default_factory=Counter)
    failure: Failure | None = None


@dataclass
class Describer:
    """Whatever a job has to describe clips with: a CLIP model; a captioner, or captions that were given, or neither."""

    segment: SegmentConfig
    clip: ClipModel | None = None
    captioner: CachedCaptioner | None = None
    given: Given | None = None

    def describe(self, drafts: Sequence[Draft], index: int) -> None:
        """Fills in CLIP features and captions, alignment included, of clips of slice `index`."""
        for draft in drafts:
            if self.clip is not None:
                draft.clip_TD = self.clip.frames(draft.frames.views)
        if self.captioner is not None:
            asked = [self._requests(draft) for draft in drafts]
            answers = iter(self.captioner.captions([request for requests in asked for request in requests], index))
            for draft, requests in zip(drafts, asked, strict=True):
                _take(draft, [next(answers) for _ in requests])
        elif self.given is not None:
            for draft in drafts:
                span = Moment(draft.frames.clip.start_s, draft.frames.clip.end_s)
                draft.captions, draft.given = self.given.fitted(draft.planned, span)
        for draft in drafts:
            if self.clip is not None and draft.clip_TD is not None and draft.captions:
                values = alignment(self.clip.texts([c.text for c in draft.captions]), draft.clip_TD,
                                   draft.frames.times_s, [caption.moment for caption in draft.captions])
                draft.captions = [c.model_copy(update={"alignment": value})
                                  for c, value in zip(draft.captions, values, strict=True)]

    def lost(self, clip: PlannedClip) -> Counter[str]:
        """What becomes of the captions given for a clip that is skipped."""
        return Counter() if self.given is None else self.given.lost(clip)

    def _requests(self, draft: Draft) -> list[Request]:
        segment, duration_s = self.segment, draft.frames.duration_s
        if segment.method == "captioner":
            return [Request(draft.frames, Moment(0.0, duration_s), whole=True)]
        if segment.method == "uniform":
            stretches = uniform_segments(duration_s, window_s=segment.window_s, round_s=segment.round_s)
        else:
            assert draft.clip_TD is not None, "segment.method clip without a CLIP model"
            stretches = change_segments(draft.clip_TD, draft.frames.times_s, duration_s, segment)
        return [Request(draft.frames, stretch, whole=False) for stretch in stretches]


def _take(draft: Draft, answers: Sequence[list[DenseCaption] | Failure]) -> None:
    """One failure and the clip has no captions; it may pass where all of them may."""
    failures = [answer for answer in answers if isinstance(answer, Failure)]
    draft.failure = min(failures, key=lambda failure: failure.transient, default=None)
    draft.captions = [caption for answer in answers if not isinstance(answer, Failure) for caption in answer]


def record_of(draft: Draft, config: PathsConfig) -> tuple[ClipRecord | None, list[SkippedRow], int]:
    """(record, rows that have no place in it, windows that were clipped); None where no row is left."""
    queries, lost, clipped = [], [], 0
    frames, planned = draft.frames, draft.planned
    for row in planned.rows:
        windows = [Moment(start_s, end_s) for start_s, end_s in row.windows_s]
        inside = [window.clip(frames.duration_s) for window in windows]
        kept = [window for window in inside if window.duration_s > 0]
        if not kept:
            lost.append(planned.skipped(row, "windows", "window outside the clip",
                                        f"every window lies outside of the clip's {frames.duration_s:.2f} s",
                                        duration_s=frames.duration_s))
            continue
        annotated, pairs = row.unclipped_s or row.windows_s, [(w.start_s, w.end_s) for w in kept]
        clipped += sum(before != after for before, after in zip(windows, inside, strict=True))
        paths = candidate_paths(draft.captions, kept, row.query, count=config.count, seed=config.seed,
                                clip_key=planned.key, query_id=row.row_id)
        try:
            queries.append(QueryRecord(id=row.row_id, text=row.query, split=row.split, difficulty=row.difficulty,
                                       windows_s=pairs, paths=paths,
                                       unclipped_s=annotated if annotated != pairs else None))
        except ValidationError as error:
            lost.append(planned.skipped(row, "record", "does not fit the format", str(error.errors()[0]["msg"])))
    if not queries:
        return None, lost, 0
    record = ClipRecord(key=planned.key, video=frames.facts, clip=frames.clip, times_s=frames.times_s.tolist(),
                        captions=draft.captions, queries=queries)
    return record, lost, clipped
