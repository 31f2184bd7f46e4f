"""Queries of a set, as whoever trains, scores or counts takes them: a reference names a clip and a query of it.

Of a set without an index, a reference holds the whole query. Of one with an index it knows what the index says, and
reads the record when its `query` is asked for; a million references stay rows of the index until they are taken out of
their `IndexedQueries`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from taro.grounding.records import QueryRecord
from taro.shards.format import INDEX, ShardEntry
from taro.shards.index import Index, query_of_row
from taro.shards.lazy import LazySequence

__all__ = ["IndexedQueries", "QueryRef"]


class QueryRef:
    """A query and the key of its clip. `known`: the query without its paths, which is at hand at once."""

    __slots__ = ("_place", "_read", "key", "known")

    def __init__(self, key: str, query: QueryRecord, *, place: int | None = None,
                 read: Callable[[str, int], QueryRecord] | None = None) -> None:
        """`place`: of the query in its clip, and `read`, which reads it from there, where `query` lacks its paths."""
        self.key, self.known, self._place, self._read = key, query, place, read

    @property
    def query(self) -> QueryRecord:
        """The query, whole; of a set with an index it is read from its record, once."""
        if self._read is not None:
            assert self._place is not None
            self.known, self._read = self._read(self.key, self._place), None
        return self.known

    def of_clip(self, queries: Sequence[QueryRecord]) -> QueryRecord:
        """The query, whole, among those of its clip's record."""
        return self.known if self._read is None or self._place is None else queries[self._place]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, QueryRef) and self.key == other.key and self.query == other.query

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        text, one = self.known.text, self.known
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        return f"QueryRef({self.key}/{one.id}, {one.split}: {shown!r})"


class IndexedQueries(LazySequence[QueryRef]):
    """Rows of an index as references. `held`: the index, `rows`: their numbers in it."""

    def __init__(self, index: Index, rows: np.ndarray, read: Callable[[str, int], QueryRecord], where: str) -> None:
        self.held, self.rows, self._read, self._where = index, rows, read, where

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, rows: np.ndarray) -> IndexedQueries:
        """The same of other rows."""
        return IndexedQueries(self.held, rows, self._read, self._where)

    def take(self, places: np.ndarray | Sequence[int]) -> IndexedQueries:
        """Those at some places."""
        return self.of(self.rows[np.asarray(places, dtype=np.int64)])

    def made(self, places: np.ndarray) -> list[QueryRef]:
        """The references at some places."""
        rows = self.rows[places]
        within = rows - self.held.first_rows(rows)
        return [QueryRef(row["key"], query_of_row(row, f"{self._where}: row {number:,} of {INDEX}"), place=int(place),
                         read=self._read)
                for number, row, place in zip(rows, self.held.rows(rows), within, strict=True)]

    @property
    def slices(self) -> list[int]:
        """The slice in which each lies."""
        return self.held.slices(self.rows)

    def digest(self, shards: Sequence[ShardEntry]) -> str:
        """sha256 of the rows and of the shards that hold their records."""
        digest = hashlib.sha256(self.held.sha256.encode() + self.rows.astype("<i8").tobytes())
        for one in shards:
            digest.update(f"{one.kind} {one.index} {one.sha256}\n".encode())
        return digest.hexdigest()
