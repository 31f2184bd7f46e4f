"""What is left to do: slices to make, and shards to add to slices that are made.

A slice is made when its ledger is of this plan and the sidecars of all its shards verify. What a run can add to it is
another encoder's features and frame variants. Variants count as made where they have the settings asked for and every
query finds those of its windows; others are made again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from taro.core.errors import ConfigError, ShardError
from taro.core.files import fsync
from taro.grounding.records import ClipRecord
from taro.preprocess.job import Job, Only
from taro.preprocess.ledger import read_ledger
from taro.preprocess.slices import SliceTask, made_records
from taro.preprocess.variants import settings_of
from taro.shards.format import MANIFEST, shard_path, sidecar_path
from taro.shards.reader import open_shards
from taro.shards.store_local import LocalStore
from taro.shards.tar import read_tar
from taro.shards.variants import unpack_variants, wanted_groups
from taro.shards.writer import slice_done

__all__ = ["plan_tasks", "still_needed", "withdraw"]


def plan_tasks(job: Job, only: Only | None, *, partition: tuple[int, int] = (1, 1), retry: bool = False
               ) -> list[SliceTask]:
    """The tasks of a run, by slice: those of its partition that are not made (with `retry`, or in which rows were
    skipped that may pass now), and the made ones that lack what it adds: the features of `job.encoder` (only features),
    its variants (where the job makes some). With `only`, nothing but additions. Raises ConfigError and ShardError where
    `only` needs a set that is not there."""
    wanted = _wanted(job, only)
    kinds = job.kinds if job.variants_kind is None else (*job.kinds, job.variants_kind)
    part, parts = partition
    tasks = []
    for index in range(part - 1, len(job.plan.slices), parts):
        if only is None and _needed(job, index, retry=retry):
            tasks.append(SliceTask(index, kinds, retry))
        elif missing := _missing(job, index, wanted):
            tasks.append(SliceTask(index, tuple(missing)))
    return tasks


def still_needed(job: Job, task: SliceTask) -> bool:
    """Whether a task is left to do: another job may have done it since it was planned. Ask under the slice's lock."""
    return _needed(job, task.index, retry=task.retry) if task.makes else bool(_missing(job, task.index, task.kinds))


def withdraw(job: Job, tasks: Sequence[SliceTask]) -> None:
    """Takes back what is about to be made again, so that a killed run leaves no mixture that looks whole: the manifest
    first (what it says of encoders is kept aside), then the sidecars of stale variants."""
    stale = [path for task in tasks for kind in task.kinds if not task.makes and kind == job.variants_kind
             and (path := job.config.out / sidecar_path(kind, task.index)).is_file()]
    if stale or any(task.makes for task in tasks):
        with suppress(FileNotFoundError):
            (job.config.out / MANIFEST).replace(job.state / MANIFEST)
            fsync(job.state)
            fsync(job.config.out)  # a manifest that a power cut brings back would list what is made anew
    for path in stale:
        path.unlink(missing_ok=True)


def _needed(job: Job, index: int, *, retry: bool) -> bool:
    """Whether a slice is not made, or with `retry` holds rows that may pass now."""
    ledger = read_ledger(job.state, index)
    if ledger is None or ledger.plan_sha256 != job.plan_sha256 or not slice_done(job.config.out, index, job.kinds):
        return True
    return retry and any(row.transient for row in ledger.skipped)


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
    records = made_records(job, index)
    return [kind for kind in kinds if not _current(job, index, kind, records)]


def _current(job: Job, index: int, kind: str, records: dict[str, ClipRecord]) -> bool:
    """Whether a shard is whole and of the clips that the slice has."""
    if not slice_done(job.config.out, index, [kind]):
        return False
    store = LocalStore(job.config.out)
    name, keys = shard_path(kind, index), []
    try:
        with store.open(name) as file:
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
