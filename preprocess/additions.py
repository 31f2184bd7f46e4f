"""`--only features`: another encoder's features beside those that a complete set holds; no other file is touched.

The clips are those of the paths shards. Each is decoded again and must show the very frames that the set was made
from (their digest is in the record); where one does not, or cannot be decoded any more, its slice is not written and
the job fails with the list, since a set must hold every clip for every encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from preprocess.encode import encode_clip
from preprocess.job import Job
from preprocess.ledger import slice_lock
from preprocess.models import cpu_threads, load_tower_policy, model_folder
from preprocess.plan import PlannedClip
from preprocess.pool import DecodePool
from preprocess.report import Progress
from preprocess.slices import decode_jobs
from shards.reader import ShardSet, open_shards
from shards.writer import SliceWriter, slice_done
from taro.errors import TaroError, VideoError

if TYPE_CHECKING:
    from taro.mllm import Policy

__all__ = ["add_features"]


def add_features(job: Job, progress: Callable[[Progress], None], partition: tuple[int, int]) -> int:
    """Makes the missing features shards of `job.encoder`; their number. Raises TaroError where clips are not as the
    set has them."""
    part, parts = partition
    kind = f"features/{job.encoder.name}"
    known = open_shards(job.config.out)
    mine = range(part - 1, len(job.plan.slices), parts)
    todo = [index for index in mine if not slice_done(job.config.out, index, [kind])]
    total = sum(len(job.plan.slice_clips(index)) for index in todo)
    problems: list[str] = []
    made = finished = 0
    with cpu_threads(job.config.threads), DecodePool(
        job.config.workers, deadline_s=job.config.decode.deadline_s
    ) as pool:
        policy = load_tower_policy(model_folder(job.config.policy), job.device, job.dtype) if todo else None
        for index in todo:
            with slice_lock(job.state, index) as held:
                if not held or policy is None:
                    continue
                found = _add_slice(job, index, known, policy, pool)
                problems += found
                made += not found
            finished += len(job.plan.slice_clips(index))
            progress(Progress("clips", finished, total))
    if problems:
        raise TaroError(f"{job.config.out}: no features of {job.encoder.name} for {len(problems)} clips, so their "
                        f"slices are not written: {'; '.join(problems[:5])}; restore these videos and run again")
    return made


def _add_slice(job: Job, index: int, known: ShardSet, policy: Policy, pool: DecodePool) -> list[str]:
    keys = set(known.keys)
    clips: list[PlannedClip] = [clip for clip in job.plan.slice_clips(index) if clip.key in keys]
    results = pool.map(decode_jobs(job, clips), ahead=2 * pool.workers)
    problems = []
    with SliceWriter(job.config.out, index, kinds=[f"features/{job.encoder.name}"]) as writer:
        for clip, frames in zip(clips, results, strict=True):
            if isinstance(frames, VideoError):
                problems.append(str(frames))
                continue
            record = known.clip(clip.key)
            if record.video.frames_sha256 != frames.facts.frames_sha256:
                problems.append(f"{clip.path}: its frames are not those that the set was made from")
                continue
            if not problems:
                features = encode_clip(policy, frames, job.config.sampling)
                writer.add_clip(record, None, {job.encoder.name: features}, {})
        if not problems:
            writer.commit()
    return problems
