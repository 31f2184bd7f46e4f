"""`pull`: a set, or some kinds of it, from a place into a folder of this machine.

The manifest is read once, at the beginning; every file that comes is checked against it. A folder that holds the set
already gets what it lacks, and an unchanged set moves nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from taro.core.errors import ShardError
from taro.core.json import canonical_json
from taro.core.places import expand_home, shown_place
from taro.shards.format import MANIFEST, MAX_MANIFEST_BYTES
from taro.shards.manifest import parse_manifest
from taro.shards.places import local_folder
from taro.shards.remote.places import open_bucket
from taro.shards.store import MissingFileError
from taro.shards.store_local import LocalStore
from taro.shards.transfer.outgoing import kept_kinds, with_kinds
from taro.shards.transfer.plan import Transfer
from taro.shards.transfer.receive import receive
from taro.shards.transfer.source import BucketSource, FolderSource, Source, read_small
from taro.shards.transfer.target import OnProgress
from taro.shards.transfer.workers import JOBS

__all__ = ["open_source", "pull"]


def open_source(place: str) -> Source:
    """What a set is pulled from: a folder, or a remote place."""
    folder = local_folder(place)
    if folder is None:
        return BucketSource(open_bucket(place))
    if not folder.is_dir():
        raise ShardError(f"{shown_place(place)}: no such folder; expected a shard set to pull")
    return FolderSource(LocalStore(folder))


def pull(place: str, folder: str | Path, *, without: Sequence[str] = (), jobs: int = JOBS, dry_run: bool = False,
         progress: OnProgress | None = None) -> Transfer:
    """Copies the set at `place` into `folder`, but for the kinds `without`; returns what moved. A run after a kill goes
    on where that ended."""
    source = open_source(place)
    try:
        data = read_small(source, MANIFEST, limit_bytes=MAX_MANIFEST_BYTES)
    except MissingFileError:
        raise ShardError(f"{source.place}: no {MANIFEST} there: not a shard set, or a push that has not finished; push "
                         "it again") from None
    manifest = parse_manifest(data, f"{source.place}/{MANIFEST}")
    if without:
        manifest = with_kinds(manifest, kept_kinds(manifest, without))
        data = canonical_json(manifest) + b"\n"
    return receive(source, expand_home(folder), manifest, data, jobs=jobs, dry_run=dry_run, progress=progress)
