"""What is added to slices that are made: another encoder's features, frame variants; no other file is touched.

The clips are those of the paths shards. Each is decoded again and must show the very frames that the set was made
from (their digest is in the record); where one does not, or cannot be decoded any more, its slice is not written and
the job fails with the list, since a set must hold every clip for every encoder. The set is whole all the same: the
manifest then lists what is complete.

Variants count as made where they have the settings asked for and every query finds those of its windows; others are
made again. Their sidecars go first, all that this run makes, so that a killed run leaves no mixture that looks whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from taro.core.errors import ConfigError, ShardError, TaroError, VideoError
from taro.core.json import parse_model
from taro.grounding.records import ClipRecord
from taro.preprocess.encode import encode_clip
from taro.preprocess.job import Job, Only
from taro.preprocess.ledger import slice_lock
from taro.preprocess.models import cpu_threads, load_tower_policy, model_folder
from taro.preprocess.report import Progress
from taro.preprocess.slices import decode_jobs
from taro.preprocess.variants import clip_variants, settings_of
from taro.preprocess.video.pool import DecodePool
from taro.shards.format import MANIFEST, MAX_JSON_BYTES, shard_path, sidecar_path
from taro.shards.reader import open_shards
from taro.shards.store import open_file
from taro.shards.store_local import LocalStore
from taro.shards.tar import read_tar
from taro.shards.variants import unpack_variants, wanted_groups
from taro.shards.writer import SliceWriter, slice_done

if TYPE_CHECKING:
    from taro.models.policy import Policy

__all__ = ["Added", "add_missing", "to_add"]


@dataclass
class Added:
    """What was added: slices, and why some could not be."""

    slices: int = 0
    problems: list[str] = field(default_factory=list)

    def check(self, job: Job) -> None:
        """Raises TaroError where clips were not as the set has them."""
        if self.problems:
            raise TaroError(
                f"{job.config.out}: nothing of {job.encoder.name} added for {len(self.problems)} clips, so their "
                f"slices are not written: {'; '.join(self.problems[:5])}; restore these videos and run again")


def add_missing(job: Job, only: Only | None, progress: Callable[[Progress], None], partition: tuple[int, int]) -> Added:
    """Makes what this run adds and is not there: the features of `job.encoder` (only features), its variants (where
    the job makes some). Without `only`, of slices that are made; with it, of a whole set."""
    wanted = _wanted(job, only)
    added = Added()
    todo = {index: kinds for index in range(partition[0] - 1, len(job.plan.slices), partition[1])
            if (kinds := _missing(job, index, wanted))}
    if not todo:
        return added
    _withdraw(job, todo)
    total = sum(len(job.plan.slice_clips(index)) for index in todo)
    finished = 0
    with cpu_threads(job.config.threads), DecodePool(
        job.config.workers, deadline_s=job.config.decode.deadline_s
    ) as pool:
        policy = load_tower_policy(model_folder(job.config.policy), job.device, job.dtype)
        for index, kinds in todo.items():
            with slice_lock(job.state, index) as held:
                if held and _missing(job, index, kinds):
                    found = _add_slice(job, index, kinds, policy, pool)
                    added.problems += found
                    added.slices += not found
            finished += len(job.plan.slice_clips(index))
            progress(Progress("clips", finished, total))
    return added


def to_add(job: Job, only: Only | None) -> list[int]:
    """Slices that are made and to which a run would add something."""
    wanted = _wanted(job, only)
    return [index for index in range(len(job.plan.slices)) if _missing(job, index, wanted)]


def _wanted(job: Job, only: Only | None) -> list[str]:
    """Kinds that this run adds. Raises where `only` needs a set that is not there."""
    features = f"features/{job.encoder.name}"
    if only == "features":
        open_shards(job.config.out)
    if only == "variants" and not all((job.config.out / sidecar_path(kind, index)).is_file()
                                      for kind in ("paths", features) for index in range(len(job.plan.slices))):
        raise ConfigError(f"{job.config.out}: --only variants adds to a whole set with features of {job.encoder.name}; "
                          "finish it first (the same command without --only, or with --only features)")
    return [*([features] if only == "features" else []), *([job.variants_kind] if job.variants_kind else [])]


def _missing(job: Job, index: int, kinds: Sequence[str]) -> list[str]:
    """Those of `kinds` that a slice which is made lacks, or has for other clips, windows or settings."""
    if not kinds or not (job.config.out / sidecar_path("paths", index)).is_file():
        return []
    records = _records(job, index)
    return [kind for kind in kinds if not _current(job, index, kind, records)]


def _current(job: Job, index: int, kind: str, records: dict[str, ClipRecord]) -> bool:
    """Whether a shard is whole and of the clips that the slice has."""
    if not slice_done(job.config.out, index, [kind]):
        return False
    store = LocalStore(job.config.out)
    name, keys = shard_path(kind, index), []
    try:
        with open_file(store, name) as file:
            for member, data in read_tar(file, store.describe(name)):
                keys.append(member.key)
                if kind == job.variants_kind and member.key in records:
                    found = unpack_variants(data, store.describe(name))
                    if (found.settings != settings_of(job.config.variants)
                            or set(found.boundaries) != set(wanted_groups(records[member.key]))):
                        return False
    except ShardError:
        return False
    return keys == [key for key in records if kind != job.variants_kind or wanted_groups(records[key])]


def _records(job: Job, index: int) -> dict[str, ClipRecord]:
    """The clips of a slice that is made, by key, ascending."""
    store, name = LocalStore(job.config.out), shard_path("paths", index)
    with open_file(store, name) as file:
        return {member.key: parse_model(ClipRecord, data, store.describe(name), limit_bytes=MAX_JSON_BYTES)
                for member, data in read_tar(file, store.describe(name)) if member.ext == "json"}


def _withdraw(job: Job, todo: dict[int, list[str]]) -> None:
    """Takes back variants that are about to be made again, the manifest first (its encoders are kept aside)."""
    stale = [path for index, kinds in todo.items() for kind in kinds if kind == job.variants_kind
             and (path := job.config.out / sidecar_path(kind, index)).is_file()]
    if not stale:
        return
    with suppress(FileNotFoundError):
        (job.config.out / MANIFEST).replace(job.state / MANIFEST)
    for path in stale:
        path.unlink(missing_ok=True)


def _add_slice(job: Job, index: int, kinds: Sequence[str], policy: Policy, pool: DecodePool) -> list[str]:
    """Makes shards of one slice; what is wrong with its clips, in which case nothing is written."""
    records = _records(job, index)
    clips = [clip for clip in job.plan.slice_clips(index) if clip.key in records]
    results = pool.map(decode_jobs(job, clips), ahead=2 * pool.workers)
    problems = []
    with SliceWriter(job.config.out, index, kinds=kinds) as writer:
        for clip, frames in zip(clips, results, strict=True):
            if isinstance(frames, VideoError):
                problems.append(str(frames))
                continue
            record = records[clip.key]
            if record.video.frames_sha256 != frames.facts.frames_sha256:
                problems.append(f"{clip.path}: its frames are not those that the set was made from")
                continue
            if not problems:
                features = {job.encoder.name: encode_clip(policy, frames, job.config.sampling)
                            } if f"features/{job.encoder.name}" in kinds else {}
                variants = clip_variants(job, policy, frames, record) if job.variants_kind in kinds else {}
                writer.add_clip(record, None, features, {}, variants)
        if not problems:
            writer.commit()
    return problems
