"""One slice of the plan, from files to shards: decode, segment, caption, align, encode, paths, write, commit.

Clips are taken in batches of fixed composition (consecutive clips of the slice), so a batch of the captioner depends
on the plan alone; CLIP and the vision tower see one clip at a time. Every row of every clip ends in the ledger.

Legend: T sampled frames, D width of CLIP features.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from taro.core.errors import VideoError
from taro.grounding.moment import Moment
from taro.grounding.records import ClipRecord, DenseCaption, QueryRecord
from taro.preprocess.captioners.base import Captioner, Request, answer
from taro.preprocess.captioners.imported import Given
from taro.preprocess.clip import ClipModel, alignment
from taro.preprocess.config import PreprocessConfig
from taro.preprocess.encode import encode_clip
from taro.preprocess.job import Job
from taro.preprocess.journal import Journal
from taro.preprocess.ledger import SkippedRow, SliceLedger, write_ledger
from taro.preprocess.paths import candidate_paths
from taro.preprocess.plan import PlannedClip, PlannedRow
from taro.preprocess.segment import change_segments, uniform_segments
from taro.preprocess.sheets import contact_sheet
from taro.preprocess.variants import clip_variants
from taro.preprocess.video.decode import DecodeJob, Frames
from taro.preprocess.video.pool import DecodePool
from taro.shards.format import sidecar_path
from taro.shards.writer import SliceWriter

__all__ = ["Tools", "decode_jobs", "make_slice", "skip_clip"]


@dataclass
class Tools:
    """The models of a job, loaded. `given`: captions of the methods file and annotations."""

    policy: Any
    captioner: Captioner | None = None
    clip: ClipModel | None = None
    given: Given | None = None

    def lost(self, clip: PlannedClip) -> Counter[str]:
        """What becomes of the captions given for a clip that is skipped."""
        return Counter() if self.given is None else self.given.lost(clip)


@dataclass
class _Draft:
    """A clip on its way to its record."""

    planned: PlannedClip
    frames: Frames
    clip_TD: np.ndarray | None = None
    captions: list[DenseCaption] = field(default_factory=list)
    fates: Counter[str] = field(default_factory=Counter)
    """of the captions that were given"""


def decode_jobs(job: Job, clips: Sequence[PlannedClip]) -> Iterator[DecodeJob]:
    """What the decoding processes are asked for these clips."""
    for clip in clips:
        yield DecodeJob(Path(job.config.videos, clip.path).absolute(), job.config.sampling, clip.clip,
                        job.config.decode.decoder, clip.size, job.factor, may_be_cut=clip.may_be_cut)  # fmt: skip


def make_slice(job: Job, index: int, tools: Tools, pool: DecodePool, tick: Callable[[str], None]) -> SliceLedger:
    """Makes and commits the shards of a slice; `tick` is called once a clip with its file. Returns the ledger."""
    began = time.monotonic()
    clips = job.plan.slice_clips(index)
    journal = Journal(job.state / "journal", index)
    results = pool.map(decode_jobs(job, clips), ahead=2 * pool.workers)
    skipped: list[SkippedRow] = []
    given: Counter[str] = Counter()
    written = captions = count = clipped = uncaptioned = 0
    kinds = _kinds(job)
    with SliceWriter(job.config.out, index, kinds=kinds) as writer:
        for batch in _batches(clips, job.config.caption.batch):
            drafts = []
            for clip, frames in zip(batch, itertools.islice(results, len(batch)), strict=True):
                if isinstance(frames, VideoError):
                    skipped += skip_clip(clip, "decode", frames)
                    given += tools.lost(clip)
                    tick(clip.path)
                else:
                    drafts.append(_Draft(clip, frames))
            _describe(drafts, job.config, tools, journal)
            for draft in drafts:
                record, lost, cut = _record(draft, job.config)
                skipped += lost
                tick(draft.planned.path)
                given += draft.fates if record is not None else tools.lost(draft.planned)
                if record is None:
                    continue
                features = encode_clip(tools.policy, draft.frames, job.config.sampling)
                writer.add_clip(record, _sheet(draft, job.config), {job.encoder.name: features}, _clip_part(job, draft),
                                clip_variants(job, tools.policy, draft.frames, record))  # fmt: skip
                written, captions, count = written + len(record.queries), captions + len(record.captions), count + 1
                clipped += cut
                uncaptioned += not record.captions
        ledger = SliceLedger(plan_sha256=job.plan.sha256, written=written, clips=count, captions=captions,
                             uncaptioned=uncaptioned, clipped_windows=clipped, skipped=skipped, given=dict(given),
                             seconds=time.monotonic() - began)  # fmt: skip
        rows = sum(len(clip.rows) for clip in clips)
        assert rows == written + len(skipped), f"slice {index}: {rows} rows, {written} written, {len(skipped)} skipped"
        writer.finish()
        _withdraw(job.config.out, index, kinds)
        write_ledger(job.state, index, ledger)
        writer.commit()
    return ledger


def _kinds(job: Job) -> tuple[str, ...]:
    return job.kinds if job.variants_kind is None else (*job.kinds, job.variants_kind)


def _withdraw(out: Path, index: int, kinds: Sequence[str]) -> None:
    """Takes back a slice's older shards: they must not count as those of the new ledger, should the job be killed
    between the two; nor older frame variants as those of the new clips, where this job makes none."""
    variants = [path.relative_to(out).as_posix() for path in out.glob("variants/*")]
    for kind in (*kinds, *variants):
        Path(out, sidecar_path(kind, index)).unlink(missing_ok=True)


def skip_clip(clip: PlannedClip, stage: str, error: VideoError) -> list[SkippedRow]:
    """Every row of a clip, skipped for one reason."""
    return [_skipped(clip, row, stage, error.reason, str(error), transient=error.transient) for row in clip.rows]


def _skipped(
    clip: PlannedClip, row: PlannedRow, stage: str, reason: str, detail: str, *, transient: bool = False
) -> SkippedRow:
    return SkippedRow(row_id=row.row_id, line=row.line, video=clip.video, key=clip.key, stage=stage, reason=reason,
                      detail=detail[:2000], transient=transient)  # fmt: skip


def _batches(clips: Sequence[PlannedClip], size: int) -> Iterator[Sequence[PlannedClip]]:
    for start in range(0, len(clips), size):
        yield clips[start : start + size]


def _describe(drafts: list[_Draft], config: PreprocessConfig, tools: Tools, journal: Journal) -> None:
    """Fills in CLIP features and captions, alignment included."""
    for draft in drafts:
        if tools.clip is not None:
            draft.clip_TD = tools.clip.frames(draft.frames.views)
    if tools.captioner is not None:
        asked = [_requests(draft, config) for draft in drafts]
        said = iter(answer([r for requests in asked for r in requests], tools.captioner, config, journal))
        for draft, requests in zip(drafts, asked, strict=True):
            draft.captions = [caption for _ in requests for caption in next(said)]
    elif tools.given is not None:
        for draft in drafts:
            span = Moment(draft.frames.clip.start_s, draft.frames.clip.end_s)
            draft.captions, draft.fates = tools.given.fitted(draft.planned, span)
    for draft in drafts:
        if tools.clip is not None and draft.clip_TD is not None and draft.captions:
            values = alignment(tools.clip.texts([c.text for c in draft.captions]), draft.clip_TD, draft.frames.times_s,
                               [caption.moment for caption in draft.captions])  # fmt: skip
            draft.captions = [c.model_copy(update={"alignment": value})
                              for c, value in zip(draft.captions, values, strict=True)]  # fmt: skip


def _requests(draft: _Draft, config: PreprocessConfig) -> list[Request]:
    segment, duration_s = config.segment, draft.frames.duration_s
    if segment.method == "captioner":
        return [Request(draft.frames, Moment(0.0, duration_s), whole=True)]
    if segment.method == "uniform":
        stretches = uniform_segments(duration_s, window_s=segment.window_s, round_s=segment.round_s)
    else:
        assert draft.clip_TD is not None, "segment.method clip without a CLIP model"
        stretches = change_segments(
            draft.clip_TD, draft.frames.times_s, duration_s, penalty=segment.penalty, round_s=segment.round_s,
            min_s=segment.min_s, max_segments=segment.max_segments, kernel=segment.kernel,
        )  # fmt: skip
    return [Request(draft.frames, stretch, whole=False) for stretch in stretches]


def _record(draft: _Draft, config: PreprocessConfig) -> tuple[ClipRecord | None, list[SkippedRow], int]:
    """(record, rows that have no place in it, windows that were clipped); None where no row is left."""
    queries, lost, clipped = [], [], 0
    frames, planned = draft.frames, draft.planned
    for row in planned.rows:
        windows = [Moment(start_s, end_s) for start_s, end_s in row.windows_s]
        inside = [window.clip(frames.duration_s) for window in windows]
        kept = [window for window in inside if window.duration_s > 0]
        if not kept:
            lost.append(_skipped(planned, row, "windows", "window outside the clip",
                                 f"every window lies outside of the clip's {frames.duration_s:.2f} s"))  # fmt: skip
            continue
        clipped += sum(before != after for before, after in zip(windows, inside, strict=True))
        paths = candidate_paths(draft.captions, kept, row.query, count=config.paths.count, seed=config.paths.seed,
                                clip_key=planned.key, query_id=row.row_id)  # fmt: skip
        try:
            queries.append(QueryRecord(id=row.row_id, text=row.query, split=row.split, difficulty=row.difficulty,
                                       windows_s=[(w.start_s, w.end_s) for w in kept], paths=paths))  # fmt: skip
        except ValidationError as error:
            lost.append(_skipped(planned, row, "record", "does not fit the format", str(error.errors()[0]["msg"])))
    if not queries:
        return None, lost, 0
    record = ClipRecord(key=planned.key, video=frames.facts, clip=frames.clip, times_s=frames.times_s.tolist(),
                        captions=draft.captions, queries=queries)  # fmt: skip
    return record, lost, clipped


def _sheet(draft: _Draft, config: PreprocessConfig) -> bytes | None:
    return contact_sheet(draft.frames.views) if config.thumbnails else None


def _clip_part(job: Job, draft: _Draft) -> dict[str, Any]:
    if draft.clip_TD is None or job.plan.clip_encoder is None:
        return {}
    import torch

    return {job.plan.clip_encoder.name: torch.from_numpy(draft.clip_TD)}
