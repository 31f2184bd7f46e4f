"""queries.parquet as bytes: one row a query, written the same way every time and read as untrusted.

Rows come in order of (key, place in the clip). What is known of a clip stands in every row of it; a clip without a
query has one row whose query columns are null. All columns are flat (windows are JSON text, as in skipped.parquet) and
no page is compressed, so that nothing a hostile file says can make a reader allocate more than the file's own size:
texts stay dictionaries until a single one is asked for. The bytes are those of one version of pyarrow, whatever the
machine.

Left out: what the rows mean (`taro.shards.index`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from taro.core.errors import ShardError
from taro.grounding.records import ClipRecord
from taro.models.features import time_error_s
from taro.shards.format import INDEX, MAX_INDEX_BYTES, MAX_INDEX_ROWS, IndexEntry
from taro.shards.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["CLIP_COLUMNS", "COLUMNS", "IndexRow", "decode_index", "encode_index", "index_rows", "read_index_table",
           "rows_table"]

IndexRow = dict[str, Any]
"""a row of the index by the names of `COLUMNS`"""

CLIP_COLUMNS = {"key": "string", "slice": "int32", "video": "string", "duration_s": "float64", "captions": "int32",
                "time_error_s": "float64"}
"""of the clip: its key, the slice (slice 7 is shard 7 of every kind), the video's file name, seconds, captions, and by
how many seconds a patch lies at most from the time that its position tells"""
COLUMNS = {**CLIP_COLUMNS, "id": "string", "text": "string", "split": "string", "windows_s": "string",
           "unclipped_s": "string", "difficulty": "float64", "paths_random": "int32", "paths_overlap": "int32"}
"""column -> type; of the query as in KEY.json, windows as JSON text, candidate paths as their number"""
_PLAIN = ("id", "text")
"""columns that hardly repeat, so a dictionary of them saves nothing"""
_LENGTHS = {"key": 88, "video": 500, "id": 500, "text": 20_000, "split": 100, "windows_s": 20_000,
            "unclipped_s": 20_000}
"""characters at most, times 4 in bytes"""
_ROW_GROUP = 65_536
_DICTIONARY_BYTES = 64 * 2**20
"""a column keeps its dictionary through a row group, so that it is read as one"""
_THRIFT = {"thrift_string_size_limit": 16 * 2**20, "thrift_container_size_limit": 200_000}


def index_rows(clip: ClipRecord, slice_index: int) -> list[IndexRow]:
    """What the index says of a clip: a row for each query, or one whose query columns are None."""
    error_s = time_error_s(np.array(clip.times_s), clip.duration_s, clip.video.fps)
    of_clip = {"key": clip.key, "slice": slice_index, "video": clip.video.path_hint, "duration_s": clip.duration_s,
               "captions": len(clip.captions), "time_error_s": round(error_s, 6)}
    if not clip.queries:
        return [{**of_clip, **{name: None for name in COLUMNS if name not in CLIP_COLUMNS}}]
    return [{**of_clip, "id": query.id, "text": query.text, "split": query.split, "windows_s": _json(query.windows_s),
             "unclipped_s": None if query.unclipped_s is None else _json(query.unclipped_s),
             "difficulty": query.difficulty, "paths_random": len(query.paths.random),
             "paths_overlap": len(query.paths.overlap)} for query in clip.queries]


def _json(windows_s: Sequence[tuple[float, float]]) -> str:
    return json.dumps(windows_s, separators=(",", ":"))


def rows_table(rows: Iterable[IndexRow]) -> pa.Table:
    """Rows as a table of the index's columns."""
    import pyarrow as pa

    return pa.Table.from_pylist(list(rows), schema=_schema())


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([(name, getattr(pa, kind)()) for name, kind in COLUMNS.items()])


def encode_index(tables: Sequence[pa.Table]) -> bytes:
    """The file of some tables of rows, in order of their keys; rows of a clip keep their order."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pa.concat_tables([_schema().empty_table(), *tables])
    numbered = table.select(["key"]).append_column("at", pa.array(np.arange(len(table))))
    order = pc.sort_indices(numbered, sort_keys=[("key", "ascending"), ("at", "ascending")])
    sink = pa.BufferOutputStream()
    pq.write_table(table.take(order), sink, compression="none", store_schema=False, row_group_size=_ROW_GROUP,
                   use_dictionary=[name for name in COLUMNS if name not in _PLAIN],
                   dictionary_pagesize_limit=_DICTIONARY_BYTES)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def read_index_table(store: Store, entry: IndexEntry) -> pa.Table:
    """The rows of a set's index, compared with what the manifest says of the file. Raises ShardError."""
    where = store.describe(INDEX)
    if entry.bytes > MAX_INDEX_BYTES or entry.rows > MAX_INDEX_ROWS:
        raise ShardError(f"{where}: {entry.bytes:,} bytes and {entry.rows:,} rows, at most {MAX_INDEX_BYTES:,} and "
                         f"{MAX_INDEX_ROWS:,} are read; split the set")
    data = store.read(INDEX, limit_bytes=entry.bytes)
    if len(data) != entry.bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise ShardError(f"{where}: its size or sha256 is not the manifest's; the index is damaged or from another "
                         "set, fetch it again or make it again with `taro shards index`")
    return decode_index(data, where, entry.rows)


def decode_index(data: bytes, where: str, rows: int) -> pa.Table:
    """The `rows` rows of an index from its bytes: types, lengths and nulls checked, texts as dictionaries. Raises
    ShardError that opens with `where`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        texts = [name for name, kind in COLUMNS.items() if kind == "string" and name not in _PLAIN]
        file = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False, read_dictionary=texts, **_THRIFT)
        _check_footer(file, rows)
        batches = []
        # In this thread alone: see `taro.shards.manifest.read_skipped`.
        for batch in file.iter_batches(_ROW_GROUP, columns=list(COLUMNS), use_threads=False):
            _check_batch(batch)
            batches.append(batch)
        table = pa.Table.from_batches(batches, schema=_dictionaries())
        if len(table) != rows:
            raise ValueError(f"{len(table):,} rows, the manifest says {rows:,}")
    except (OSError, ValueError, LookupError, pa.ArrowException, MemoryError) as error:
        raise ShardError(f"{where}: not a readable index of queries ({str(error)[:300]!a}); make it again with `taro "
                         "shards index`") from None
    return table


def _dictionaries() -> pa.Schema:
    """The schema with texts as dictionaries."""
    import pyarrow as pa

    return pa.schema([(field.name, pa.dictionary(pa.int32(), pa.string())
                       if pa.types.is_string(field.type) and field.name not in _PLAIN else field.type)
                      for field in _schema()])


def _check_footer(file: Any, rows: int) -> None:
    """Raises ValueError unless the columns are ours, flat, not compressed, and as many rows as wanted."""
    found, wanted = {field.name: field.type for field in file.schema_arrow}, _dictionaries()
    lost = [field.name for field in wanted if found.get(field.name) != field.type]
    if lost or len(found) != len(file.schema_arrow):
        raise ValueError(f"column {(lost or ['twice'])[0]} is {found.get(lost[0]) if lost else 'there'}; expected "
                         f"{', '.join(COLUMNS)}")
    if file.metadata.num_rows != rows:
        raise ValueError(f"{file.metadata.num_rows:,} rows, the manifest says {rows:,}")
    for at in range(len(file.schema)):
        column = file.schema.column(at)
        if column.max_repetition_level:
            raise ValueError(f"column {column.path} holds lists; expected flat columns")
    for group in range(file.metadata.num_row_groups):
        for at in range(file.metadata.num_columns):
            if file.metadata.row_group(group).column(at).compression != "UNCOMPRESSED":
                raise ValueError("its pages are compressed; expected none that are")


def _check_batch(batch: pa.RecordBatch) -> None:
    """Raises ValueError for a text that is too long, or a null where none may be."""
    import pyarrow.compute as pc

    for name, limit in _LENGTHS.items():
        column = batch.column(name)
        values = column if name in _PLAIN else column.dictionary
        longest = pc.max(pc.binary_length(values)).as_py() or 0
        if longest > 4 * limit or (values is not column and values.null_count):
            raise ValueError(f"a text of {longest:,} bytes in {name}, at most {4 * limit:,} are read")
        column.validate(full=True)  # UTF-8, and offsets inside
    asked = batch.column("id").null_count
    for name in COLUMNS:
        nulls = batch.column(name).null_count
        if name not in ("unclipped_s", "difficulty") and nulls != (0 if name in CLIP_COLUMNS else asked):
            raise ValueError(f"{nulls:,} rows say no {name}")
