"""What the rows of skipped.parquet mean to a score: which are misses, of which split, and which are one query.

A row is a *miss* where its query was fine and its clip could not be made: it counts as a wrong answer in every
evaluation that asks for its split. Rows that the linter dropped, or whose windows lie outside of the real video, were
no queries; rows with stage "filter" are queries that a derived set left out. What is asked of a query (its split, id,
text, difficulty) is asked of a miss too, so that a derived set's scores are those of the same queries in the whole set.
Sets of format 1.0 do not say split, text and windows of a row; there the split is the one that the set was made with.

Left out: reading the table (`taro.shards.manifest`)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol

from taro.core.errors import ShardError
from taro.core.json import parse_json
from taro.grounding.moment import Moment
from taro.grounding.records import QueryRecord
from taro.shards.format import SKIPPED, Manifest
from taro.shards.manifest import SKIPPED_COLUMNS, read_skipped
from taro.shards.store import Store

__all__ = ["NOT_MISSED", "OpenSet", "Row", "is_miss", "miss_name", "missed_query", "missed_rows", "row_windows",
           "skipped_rows"]

log = logging.getLogger(__name__)

Row = dict[str, Any]
NOT_MISSED = {"annotations", "windows", "filter"}
"""stages of rows that are no misses"""
MAX_WINDOWS_BYTES = 100_000
MAX_WINDOWS = 200
MAX_TIME_S = 1e12

_TYPES: dict[str, tuple[type, ...]] = {"line": (int,), "transient": (bool,), "duration_s": (float, type(None)),
                                       "difficulty": (float, type(None))}


class OpenSet(Protocol):
    """What is needed of an open set (`taro.shards.reader.ShardSet`) to read its skipped rows."""

    manifest: Manifest
    store: Store

    @property
    def place(self) -> str:
        """How its user names it."""


def skipped_rows(shard_set: OpenSet) -> list[Row]:
    """Rows of a set's skipped.parquet, checked against its manifest and the format's types."""
    root, counted = shard_set.place, shard_set.manifest.counts.skipped
    try:
        rows = read_skipped(shard_set.store)
    except ImportError:
        raise ShardError(f"{root}: {SKIPPED} is read and written with pyarrow, which is not installed; "
                         "`pip install pyarrow`") from None
    if len(rows) != counted:
        raise ShardError(f"{root}: {len(rows)} rows in {SKIPPED}, the manifest counts {counted}, so misses cannot be "
                         "counted; fetch the file again, or run `taro preprocess` again")
    for row in rows:
        wrong = [name for name in SKIPPED_COLUMNS if type(row[name]) not in _TYPES.get(name, (str,))]
        if wrong:
            expected = _TYPES.get(wrong[0], (str,))[0].__name__
            raise ShardError(f"{root}: {SKIPPED} holds {row[wrong[0]]!r:.80} as {wrong[0]}; expected {expected}; the "
                             "file is damaged, fetch it again")
    return rows


def is_miss(row: Mapping[str, Any]) -> bool:
    """Whether a row is a query without an answer."""
    return row["stage"] not in NOT_MISSED


def missed_rows(shard_set: OpenSet, split: str | None = None) -> list[Row]:
    """The misses of a set, or of one of its splits. Nothing is read where the set skipped no row."""
    if not shard_set.manifest.counts.skipped:
        return []
    rows = [row for row in skipped_rows(shard_set) if is_miss(row)]
    made_with = shard_set.manifest.provenance.split
    if split is not None and (unnamed := sum(not row["split"] for row in rows)):
        log.warning("%s: %s misses do not say their split (the set is of format 1.0): all are counted in %s, with "
                    "which it was made; preprocess it again for the true ones", shard_set.place, f"{unnamed:,}",
                    made_with)
    return [row for row in rows if split is None or (row["split"] or made_with) == split]


def missed_query(row: Mapping[str, Any], made_with: str) -> QueryRecord:
    """A miss as a query, for the filters that choose queries. `made_with`: its split where the row says none."""
    return QueryRecord.model_construct(id=row["row_id"], text=row["query"], split=row["split"] or made_with,
                                       windows_s=[], difficulty=row["difficulty"])


def row_windows(row: Mapping[str, Any]) -> tuple[Moment, ...]:
    """A row's windows as annotated, not clipped; () where the row says none. Raises ShardError."""
    where = f"{SKIPPED}: row {row['row_id']!r:.80}"
    found = parse_json(row["windows_s"].encode(), where, limit_bytes=MAX_WINDOWS_BYTES) if row["windows_s"] else []
    if not isinstance(found, list) or len(found) > MAX_WINDOWS or not all(map(_is_window, found)):
        raise ShardError(f"{where}: windows {row['windows_s'][:60]!r}; expected at most {MAX_WINDOWS} of [start, end] "
                         "in seconds; the file is damaged, fetch it again")
    return tuple(Moment(float(start_s), float(end_s)) for start_s, end_s in found)


def _is_window(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(
        type(end) in (int, float) and abs(end) <= MAX_TIME_S for end in value)


def miss_name(query_id: str, text: str, split: str, video: str) -> tuple[str, ...]:
    """What names a query in every set that was made of its annotations, whether its clip could be made there or not:
    the video's name counts without folder and extension."""
    return query_id, text, split, video.rpartition("/")[2].partition(".")[0]
