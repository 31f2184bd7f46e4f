"""The files about a set: manifest.json, skipped.parquet and the dataset card, each written whole or not at all.

The manifest is built from the sidecars on the disk, so it can be made again at any time, and it is written last: a
folder without it is not a set yet. No clock and no path of a machine enters it, so equal input gives equal bytes."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taro.core.errors import ShardError
from taro.core.files import write_atomically
from taro.core.json import canonical_json, check_model, parse_json, parse_model
from taro.shards.card import card_text
from taro.shards.format import (
    CARD,
    INDEX,
    MANIFEST,
    MAX_ELEMENTS,
    MAX_MANIFEST_BYTES,
    SKIPPED,
    Counts,
    Manifest,
    ShardEntry,
    Sidecar,
    check_version,
    kind_ok,
    sidecar_path,
)
from taro.shards.places import open_store
from taro.shards.store import Expected, MissingFileError, Store
from taro.shards.store_local import LocalStore

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SKIPPED_COLUMNS", "build_manifest", "parse_manifest", "read_entries", "read_manifest", "read_sidecar",
           "read_skipped", "skipped_table", "stored_sidecar", "write_manifest", "write_skipped"]

MAX_SKIPPED_ROWS = 4_000_000
BATCH_ROWS = 10_000
COLUMNS_1_0 = ("row_id", "line", "video", "key", "stage", "reason", "detail", "transient")
SKIPPED_COLUMNS = (*COLUMNS_1_0, "split", "query", "windows_s", "duration_s", "difficulty")
_ARROW = {"line": "int64", "transient": "bool_", "duration_s": "float64", "difficulty": "float64"}
"""types of the columns that are no text"""


def read_manifest(store: Store) -> Manifest:
    """The manifest of a set, its version checked before its schema."""
    where = store.describe(MANIFEST)
    try:
        data = store.read(MANIFEST, limit_bytes=MAX_MANIFEST_BYTES)
    except MissingFileError as error:
        raise ShardError(f"{store.place}: no {MANIFEST}: not a shard set, or one whose `taro preprocess` has not "
                         "finished (run it again, it resumes)") from error
    manifest = parse_manifest(data, where)
    store.expect(_files(manifest))
    return manifest


def parse_manifest(data: bytes, where: str) -> Manifest:
    """A manifest from its bytes, its version checked before its schema; ShardError that opens with `where`."""
    parsed = parse_json(data, where, limit_bytes=MAX_MANIFEST_BYTES, limit_elements=MAX_ELEMENTS[MANIFEST])
    version = parsed.get("format_version") if isinstance(parsed, dict) else None
    warning = check_version(version if isinstance(version, str) else "", where)
    if warning:
        warnings.warn(warning, stacklevel=4)
    return check_model(Manifest, parsed, where)


def _files(manifest: Manifest) -> dict[str, Expected]:
    """What the manifest says of each file."""
    shards = {entry.path: Expected(entry.bytes, entry.sha256) for entry in manifest.shards}
    sidecars = {sidecar_path(entry.kind, entry.index): Expected(None, entry.sidecar_sha256)
                for entry in manifest.shards}
    skipped = {SKIPPED: Expected(None, manifest.skipped_sha256)} if manifest.skipped_sha256 else {}
    index = {INDEX: Expected(manifest.index.bytes, manifest.index.sha256)} if manifest.index else {}
    return {**shards, **sidecars, **skipped, **index}


def read_sidecar(store: Store, entry: ShardEntry) -> Sidecar:
    """The sidecar of a shard of the manifest, checked against it."""
    name = sidecar_path(entry.kind, entry.index)
    where = store.describe(name)
    data = store.read(name, limit_bytes=MAX_MANIFEST_BYTES)
    if hashlib.sha256(data).hexdigest() != entry.sidecar_sha256:
        raise ShardError(f"{where}: its sha256 is not the manifest's; the sidecar is damaged or from another set")
    sidecar = _sidecar(data, where)
    found = (sidecar.kind, sidecar.index, sidecar.bytes, len(sidecar.records), sidecar.queries, sidecar.sha256)
    if found != (entry.kind, entry.index, entry.bytes, entry.records, entry.queries, entry.sha256):
        raise ShardError(f"{where}: says {found[:5]} (kind, index, bytes, records, queries), the manifest says "
                         f"{(entry.kind, entry.index, entry.bytes, entry.records, entry.queries)}")
    return sidecar


def _sidecar(data: bytes, where: str) -> Sidecar:
    return parse_model(Sidecar, data, where, limit_bytes=MAX_MANIFEST_BYTES, limit_elements=MAX_ELEMENTS["sidecar"])


def stored_sidecar(store: Store, kind: str, index: int) -> tuple[Sidecar, ShardEntry]:
    """The sidecar of a shard as it lies in the store, whatever a manifest says of it, and the entry that would list it.
    ShardError where it is missing, damaged or of another shard."""
    name = sidecar_path(kind, index)
    data = store.read(name, limit_bytes=MAX_MANIFEST_BYTES)
    sidecar = _sidecar(data, store.describe(name))
    if (sidecar.kind, sidecar.index) != (kind, index):
        raise ShardError(f"{store.describe(name)}: says it is {sidecar.kind} {sidecar.index}; the file was moved or "
                         "renamed")
    return sidecar, ShardEntry.of(sidecar, hashlib.sha256(data).hexdigest())


def read_entries(root: str | Path, *, kind: str | None = None) -> list[ShardEntry]:
    """What the sidecars in the folder say, in order of (kind, index), of all kinds or of one; shards themselves are not
    read."""
    store = LocalStore(Path(root))
    entries = []
    for name in store.list():
        if kind_ok(name):  # a link in place of a kind's folder: opening what it should hold says so
            store.size(sidecar_path(name, 0))
        of_kind, _, file = name.rpartition("/")
        if not kind_ok(of_kind) or re.fullmatch(r"[a-z]+-[0-9]{6}\.json", file) is None or kind not in (None, of_kind):
            continue
        entries.append(stored_sidecar(store, of_kind, int(file[-11:-5]))[1])
    return sorted(entries, key=lambda entry: (entry.kind, entry.index))


def build_manifest(root: str | Path, *, inputs: int, skipped: int, captions: int, **fields: Any) -> Manifest:
    """A manifest of what lies in the folder: shards, counts and the digest of skipped.parquet are read there.

    `inputs`: rows of the annotations; `skipped`: rows of skipped.parquet; `captions`: of all clips. ShardError unless
    inputs = written + skipped. `fields`: name, encoders, index, provenance, ... of `Manifest`."""
    entries = _whole_kinds(read_entries(root))
    paths = [entry for entry in entries if entry.kind == "paths"]
    queries = sum(entry.queries for entry in paths)
    if inputs != queries + skipped:
        raise ShardError(f"{root}: {inputs} annotation rows, but {queries} queries written and {skipped} skipped; a "
                         "row is lost or counted twice")
    counts = Counts(clips=sum(entry.records for entry in paths), queries=queries, captions=captions,
                    inputs=inputs, skipped=skipped)
    table = Path(root) / SKIPPED
    digest = hashlib.sha256(table.read_bytes()).hexdigest() if table.is_file() else None
    return Manifest(counts=counts, shards=entries, skipped_sha256=digest, **fields)


def _whole_kinds(entries: list[ShardEntry]) -> list[ShardEntry]:
    """Without variants of which a slice is missing yet: they are an addition, and a set without them is whole."""
    slices: dict[str, set[int]] = {}
    for entry in entries:
        slices.setdefault(entry.kind, set()).add(entry.index)
    return [entry for entry in entries if not entry.kind.startswith("variants/")
            or slices[entry.kind] == slices.get("paths", set())]


def write_manifest(root: str | Path, manifest: Manifest) -> None:
    """Writes README.md, a Hugging Face dataset card made from the manifest, then manifest.json; do it last."""
    write_atomically(Path(root) / CARD, card_text(manifest).encode())
    write_atomically(Path(root) / MANIFEST, canonical_json(manifest) + b"\n")


def write_skipped(root: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes skipped.parquet: one row per annotation row that did not become a query, in order of (line, row_id).

    Columns: row_id, video, key, stage, reason, detail (text; key "" where the row never got one), line (int64),
    transient (bool: trying again may help); of rows that are queries split, query, windows_s (JSON text, as annotated;
    a list of windows is taken too), duration_s of the clip, difficulty. What a row does not name is unknown."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = skipped_table(rows)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(table, schema=_skipped_schema(SKIPPED_COLUMNS)), sink, compression="zstd")
    write_atomically(Path(root) / SKIPPED, sink.getvalue().to_pybytes())


def skipped_table(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows as skipped.parquet holds them: its columns, in its order."""
    return sorted(({name: _stored(row, name) for name in SKIPPED_COLUMNS} for row in rows),
                  key=lambda row: (row["line"], str(row["row_id"])))


def _stored(row: Mapping[str, Any], name: str) -> Any:
    """A value of a row as the table has it; of a column that 1.0 did not have, what stands for unknown."""
    if name in COLUMNS_1_0:
        return row[name]
    value = row.get(name)
    if name == "windows_s" and not isinstance(value, str):
        return json.dumps(value, separators=(",", ":")) if value else ""
    return value if name in _ARROW else value or ""


def read_skipped(place: str | Path | Store) -> list[dict[str, Any]]:
    """Rows of skipped.parquet; [] where the set has none. The columns that a table of format 1.0 lacks are "" and None.
    ShardError where it cannot be read, ImportError without pyarrow."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    store = open_store(place)
    try:
        data = store.read(SKIPPED, limit_bytes=MAX_MANIFEST_BYTES)
    except MissingFileError:
        return []
    try:
        texts = [name for name in pq.read_schema(pa.BufferReader(data)).names if name in SKIPPED_COLUMNS
                 and name not in _ARROW]
        rows = _bounded_rows(pq.ParquetFile(pa.BufferReader(data), pre_buffer=False, read_dictionary=texts))
    except (OSError, ValueError, LookupError, pa.ArrowException, MemoryError) as error:
        raise ShardError(f"{store.describe(SKIPPED)}: not a readable parquet file of skipped rows "
                         f"({str(error)[:300]!a}); run `taro preprocess` again") from None
    later = {name: None if name in _ARROW else "" for name in SKIPPED_COLUMNS[len(COLUMNS_1_0):]}
    return [{**later, **row} for row in rows]


def _skipped_schema(columns: Iterable[str]) -> pa.Schema:
    import pyarrow as pa

    return pa.schema([(name, getattr(pa, _ARROW.get(name, "string"))()) for name in columns])


def _bounded_rows(file: Any) -> list[dict[str, Any]]:
    """Rows of an open ledger, ValueError where it is another table or would be too large: a few bytes of parquet stand
    for gigabytes where a long text is repeated, so texts stay dictionaries until their sum is known."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = {name: kind.value_type if pa.types.is_dictionary(kind) else kind
             for name, kind in zip(file.schema_arrow.names, file.schema_arrow.types, strict=True)}
    columns = SKIPPED_COLUMNS if len(file.schema_arrow) == len(SKIPPED_COLUMNS) else COLUMNS_1_0
    wanted = {field.name: field.type for field in _skipped_schema(columns)}
    if found != wanted or len(file.schema_arrow) != len(wanted):
        raise ValueError(f"columns {str({name: str(kind) for name, kind in found.items()})[:200]}, expected "
                         f"{', '.join(SKIPPED_COLUMNS)}")
    rows: list[dict[str, Any]] = []
    text_bytes = 0
    if file.metadata.num_rows > MAX_SKIPPED_ROWS:
        raise ValueError(f"{file.metadata.num_rows:,} rows, at most {MAX_SKIPPED_ROWS:,} are read")
    # In this thread alone: a thread of arrow's that drops the last reference to the data while Python shuts down aborts
    # the process, after all has been said and done (pq.read_table did, once in three).
    for batch in file.iter_batches(BATCH_ROWS, use_threads=False):
        for name in (name for name in columns if name not in _ARROW):
            column = batch.column(name)
            lengths = pc.binary_length(column.dictionary).take(column.indices)
            text_bytes += pc.sum(lengths).as_py() or 0
        if len(rows) + len(batch) > MAX_SKIPPED_ROWS or text_bytes > MAX_MANIFEST_BYTES:
            raise ValueError(f"more than {MAX_SKIPPED_ROWS:,} rows or {MAX_MANIFEST_BYTES:,} bytes of text")
        rows += batch.to_pylist()
    return rows
