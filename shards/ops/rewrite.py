"""A new set out of old ones: records copied one by one, the folder made aside and renamed, the ledger kept whole.

The one writer behind `filter`, `split` and `merge`. Tensors and contact sheets are copied as bytes and checked against
their digests; no more than one member is in memory. Nothing is seen under the final name before all of it is on the
disk, and a folder that a killed job left is cleared by the next (the lock on it says that nobody writes it). A job that
finds under the final name what it would write (it was killed after its last rename) has nothing left to do. Equal
sources give equal bytes: records go by ascending key, and slices are cut by bytes alone.

Every row stays accounted for: a query that a derived set leaves out is a row of its skipped.parquet with stage
"filter" (line 0, as the row's line is not in a set), so inputs = queries + skipped holds with the source's inputs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from taro.core.counting import OnProgress, counted
from taro.core.errors import ShardError
from taro.core.files import check_local, explain_disk_errors, fsync, locked, make_folders
from taro.core.json import canonical_json
from taro.core.version import __version__
from taro.grounding.records import ClipRecord, QueryRecord
from taro.shards.format import MANIFEST, MAX_MANIFEST_BYTES, MAX_RECORDS, Manifest
from taro.shards.index_build import write_index
from taro.shards.index_file import IndexRow, index_rows
from taro.shards.manifest import (
    build_manifest,
    read_skipped,
    skipped_table,
    write_manifest,
    write_skipped,
)
from taro.shards.places import local_folder
from taro.shards.reader import ShardSet, open_shards
from taro.shards.skipped import Row, is_miss, skipped_rows
from taro.shards.writer import SliceWriter

__all__ = ["SLICE_BYTES", "Derived", "Part", "Piece", "Writer", "check_derived", "derive", "derived_steps",
           "source_facts", "write_derived", "write_part"]

SLICE_BYTES = 1_000_000_000
"""a new slice begins where the tensors and JSON of the last would grow beyond this"""

AGAIN = "Make room or fix the disk, then run the same command again: the sets that it reads are as they were"



@dataclass(frozen=True, slots=True)
class Piece:
    """A clip of a new set: its JSON, and the set that the rest of the record is copied from."""

    record: ClipRecord
    source: ShardSet


@dataclass(frozen=True, slots=True)
class Part:
    """Part of a set. keeps: whether a query, given its clip's key, is in it; keeps_missed: whether a miss is, a query
    whose clip could not be made; keeps_empty: whether a clip that never had a query is; step: what the manifest says of
    how it was chosen; detail: the same in skipped rows."""

    keeps: Callable[[str, QueryRecord], bool]
    keeps_missed: Callable[[Row], bool]
    keeps_empty: Callable[[str], bool]
    step: Mapping[str, Any]
    detail: str


@dataclass(frozen=True, slots=True)
class Derived:
    """What a new set holds; inputs = queries + skipped."""

    root: Path
    clips: int
    queries: int
    skipped: int

    @property
    def inputs(self) -> int:
        """Rows that the set accounts for."""
        return self.queries + self.skipped


T = TypeVar("T")
Writer = Callable[..., Derived]
"""`write_derived`, or `check_derived`, which takes the same"""


class _OtherError(Exception):
    """What stands under the final name is not what would be written."""


def derive(out: str | Path, sources: Sequence[ShardSet], write: Callable[[Path, Writer], T]) -> T:
    """Calls `write` with an empty folder and `write_derived`; the folder becomes `out` when it returns. Where `out`
    holds all of that already, nothing is written."""
    check_local(Path(out))
    final = Path(out).resolve()
    for source in sources:
        folder = local_folder(source.place)
        if folder is not None and final.is_relative_to(folder.resolve()):
            raise ShardError(f"{final}: inside the set {source.place}; name a folder outside of it")
    aside = final.with_name(f".{final.name}.making")
    with explain_disk_errors(Path(out), lambda: AGAIN, aside=aside):
        if final.exists() and (not final.is_dir() or any(final.iterdir())):
            try:
                made = write(final, check_derived)
            except (_OtherError, ShardError):
                raise ShardError(f"{final}: exists already and is not an empty folder; remove it or name "
                                 "another") from None
            fsync(final.parent)
            return made
        make_folders(final.parent)
        with _new_folder(final, aside):
            return write(aside, write_derived)


@contextlib.contextmanager
def _new_folder(final: Path, aside: Path) -> Iterator[None]:
    """Makes `aside`, which becomes `final` where the block ends well, and is removed where it does not."""
    try:
        aside.mkdir(exist_ok=True)
        handle = os.open(aside, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (FileExistsError, NotADirectoryError) as error:  # a file or a link of that name: not ours
        raise ShardError(f"{aside}: expected to make a folder here, got: {error.strerror}; remove it") from None
    try:
        with locked(handle, wait=False) as held:
            if not (held and aside.exists() and os.path.samestat(aside.stat(), os.fstat(handle))):
                raise ShardError(f"{final}: another process is making it now; wait for it, or name another folder")
            _clear(aside)
            try:
                yield
                for folder in sorted(path for path in aside.rglob("*") if path.is_dir()):
                    fsync(folder)
                fsync(aside)
                aside.rename(final)
                fsync(final.parent)
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                raise
    finally:
        os.close(handle)


def write_derived(root: Path, pieces: Iterable[Piece], kinds: Collection[str], skipped: list[dict[str, Any]], *,
                  slice_bytes: int = SLICE_BYTES, **fields: Any) -> Derived:
    """Writes a whole set into `root` from pieces in ascending order of key; `fields`: of the manifest.

    `kinds`: every piece's source holds them. A set without a clip is refused."""
    captions = clips = queries = size = records = index = 0
    writer: SliceWriter | None = None
    with contextlib.ExitStack() as stack:
        for piece in pieces:
            more = _bytes(piece, kinds)
            if writer is not None and (size + more > slice_bytes or records == MAX_RECORDS):
                writer.commit()
                stack.close()
                writer, size, records, index = None, 0, 0, index + 1
            if writer is None:
                writer = stack.enter_context(SliceWriter(root, index, kinds=sorted(kinds)))
            writer.copy_clip(piece.record, piece.source)
            size, records = size + more, records + 1
            clips, queries = clips + 1, queries + len(piece.record.queries)
            captions += len(piece.record.captions)
        if writer is None:
            raise ShardError(f"{root.name.removeprefix('.').removesuffix('.making')}: no clip is left for it; the "
                             "filters keep nothing (`taro shards stats SET` prints splits and difficulties)")
        writer.commit()
    write_skipped(root, skipped)
    manifest = build_manifest(root, inputs=queries + len(skipped), skipped=len(skipped), captions=captions,
                              taro_version=__version__, index=write_index(root), **fields)
    write_manifest(root, manifest)
    return Derived(root, clips, queries, len(skipped))


def check_derived(root: Path, pieces: Iterable[Piece], kinds: Collection[str], skipped: list[dict[str, Any]], *,
                  slice_bytes: int = SLICE_BYTES, **fields: Any) -> Derived:
    """What `write_derived` of the same arguments returns, where `root` holds its result; raises _OtherError or
    ShardError where it holds anything else. No tensor is read: digests are compared, however the slices are cut."""
    del slice_bytes
    there = open_shards(root)
    wanted = there.manifest.model_copy(update={**fields, "taro_version": __version__})
    if canonical_json(wanted) != canonical_json(there.manifest) or set(there.manifest.kinds) != set(kinds):
        raise _OtherError
    clips = queries = 0
    for piece in pieces:
        key = piece.record.key
        if any(_digests(there, kind, key) != _digests(piece.source, kind, key) for kind in kinds) \
                or there.clip(key) != piece.record:
            raise _OtherError
        clips, queries = clips + 1, queries + len(piece.record.queries)
    if clips != len(there.keys) or read_skipped(there.store) != skipped_table(skipped):
        raise _OtherError
    return Derived(root, clips, queries, len(skipped))


def _digests(shard_set: ShardSet, kind: str, key: str) -> list[tuple[str, str]] | None:
    """Of the members of a record, but for its JSON."""
    listed = shard_set.listed(kind, key)
    return None if listed is None else [(one.ext, one.sha256) for one in listed.members if one.ext != "json"]


def write_part(root: Path, source: ShardSet, part: Part, write: Writer = write_derived, *,
               slice_bytes: int = SLICE_BYTES, progress: OnProgress | None = None) -> Derived:
    """Writes part of a set into `root`; the queries that it leaves out join the source's skipped rows, and the misses
    that it leaves out are misses no more."""
    manifest = source.manifest
    skipped = [row if not is_miss(row) or part.keeps_missed(row) else {**row, **_not_selected(part.detail)}
               for row in skipped_rows(source)]

    def pieces() -> Iterator[Piece]:
        every = None if source.index is None else source.index.clips()
        for key in counted(source.keys, progress):
            clip = source.clip(key) if every is None else None
            rows = index_rows(clip, 0) if clip is not None else next(every)[1] if every is not None else []
            asked = [row for row in rows if row["id"] is not None]
            kept = [part.keeps(key, _asked(row)) for row in asked]
            skipped.extend(_left_out(row, part.detail) for row, stays in zip(asked, kept, strict=True) if not stays)
            if any(kept) or (not asked and part.keeps_empty(key)):
                clip = clip or source.clip(key)
                queries = [query for query, stays in zip(clip.queries, kept, strict=True) if stays]
                yield Piece(clip if all(kept) else clip.model_copy(update={"queries": queries}), source)

    config = {**manifest.config, "derived": [*derived_steps(manifest), {**part.step, "source": source_facts(source)}]}
    return write(root, pieces(), manifest.kinds, skipped, slice_bytes=slice_bytes, config=config,
                 **manifest.model_dump(include={"name", "captioner", "versions"}), provenance=manifest.provenance,
                 encoders=manifest.encoders, clip_encoders=manifest.clip_encoders)


def _asked(row: IndexRow) -> QueryRecord:
    """A row of an index as a query, for the filters that choose queries."""
    return QueryRecord.model_construct(windows_s=[], **{name: row[name] for name in ("id", "text", "split",
                                                                                     "difficulty")})


def _left_out(row: IndexRow, detail: str) -> dict[str, Any]:
    """The row of skipped.parquet for a query that a new set leaves out."""
    windows_s = row["windows_s"] if row["unclipped_s"] in (None, "[]") else row["unclipped_s"]
    return {"row_id": row["id"], "line": 0, "key": row["key"], **_not_selected(detail), "query": row["text"],
            "windows_s": "" if windows_s == "[]" else windows_s,
            **{name: row[name] for name in ("video", "split", "duration_s", "difficulty")}}


def _not_selected(detail: str) -> Row:
    return {"stage": "filter", "reason": "not selected", "detail": detail, "transient": False}


def source_facts(shard_set: ShardSet) -> dict[str, Any]:
    """What a new set's manifest says of a set that it came from."""
    data = shard_set.store.read(MANIFEST, limit_bytes=MAX_MANIFEST_BYTES)
    counts = shard_set.manifest.counts
    return {"name": shard_set.manifest.name, "manifest_sha256": hashlib.sha256(data).hexdigest(),
            "inputs": counts.inputs, "queries": counts.queries, "skipped": counts.skipped}


def derived_steps(manifest: Manifest) -> list[Any]:
    """How a set was itself derived: the steps that its manifest lists, oldest first."""
    steps = manifest.config.get("derived", [])
    return steps if isinstance(steps, list) else []


def _bytes(piece: Piece, kinds: Collection[str]) -> int:
    """Bytes of the record's members in its source."""
    listed = [piece.source.listed(kind, piece.record.key) for kind in kinds]
    return sum(member.size for record in listed if record is not None for member in record.members)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
