"""The files about a set: manifest.json, skipped.parquet and the dataset card, each written whole or not at all.

The manifest is built from the sidecars on the disk, so it can be made again at any time, and it is written last: a
folder without it is not a set yet. No clock and no path of a machine enters it, so equal input gives equal bytes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taro.core.errors import ShardError
from taro.core.files import write_atomically
from taro.shards.format import (
    CARD,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    SKIPPED,
    Counts,
    Manifest,
    ShardEntry,
    Sidecar,
    kind_ok,
)
from taro.shards.store import LocalStore
from taro.shards.strict import canonical_json, parse_model

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SKIPPED_COLUMNS", "build_manifest", "read_entries", "read_skipped", "write_card",
           "write_manifest", "write_skipped"]

MAX_SKIPPED_ROWS = 4_000_000
BATCH_ROWS = 10_000
SKIPPED_COLUMNS = ("row_id", "line", "video", "key", "stage", "reason", "detail", "transient")
TEXT_COLUMNS = [name for name in SKIPPED_COLUMNS if name not in ("line", "transient")]


def read_entries(root: str | Path) -> list[ShardEntry]:
    """What the sidecars in the folder say, in order of (kind, index); shards themselves are not read."""
    store = LocalStore(Path(root))
    entries = []
    for path in sorted(Path(root).glob("*/*.json")) + sorted(Path(root).glob("*/*/*.json")):
        name = path.relative_to(root).as_posix()
        kind = name.rpartition("/")[0]
        if not kind_ok(kind) or re.fullmatch(r"[a-z]+-[0-9]{6}\.json", path.name) is None:
            continue
        data = store.read(name, limit_bytes=MAX_MANIFEST_BYTES)
        sidecar = parse_model(Sidecar, data, store.where(name), limit_bytes=MAX_MANIFEST_BYTES)
        if (sidecar.kind, f"{sidecar.index:06d}") != (kind, path.name[-11:-5]):
            raise ShardError(f"{path}: says it is {sidecar.kind} {sidecar.index}; the file was moved or renamed")
        entries.append(ShardEntry(kind=kind, index=sidecar.index, bytes=sidecar.bytes, records=len(sidecar.records),
                                  queries=sidecar.queries, sha256=sidecar.sha256,
                                  sidecar_sha256=hashlib.sha256(data).hexdigest()))
    return sorted(entries, key=lambda entry: (entry.kind, entry.index))


def build_manifest(root: str | Path, *, inputs: int, skipped: int, captions: int, **fields: Any) -> Manifest:
    """A manifest of what lies in the folder: shards, counts and the digest of skipped.parquet are read there.

    `inputs`: rows of the annotations; `skipped`: rows of skipped.parquet; `captions`: of all clips. ShardError unless
    inputs = written + skipped. `fields`: name, encoders, provenance, ... of `Manifest`.
    """
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
    """Writes manifest.json; do it last."""
    write_atomically(Path(root) / MANIFEST, canonical_json(manifest) + b"\n")


def write_skipped(root: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes skipped.parquet: one row per annotation row that did not become a query, in order of (line, row_id).

    Columns: row_id, video, key, stage, reason, detail (text; key "" where the row never got one), line (int64),
    transient (bool: trying again may help).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _skipped_schema()
    table = sorted(({name: row[name] for name in SKIPPED_COLUMNS} for row in rows),
                   key=lambda row: (row["line"], str(row["row_id"])))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(table, schema=schema), sink, compression="zstd")
    write_atomically(Path(root) / SKIPPED, sink.getvalue().to_pybytes())


def read_skipped(root: str | Path) -> list[dict[str, Any]]:
    """Rows of skipped.parquet; [] where the set has none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(root) / SKIPPED
    if not path.exists():
        return []
    data = LocalStore(Path(root)).read(SKIPPED, limit_bytes=MAX_MANIFEST_BYTES)
    try:
        rows = _bounded_rows(pq.ParquetFile(pa.BufferReader(data), pre_buffer=False, read_dictionary=TEXT_COLUMNS))
    except (OSError, ValueError, LookupError, pa.ArrowException, MemoryError) as error:
        raise ShardError(f"{path}: not a readable parquet file of skipped rows ({str(error)[:300]!a}); run `taro "
                         "preprocess` again") from None
    return rows


def _skipped_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([(name, pa.int64() if name == "line" else pa.bool_() if name == "transient" else pa.string())
                      for name in SKIPPED_COLUMNS])


def _bounded_rows(file: Any) -> list[dict[str, Any]]:
    """Rows of an open ledger, ValueError where it is another table or would be too large: a few bytes of parquet stand
    for gigabytes where a long text is repeated, so texts stay dictionaries until their sum is known."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = {name: kind.value_type if pa.types.is_dictionary(kind) else kind
             for name, kind in zip(file.schema_arrow.names, file.schema_arrow.types, strict=True)}
    wanted = {field.name: field.type for field in _skipped_schema()}
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
        for name in TEXT_COLUMNS:
            column = batch.column(name)
            lengths = pc.binary_length(column.dictionary).take(column.indices)
            text_bytes += pc.sum(lengths).as_py() or 0
        if len(rows) + len(batch) > MAX_SKIPPED_ROWS or text_bytes > MAX_MANIFEST_BYTES:
            raise ValueError(f"more than {MAX_SKIPPED_ROWS:,} rows or {MAX_MANIFEST_BYTES:,} bytes of text")
        rows += batch.to_pylist()
    return rows


def write_card(root: str | Path, manifest: Manifest) -> None:
    """Writes README.md, a Hugging Face dataset card made from the manifest."""
    from taro.shards.card import card_text

    write_atomically(Path(root) / CARD, card_text(manifest).encode())
