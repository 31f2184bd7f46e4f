"""queries.parquet as bytes: one row a query, written the same way every time and read as untrusted.

Rows come in order of (key, place in the clip). What is known of a clip stands in every row of it; a clip without a
query has one row whose query columns are null. All columns are flat (windows are JSON text, as in skipped.parquet) and
no page is compressed, so that nothing a hostile file says can make a reader allocate more than the file's own size:
texts stay dictionaries until a single one is asked for. The bytes are those of one version of pyarrow, whatever the
machine.

Left out: what the rows mean (`taro.shards.index`)."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from taro.core.errors import ShardError
from taro.grounding.records import ClipRecord
from taro.models.features import time_error_s
from taro.shards.format import INDEX, MAX_INDEX_BYTES, MAX_INDEX_ROWS, IndexEntry
from taro.shards.parquet_pages import check_pages
from taro.shards.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["CLIP_COLUMNS", "COLUMNS", "ClipTexts", "IndexFile", "IndexRow", "encode_index", "filled", "from_numpy",
           "index_rows", "open_index", "rows_table", "to_numpy"]

IndexRow = dict[str, Any]
"""a row of the index by the names of `COLUMNS`"""

CLIP_COLUMNS = {"key": "string", "slice": "int32", "video": "string", "duration_s": "float64", "captions": "int32",
                "time_error_s": "float64"}
"""of the clip: its key, the slice (slice 7 is shard 7 of every kind), the video's file name, seconds, captions, and by
how many seconds a patch lies at most from the time that its position tells"""
COLUMNS = {**CLIP_COLUMNS, "id": "string", "text": "string", "split": "string", "windows_s": "string",
           "unclipped_s": "string", "difficulty": "float64", "paths_random": "int32", "paths_overlap": "int32"}
"""column -> type; of the query as in KEY.json, windows as JSON text, candidate paths as their number"""
PLAIN = ("id", "text", "windows_s", "unclipped_s")
"""columns that hardly repeat: no dictionary of them"""
_LENGTHS = {"key": 88, "video": 500, "id": 500, "text": 20_000, "split": 100, "windows_s": 20_000,
            "unclipped_s": 20_000}
"""characters at most, times 4 in bytes"""
_ROW_GROUP = 65_536
_DICTIONARY_BYTES = 64 * 2**20
"""a column keeps its dictionary through a row group, so that it is read as one"""
_THRIFT = {"thrift_string_size_limit": 16 * 2**20, "thrift_container_size_limit": 200_000}


def to_numpy(array: pa.Array) -> np.ndarray:
    """Numbers without nulls as numpy, not copied; booleans as bytes. (Arrow's own way imports pandas, half a second.)
    """
    import pyarrow as pa

    return np.from_dlpack(array.cast(pa.uint8()) if pa.types.is_boolean(array.type) else array)


def filled(array: pa.Array, value: float) -> np.ndarray:
    """Numbers (int32, float64) as numpy, `value` where they are null. (For a float of Python arrow imports pandas.)"""
    import pyarrow as pa

    stored = np.array([value], np.float64 if pa.types.is_floating(array.type) else np.int32)
    return to_numpy(array.fill_null(pa.Array.from_buffers(array.type, 1, [None, pa.py_buffer(stored)])[0]))


def from_numpy(numbers: np.ndarray) -> pa.Array:
    """Numbers of numpy as int64 for arrow."""
    import pyarrow as pa

    whole = np.ascontiguousarray(numbers, dtype=np.int64)
    return pa.Array.from_buffers(pa.int64(), len(whole), [None, pa.py_buffer(whole)])


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
    with pq.ParquetWriter(sink, _schema(), compression="none", store_schema=False,
                          use_dictionary=[name for name in COLUMNS if name not in PLAIN],
                          dictionary_pagesize_limit=_DICTIONARY_BYTES) as writer:
        if len(table):
            writer.write_table(table.take(order), row_group_size=_ROW_GROUP)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def open_index(store: Store, entry: IndexEntry) -> IndexFile:
    """A set's index, compared with what the manifest says of the file. Raises ShardError."""
    where = store.describe(INDEX)
    if entry.bytes > MAX_INDEX_BYTES or entry.rows > MAX_INDEX_ROWS:
        raise ShardError(f"{where}: {entry.bytes:,} bytes and {entry.rows:,} rows, at most {MAX_INDEX_BYTES:,} and "
                         f"{MAX_INDEX_ROWS:,} are read; split the set")
    data = store.read(INDEX, limit_bytes=entry.bytes)
    if len(data) != entry.bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise ShardError(f"{where}: its size or sha256 is not the manifest's; the index is damaged or from another "
                         "set, fetch it again or make it again with `taro shards index`")
    return IndexFile(data, where, entry.rows)


@dataclass(frozen=True, slots=True)
class ClipTexts:
    """A text of each clip [C]; starts [C]: the first row of each."""

    values: pa.Array
    starts: np.ndarray


class IndexFile:
    """The bytes of an index, read a column at a time, so that no more than one is in memory twice. Whatever is wrong is
    a ShardError that opens with the file's name."""

    def __init__(self, data: bytes, where: str, rows: int) -> None:
        """`rows`: how many the manifest says."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._where, self._rows = where, rows
        with self._readable():
            texts = [name for name, kind in COLUMNS.items() if kind == "string" and name not in PLAIN]
            self._file = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False, read_dictionary=texts, **_THRIFT)
            _check_columns(self._file, rows)
            check_pages(data, [self._file.schema.column(at).path for at in range(len(self._file.schema))], PLAIN)

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except (OSError, ValueError, LookupError, OverflowError, pa.ArrowException, MemoryError) as error:
            raise ShardError(f"{self._where}: not a readable index of queries ({str(error)[:300]!a}); make it again "
                             "with `taro shards index`") from None

    def _batches(self, name: str) -> Iterator[pa.Array]:
        """A column in pieces, its texts checked."""
        found = 0
        # In this thread alone: see `taro.shards.manifest.read_skipped`.
        for batch in self._file.iter_batches(_ROW_GROUP, columns=[name], use_threads=False):
            array = batch.column(0)
            found += len(array)
            if COLUMNS[name] == "string":
                _check_texts(name, array)
            yield array
        if found != self._rows:
            raise ValueError(f"{found:,} rows of {name}, the manifest says {self._rows:,}")

    def column(self, name: str) -> pa.Array:
        """A column as one array, dictionaries as one."""
        import pyarrow as pa

        with self._readable():
            pieces = list(self._batches(name))
            if not pieces:
                return pa.nulls(0, _stored()[name])
            column = pa.chunked_array(pieces)
            return (column.unify_dictionaries() if pa.types.is_dictionary(column.type) else column).combine_chunks()

    def clip_texts(self, name: str, starts: np.ndarray | None = None) -> ClipTexts:
        """A text that is the same in all rows of a clip, once a clip. `starts`: the first row of each clip; None: a
        clip begins where this text changes."""
        import pyarrow as pa
        import pyarrow.compute as pc

        values, begins = [pa.nulls(0, pa.string())], [np.zeros(0, np.int64)]
        at, size, last = 0, 0, None
        with self._readable():
            for array in self._batches(name):
                if array.null_count:
                    raise ValueError(f"{array.null_count:,} rows say no {name}")
                codes = to_numpy(array.indices)
                changes = np.flatnonzero(codes[1:] != codes[:-1]) + 1
                if starts is not None:
                    inside = starts[(starts > at) & (starts < at + len(codes))] - at
                    if not np.isin(changes, inside).all():
                        raise ValueError(f"the rows of a clip differ in {name}")
                    changes = inside
                begin = np.concatenate([[0], changes])
                found = array.dictionary.take(from_numpy(codes[begin]))
                size += pc.sum(pc.binary_length(found)).as_py()
                if size > MAX_INDEX_BYTES:
                    raise ValueError(f"more than {MAX_INDEX_BYTES:,} bytes of {name}")
                same, last = found[0].as_py() == last, found[-1].as_py()
                goes_on = same if starts is None else at not in starts
                if goes_on and not same:
                    raise ValueError(f"the rows of a clip differ in {name}")
                values.append(found.slice(int(goes_on)))
                begins.append(at + begin[int(goes_on) :])
                at += len(codes)
            return ClipTexts(pa.concat_arrays(values), np.concatenate(begins))


def _stored() -> dict[str, pa.DataType]:
    """The types of the columns as they are read: texts that repeat as dictionaries."""
    import pyarrow as pa

    return {field.name: pa.dictionary(pa.int32(), pa.string()) if pa.types.is_string(field.type)
            and field.name not in PLAIN else field.type for field in _schema()}


def _check_columns(file: Any, rows: int) -> None:
    """Raises ValueError unless the columns are ours, flat, and as many rows as wanted."""
    found = {field.name: field.type for field in file.schema_arrow}
    lost = [name for name, kind in _stored().items() if found.get(name) != kind]
    if lost or len(found) != len(file.schema_arrow):
        raise ValueError(f"column {(lost or ['twice'])[0]} is {found.get(lost[0]) if lost else 'there'}; expected "
                         f"{', '.join(COLUMNS)}")
    if file.metadata.num_rows != rows:
        raise ValueError(f"{file.metadata.num_rows:,} rows, the manifest says {rows:,}")
    lists = [file.schema.column(at).path for at in range(len(file.schema))
             if file.schema.column(at).max_repetition_level]
    if lists:
        raise ValueError(f"column {lists[0]} holds lists; expected flat columns")


def _check_texts(name: str, array: pa.Array) -> None:
    """Raises ValueError for a text that is too long, or not UTF-8."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = array.dictionary if pa.types.is_dictionary(array.type) else array
    longest = pc.max(pc.binary_length(values)).as_py() or 0
    if longest > 4 * _LENGTHS[name] or (values is not array and values.null_count):
        raise ValueError(f"a text of {longest:,} bytes in {name}, at most {4 * _LENGTHS[name]:,} are read")
    array.validate(full=True)
