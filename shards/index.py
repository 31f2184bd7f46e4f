"""The index of an open set: what it holds, and in which slice, known without reading a sidecar or a record.

A million queries stay columns of arrow and numpy; a row becomes Python objects when somebody asks for it. `rows_of` a
clip are what `taro.shards.index_file.index_rows` says of its record, so a record is checked by one comparison. The
filters here choose rows as `taro.shards.ops.filter.Selection` chooses queries, one by one."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from taro.core.errors import ShardError
from taro.core.json import check_model, parse_json
from taro.grounding.records import ClipRecord, QueryRecord
from taro.shards.format import INDEX, Manifest
from taro.shards.index_file import COLUMNS, IndexRow, filled, from_numpy, index_rows, open_index, to_numpy
from taro.shards.lazy import BLOCK_ITEMS, LazySequence
from taro.shards.store import Store
from taro.shards.text_search import found_in

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Index", "Keys", "query_of_row"]

TIME_ERROR_S = 2e-6
"""by how much `time_error_s` may differ: it is a sum of products, rounded, and not the same to the bit everywhere"""


class Keys(LazySequence[str]):
    """Keys of clips, ascending, each made a str when it is asked for."""

    def __init__(self, column: pa.Array) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.find(key) is not None

    def made(self, places: np.ndarray) -> list[str]:
        """The keys at some places."""
        found: list[str] = self._column.take(from_numpy(places)).to_pylist()
        return found

    def find(self, key: str) -> int | None:
        """The place of a key; None where it is not there."""
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self._column[middle].as_py() < key:
                low = middle + 1
            else:
                high = middle
        return low if low < len(self) and self[low] == key else None


class Index:
    """The rows of a set's index. `keys`: of its clips; `sha256`: of the file."""

    FILTERS = ("split", "difficulty", "queries", "keys", "text")
    """fields of `Selection`, in the order in which they are asked"""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        """Reads queries.parquet, which the manifest names. Raises ShardError where it is damaged, or of another set."""
        assert manifest.index is not None
        self._where = store.describe(INDEX)
        self.sha256 = manifest.index.sha256
        file = open_index(store, manifest.index)
        keys = file.clip_texts("key")
        self.keys = Keys(keys.values)
        self._first = np.append(keys.starts, manifest.index.rows).astype(np.int64)
        self._clips = {"key": keys.values, "video": file.clip_texts("video", keys.starts).values,
                       **{name: self._of_clips_alone(name, file.column(name)) for name in (
                           "slice", "duration_s", "captions", "time_error_s")}}
        self._asked = {name: file.column(name) for name in COLUMNS if name not in self._clips}
        self._is_query = to_numpy(self._asked["id"].is_valid()).astype(bool)
        self._check(manifest)

    def _of_clips_alone(self, name: str, column: pa.Array) -> pa.Array:
        """A column of numbers that is the same in all rows of a clip, once a clip."""
        if column.null_count:
            raise self._wrong(f"{column.null_count:,} rows say no {name}")
        values = to_numpy(column)
        bits = values.view(np.int64) if values.dtype == np.float64 else values
        if not np.array_equal(np.repeat(bits[self._first[:-1]], np.diff(self._first)), bits):
            raise self._wrong(f"the rows of a clip differ in {name}")
        return column.take(from_numpy(self._first[:-1]))

    def _check(self, manifest: Manifest) -> None:
        """Raises ShardError unless the clips are in order, the queries whole, and both those that the manifest counts.
        """
        import pyarrow.compute as pc

        keys = self._clips["key"]
        if len(keys) and not pc.all(pc.match_substring_regex(keys, "^[A-Za-z0-9_-]{1,88}$")).as_py():
            raise self._wrong("a key is not 1 to 88 of A-Z a-z 0-9 _ -")
        if len(keys) > 1 and not pc.all(pc.less(keys.slice(0, len(keys) - 1), keys.slice(1))).as_py():
            raise self._wrong("keys are not ascending, or a clip's rows are not neighbours")
        for name, column in self._asked.items():
            if name not in ("unclipped_s", "difficulty") and column.null_count != self._asked["id"].null_count:
                raise self._wrong(f"{column.null_count:,} rows say no {name}")
        alone = np.diff(self._first) == 1
        if not alone[self.clip_numbers(np.flatnonzero(~self._is_query))].all():
            raise self._wrong("a row without a query stands beside others of its clip")
        known = [entry.index for entry in manifest.shards if entry.kind == "paths"]
        if not np.isin(to_numpy(self._clips["slice"]), known).all():
            raise self._wrong("it names a slice that the manifest does not list")
        counts = len(keys), int(self._is_query.sum())
        if counts != (manifest.counts.clips, manifest.counts.queries):
            raise self._wrong(f"{counts[0]:,} clips and {counts[1]:,} queries, the manifest counts "
                              f"{manifest.counts.clips:,} and {manifest.counts.queries:,}")

    def _wrong(self, what: str) -> ShardError:
        return ShardError(f"{self._where}: {what}; make the index again with `taro shards index`")

    def _numbers(self, name: str) -> np.ndarray:
        """A column of numbers of the rows, 0 or NaN where it is null."""
        return filled(self._asked[name], math.nan if COLUMNS[name] == "float64" else 0)

    def clip_numbers(self, rows: np.ndarray) -> np.ndarray:
        """The place of each row's clip in `keys`."""
        return np.asarray(np.searchsorted(self._first, rows, side="right") - 1)

    def slice_of(self, key: str) -> int | None:
        """The slice that holds a clip; None where the set does not hold it."""
        at = self.keys.find(key)
        return None if at is None else int(self._clips["slice"][at].as_py())

    def rows(self, wanted: np.ndarray) -> list[IndexRow]:
        """Some rows by their numbers."""
        clips, numbers = from_numpy(self.clip_numbers(wanted)), from_numpy(wanted)
        columns = {**{name: column.take(clips) for name, column in self._clips.items()},
                   **{name: column.take(numbers) for name, column in self._asked.items()}}
        values = [columns[name].to_pylist() for name in COLUMNS]
        return [dict(zip(COLUMNS, row, strict=True)) for row in zip(*values, strict=True)]

    def rows_of(self, key: str) -> list[IndexRow]:
        """All rows of a clip; [] where the set does not hold it."""
        at = self.keys.find(key)
        return [] if at is None else self.rows(np.arange(self._first[at], self._first[at + 1]))

    def clips(self) -> Iterator[tuple[str, list[IndexRow]]]:
        """(key, rows) of every clip, in order of their keys."""
        for start in range(0, len(self.keys), BLOCK_ITEMS):
            bounds = self._first[start : start + BLOCK_ITEMS + 1]
            rows = self.rows(np.arange(bounds[0], bounds[-1]))
            for one, other in zip(bounds[:-1] - bounds[0], bounds[1:] - bounds[0], strict=True):
                yield rows[one]["key"], rows[one:other]

    def first_rows(self, rows: np.ndarray) -> np.ndarray:
        """The first row of the clip of each row."""
        return np.asarray(self._first[self.clip_numbers(rows)])

    def places(self, rows: np.ndarray) -> list[tuple[str, int]]:
        """(key of the clip, place in the clip) of some rows."""
        keys = self.keys.made(self.clip_numbers(rows))
        return list(zip(keys, (rows - self.first_rows(rows)).tolist(), strict=True))

    def check_record(self, clip: ClipRecord, slice_index: int, where: str) -> None:
        """Raises ShardError that opens with `where` unless a record is what the index says of it."""
        found, said = index_rows(clip, slice_index), self.rows_of(clip.key)
        if len(found) != len(said):
            raise ShardError(f"{where}: holds {len(clip.queries)} queries, {INDEX} has {len(said)} rows of it; "
                             "make the index again with `taro shards index`, or fetch the set again")
        for at, (one, other) in enumerate(zip(found, said, strict=True)):
            differ = [name for name in COLUMNS if not _same(name, one[name], other[name])]
            if differ:
                name = differ[0]
                raise ShardError(f"{where}: query {at} of the record says {name} {one[name]!r:.80}, {INDEX} says "
                                 f"{other[name]!r:.80}; make the index again with `taro shards index`, or fetch the "
                                 "set again")

    def queries(self) -> np.ndarray:
        """The numbers of all rows that are queries, in order."""
        return np.flatnonzero(self._is_query)

    @property
    def splits(self) -> list[str]:
        """The splits that queries name, ascending."""
        used = np.unique(self._split_codes())
        return sorted(self._asked["split"].dictionary.take(from_numpy(used[used >= 0])).to_pylist())

    def _split_codes(self) -> np.ndarray:
        """The split of each row as its place in the dictionary, -1 where it has none."""
        return filled(self._asked["split"].indices, -1)

    def ids(self) -> set[str]:
        """The ids of all queries."""
        return set(self._asked["id"].drop_null().to_pylist())

    def count_without(self, rows: np.ndarray, what: str) -> int:
        """Of some rows, how many have none of `what`: captions, paths_random, paths_overlap."""
        if what == "captions":
            return int((to_numpy(self._clips[what])[self.clip_numbers(rows)] == 0).sum())
        return int((self._numbers(what)[rows] == 0).sum())

    @property
    def captioned(self) -> frozenset[str]:
        """Keys of the clips that have captions."""
        clips = np.flatnonzero(to_numpy(self._clips["captions"]) > 0)
        return frozenset(self.keys.made(clips))

    def passing(self, rows: np.ndarray, filter_name: str, value: Any) -> np.ndarray:
        """Which of some rows a filter lets through. `filter_name`, `value`: a field of `Selection`."""
        chooses: dict[str, Any] = {"split": self._of_split, "difficulty": self._of_difficulty, "queries": self._named,
                                   "keys": self._of_clips, "text": self._saying}
        return np.asarray(chooses[filter_name](rows, value)).astype(bool)

    def _of_split(self, rows: np.ndarray, split: str) -> np.ndarray:
        codes = [at for at, name in enumerate(self._asked["split"].dictionary.to_pylist()) if name == split]
        return np.isin(self._split_codes()[rows], codes)

    def _of_difficulty(self, rows: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
        values = self._numbers("difficulty")[rows]
        return np.asarray((values >= ends[0]) & (values <= ends[1]))  # NaN, which is unknown, is in no range

    def _named(self, rows: np.ndarray, ids: Collection[str]) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = pa.array(sorted(ids), pa.string())
        return to_numpy(pc.is_in(self._asked["id"].take(from_numpy(rows)), value_set=wanted))

    def _of_clips(self, rows: np.ndarray, keys: Collection[str]) -> np.ndarray:
        found = [at for key in keys if (at := self.keys.find(key)) is not None]
        return np.isin(self.clip_numbers(rows), found)

    def _saying(self, rows: np.ndarray, pattern: str) -> np.ndarray:
        texts = self._asked["text"]
        return found_in(texts if len(rows) == len(texts) else texts.take(from_numpy(rows)), pattern)

    def slices(self, rows: np.ndarray) -> list[int]:
        """The slice in which each of some rows lies."""
        found: list[int] = to_numpy(self._clips["slice"])[self.clip_numbers(rows)].tolist()
        return found


def query_of_row(row: IndexRow, where: str) -> QueryRecord:
    """A row as a query, without its paths. Raises ShardError where the row does not fit the format."""
    text = {name: row[name] for name in ("id", "text", "split", "difficulty")}
    for name in ("windows_s", "unclipped_s"):
        text[name] = None if row[name] is None else parse_json(row[name].encode(), where, limit_bytes=100_000)
    return check_model(QueryRecord, text, where)


def _same(name: str, one: Any, other: Any) -> bool:
    if name != "time_error_s":
        return bool(one == other)
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=TIME_ERROR_S) or (math.isnan(one) and math.isnan(other))

