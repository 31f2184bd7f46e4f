"""One slice of the plan, from files to shards: decode, describe, encode, write, commit.

One loop does two kinds of work. A slice is made: every shard of it, and a clip that fails is skipped, its rows in the
ledger with the reason. Or shards are added to a slice that is made (another encoder's features, frame variants): its
clips are those of the paths shard and must show the very frames that the set was made from, whose digest is in the
record. Where one does not, nothing is added, since a set must hold every clip for every encoder.

Clips are taken in batches of fixed composition (consecutive clips of the slice), so a batch of the captioner depends
on the plan alone; CLIP and the vision tower see one clip at a time."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from taro.core.errors import VideoError
from taro.core.files import fsync
from taro.grounding.records import ClipRecord
from taro.preprocess.drafts import Describer, Draft, record_of
from taro.preprocess.encode import encode_clip
from taro.preprocess.job import Job
from taro.preprocess.ledger import SkippedRow, SliceLedger, write_ledger
from taro.preprocess.plan import PlannedClip
from taro.preprocess.sheets import contact_sheet
from taro.preprocess.variants import encode_variants, settings_of
from taro.preprocess.video.decode import DecodeJob
from taro.preprocess.video.pool import DecodePool
from taro.shards.format import shard_path, sidecar_path
from taro.shards.reader import parse_clip
from taro.shards.store_local import LocalStore
from taro.shards.tar import read_tar
from taro.shards.writer import SliceWriter

if TYPE_CHECKING:
    from taro.models.encoder import Encoder

__all__ = ["Models", "SliceTask", "decode_jobs", "made_records", "run_slice"]


@dataclass(frozen=True)
class SliceTask:
    """Work on one slice: the kinds of shards to write; `retry`: also where only rows were skipped that may pass now."""

    index: int
    kinds: tuple[str, ...]
    retry: bool = False

    @property
    def makes(self) -> bool:
        """Whether the slice is made (else the kinds are added to it)."""
        return "paths" in self.kinds


@dataclass
class Models:
    """What a job has loaded. `describer`: None where slices are only added to."""

    encoder: Encoder
    describer: Describer | None = None


def run_slice(job: Job, task: SliceTask, models: Models, pool: DecodePool, tick: Callable[[str], None]) -> list[str]:
    """Writes and commits the shards of a task; `tick` is called once a clip with its file. Returns what is wrong with
    clips that a made slice holds, in which case nothing is written."""
    work = _NewSlice(job, task, models.describer) if task.makes else _MadeSlice(job, task)
    results = pool.map(decode_jobs(job, work.clips), ahead=2 * pool.workers)
    with SliceWriter(job.config.out, task.index, kinds=task.kinds) as writer:
        for start in range(0, len(work.clips), job.config.caption.batch):
            batch, drafts = work.clips[start : start + job.config.caption.batch], []
            for clip, frames in zip(batch, itertools.islice(results, len(batch)), strict=True):
                if isinstance(frames, VideoError):
                    work.fail(clip, frames)
                    tick(clip.path)
                else:
                    drafts.append(Draft(clip, frames))
            for draft, record in zip(drafts, work.records(drafts), strict=True):
                tick(draft.planned.path)
                if record is not None:
                    _write(writer, job, task, models.encoder, draft, record)
        work.commit(writer)
    return work.problems


def decode_jobs(job: Job, clips: Sequence[PlannedClip]) -> Iterator[DecodeJob]:
    """What the decoding processes are asked for these clips."""
    for clip in clips:
        yield DecodeJob(Path(job.config.videos, clip.path).absolute(), job.config.sampling, clip.clip,
                        job.config.decode.decoder, clip.size, job.factor, may_be_cut=clip.may_be_cut)


def made_records(job: Job, index: int) -> dict[str, ClipRecord]:
    """The clips of a slice that is made, by key, ascending."""
    store, name = LocalStore(job.config.out), shard_path("paths", index)
    with store.open(name) as file:
        return {member.key: parse_clip(data, store.describe(name))
                for member, data in read_tar(file, store.describe(name)) if member.ext == "json"}


class _NewSlice:
    """A slice that is made, and its ledger: every row of every clip ends in it."""

    def __init__(self, job: Job, task: SliceTask, describer: Describer | None) -> None:
        assert describer is not None, "a slice is to be made by what was loaded to add to slices"
        self.clips, self.problems = job.plan.slice_clips(task.index), list[str]()
        self._job, self._task, self._describer = job, task, describer
        self._began, self._count = time.monotonic(), Counter[str]()
        self._skipped, self._given, self._off = list[SkippedRow](), Counter[str](), dict[str, float]()

    def fail(self, clip: PlannedClip, error: VideoError) -> None:
        """A clip that cannot be decoded: its rows are skipped."""
        self._skip(clip, [clip.skipped(row, "decode", error.reason, str(error), transient=error.transient)
                          for row in clip.rows])

    def records(self, drafts: Sequence[Draft]) -> list[ClipRecord | None]:
        """What is written of each clip of a batch, None where no row of it is left."""
        self._describer.describe(drafts, self._task.index)
        return [self._record(draft) for draft in drafts]

    def commit(self, writer: SliceWriter) -> None:
        """Makes the shards real, the ledger before their sidecars."""
        count, job, index = self._count, self._job, self._task.index
        ledger = SliceLedger(plan_sha256=job.plan_sha256, written=count["written"], clips=count["clips"],
                             captions=count["captions"], uncaptioned=count["uncaptioned"],
                             clipped_windows=count["clipped"], skipped=self._skipped, time_error_s=self._off,
                             given=dict(self._given),
                             seconds=time.monotonic() - self._began)
        rows = sum(len(clip.rows) for clip in self.clips)
        assert rows == ledger.written + len(ledger.skipped), f"slice {index}: {rows} rows, {ledger}"
        writer.finish()
        _withdraw(job.config.out, index, self._task.kinds)
        write_ledger(job.state, index, ledger)
        writer.commit()

    def _record(self, draft: Draft) -> ClipRecord | None:
        clip, failure = draft.planned, draft.failure
        if failure is not None:
            self._skip(clip, [clip.skipped(row, "caption", failure.reason, str(failure), transient=failure.transient)
                              for row in clip.rows])
            return None
        record, lost, clipped = record_of(draft, self._job.config.paths)
        if record is None:
            self._skip(clip, lost)
            return None
        self._skipped += lost
        self._given += draft.given
        self._off[clip.key] = round(draft.frames.time_error_s, 3)
        self._count.update(written=len(record.queries), clips=1, captions=len(record.captions), clipped=clipped,
                           uncaptioned=not record.captions)
        return record

    def _skip(self, clip: PlannedClip, rows: Sequence[SkippedRow]) -> None:
        self._skipped += rows
        self._given += self._describer.lost(clip)


class _MadeSlice:
    """A slice to which shards are added: its records stay as they are, and one clip that fails stops it."""

    def __init__(self, job: Job, task: SliceTask) -> None:
        self._records = made_records(job, task.index)
        self.clips = [clip for clip in job.plan.slice_clips(task.index) if clip.key in self._records]
        self.problems: list[str] = []

    def fail(self, clip: PlannedClip, error: VideoError) -> None:
        """A clip that cannot be decoded any more."""
        self.problems.append(str(error))

    def records(self, drafts: Sequence[Draft]) -> list[ClipRecord | None]:
        """The record of each clip of a batch, None where nothing is to be written of it."""
        for draft in drafts:
            if self._records[draft.planned.key].video.frames_sha256 != draft.frames.facts.frames_sha256:
                self.problems.append(f"{draft.planned.path}: its frames are not those that the set was made from")
        return [None if self.problems else self._records[draft.planned.key] for draft in drafts]

    def commit(self, writer: SliceWriter) -> None:
        """Makes the shards real, where every clip was as the set has it."""
        if not self.problems:
            writer.commit()


def _write(writer: SliceWriter, job: Job, task: SliceTask, encoder: Encoder, draft: Draft, record: ClipRecord) -> None:
    """Encodes a clip for the kinds of a task and adds it to their shards."""
    import torch

    name, frames, sampling = job.encoder.name, draft.frames, job.config.sampling
    features = {name: encode_clip(encoder, frames, sampling)} if f"features/{name}" in task.kinds else {}
    clip = {} if draft.clip_TD is None or job.plan.clip_encoder is None else {
        job.plan.clip_encoder.name: torch.from_numpy(draft.clip_TD)}
    variants = {name: encode_variants(encoder, frames, record, sampling, settings_of(job.config.variants),
                                      factor=job.factor)} if job.variants_kind in task.kinds else {}
    sheet = contact_sheet(frames.views) if task.makes and job.config.thumbnails else None
    writer.add_clip(record, sheet, features, clip, variants)


def _withdraw(out: Path, index: int, kinds: Sequence[str]) -> None:
    """Takes back a slice's older shards: they must not count as those of the new ledger, should the job be killed
    between the two; nor older frame variants as those of the new clips, where this job makes none."""
    variants = [path.relative_to(out).as_posix() for path in out.glob("variants/*")]
    for path in (Path(out, sidecar_path(kind, index)) for kind in (*kinds, *variants)):
        if path.exists():
            path.unlink()
            fsync(path.parent)  # a power cut must not bring it back beside the new ledger
