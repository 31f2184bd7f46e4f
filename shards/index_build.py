"""Making the index of a set from its records: when a set is made, or later, in place.

Every KEY.json is read once, a shard at a time. The manifest names the index by its digest and is written last, so a
reader sees the set with its index or without, never with half of one."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from taro.core.counting import OnProgress, counted
from taro.core.errors import ShardError
from taro.core.files import explain_disk_errors, write_atomically
from taro.core.places import shown_place
from taro.shards.format import (
    FORMAT_VERSION,
    INDEX,
    MANIFEST,
    MAX_INDEX_BYTES,
    MAX_INDEX_ROWS,
    IndexEntry,
    Manifest,
    ShardEntry,
    check_version,
    shard_path,
)
from taro.shards.index_file import encode_index, index_rows, rows_table
from taro.shards.manifest import read_entries, read_manifest, read_sidecar, write_manifest
from taro.shards.members import read_clips
from taro.shards.places import local_folder
from taro.shards.store import Store
from taro.shards.store_local import LocalStore

__all__ = ["add_index", "write_index"]

log = logging.getLogger(__name__)
AGAIN = "Make room or fix the disk, then run the same command again: the set is as it was"


def write_index(root: str | Path) -> IndexEntry | None:
    """Writes queries.parquet from the paths shards in a folder; what its manifest says of the file, None, and nothing
    written, where the set is too large for an index."""
    data, rows = _made(LocalStore(Path(root)), read_entries(root, kind="paths"), None)
    entry = _entry(root, data, rows)
    if entry is not None:
        _replace(Path(root), data)
    return entry


def add_index(place: str, *, progress: OnProgress | None = None) -> tuple[Manifest, bool]:
    """Adds an index to the set in a folder, made of its records; the manifest, and whether anything was written. A set
    that names the right one stays as it is. Raises ShardError where the place is no folder, or the set is damaged."""
    folder = local_folder(place)
    if folder is None:
        raise ShardError(f"{shown_place(place)}: an index is added to a set in a local folder; fetch the set, add it "
                         "there, and send the set back")
    store = LocalStore(folder)
    manifest = read_manifest(store)
    if check_version(manifest.format_version, place) is not None:
        raise ShardError(f"{store.describe(MANIFEST)}: format {manifest.format_version} is newer than {FORMAT_VERSION}"
                         "; writing it anew would lose what this taro does not know; use the taro that wrote it")
    data, rows = _made(store, [entry for entry in manifest.shards if entry.kind == "paths"], progress)
    entry = _entry(place, data, rows)
    if entry is None:
        raise ShardError(f"{place}: its index would have {rows:,} rows and {len(data):,} bytes, at most "
                         f"{MAX_INDEX_ROWS:,} and {MAX_INDEX_BYTES:,} are read; split the set (`taro shards split`)")
    if entry == manifest.index and _holds(store, data):
        return manifest, False
    with explain_disk_errors(folder, lambda: AGAIN):
        _replace(folder, data)
        manifest = manifest.model_copy(update={"index": entry, "format_version": FORMAT_VERSION})
        write_manifest(folder, manifest)
    return manifest, True


def _replace(root: Path, data: bytes) -> None:
    """Puts the index into a folder; a manifest that names another is written without it before."""
    store = LocalStore(root)
    if _holds(store, data):
        return
    if (root / MANIFEST).is_file() and (manifest := read_manifest(store)).index is not None:
        write_manifest(root, manifest.model_copy(update={"index": None}))
    write_atomically(root / INDEX, data)


def _made(store: Store, entries: Sequence[ShardEntry], progress: OnProgress | None) -> tuple[bytes, int]:
    """The bytes of the index of some paths shards, and its rows."""
    tables = []
    for entry in counted(entries, progress):
        records = read_sidecar(store, entry).records
        clips = read_clips(store, shard_path("paths", entry.index), records)
        tables.append(rows_table(row for clip in clips for row in index_rows(clip, entry.index)))
    return encode_index(tables), sum(map(len, tables))


def _entry(place: str | Path, data: bytes, rows: int) -> IndexEntry | None:
    if rows > MAX_INDEX_ROWS or len(data) > MAX_INDEX_BYTES:
        log.warning("%s: %s queries are too many for an index; the set is written without: opening it reads every "
                    "sidecar", place, f"{rows:,}")
        return None
    return IndexEntry(bytes=len(data), rows=rows, sha256=hashlib.sha256(data).hexdigest())


def _holds(store: Store, data: bytes) -> bool:
    try:
        return store.read(INDEX, limit_bytes=MAX_INDEX_BYTES) == data
    except ShardError:
        return False
