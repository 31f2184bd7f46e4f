"""`filter`: the queries that are asked for, and their clips, as a set of their own.

A clip stays where a query of it stays, with all its captions; where only clips are chosen, clips without a query stay
too."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from taro.core.counting import OnProgress
from taro.core.errors import ConfigError, ShardError
from taro.core.text_files import read_text
from taro.grounding.records import QueryRecord
from taro.shards.index import Index
from taro.shards.ops.rewrite import SLICE_BYTES, Derived, Part, derive, write_part
from taro.shards.queries import IndexedQueries, QueryRef
from taro.shards.reader import ShardSet
from taro.shards.skipped import is_miss, missed_query, skipped_rows

__all__ = ["Selection", "choose", "filter_set", "named"]

MAX_LIST_BYTES = 64 << 20
"""of a file of names"""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """What to keep; None: no matter. `difficulty`: in [low, high], a query without one is left out then; `queries`:
    ids; `keys`: of clips; `text`: a regular expression that is found in the query's text, capitals or not."""

    split: str | None = None
    difficulty: tuple[float, float] | None = None
    queries: frozenset[str] | None = None
    keys: frozenset[str] | None = None
    text: str | None = None

    def keeps(self, key: str, query: QueryRecord) -> bool:
        """Whether a query stays."""
        return self.left_out_by(key, query) is None

    def left_out_by(self, key: str, query: QueryRecord) -> str | None:
        """The first filter, in the order of `as_dict`, that leaves a query out; None where it stays."""
        low, high = self.difficulty or (-math.inf, math.inf)
        passed = {
            "split": self.split is None or query.split == self.split,
            "difficulty": self.difficulty is None or (query.difficulty is not None and low <= query.difficulty <= high),
            "queries": self.queries is None or query.id in self.queries,
            "keys": self.keys is None or key in self.keys,
            "text": self.text is None or re.search(self.text, query.text, re.IGNORECASE) is not None,
        }
        return next((name for name, ok in passed.items() if not ok), None)

    def keeps_empty(self, key: str) -> bool:
        """Whether a clip that never had a query stays."""
        return (self.split is None and self.difficulty is None and self.queries is None and self.text is None
                and (self.keys is None or key in self.keys))

    def check(self, source: ShardSet) -> None:
        """Raises ShardError where the set does not hold a key or a query id that is asked for."""
        _known("key", self.keys, source.keys, source)
        if self.queries is not None:
            _known("query", self.queries, source.query_ids, source)

    def part(self, source: ShardSet, step: dict[str, Any], detail: str) -> Part:
        """What it chooses of a set. Of a miss the text and the difficulty are unknown in a set of format 1.0: a filter
        by them leaves it out, and that is said."""
        made_with = source.manifest.provenance.split
        unknown = [row for row in skipped_rows(source) if is_miss(row) and not row["query"]]
        if unknown and (self.text is not None or self.difficulty is not None):
            log.warning("%s: %s misses do not say their query (the set is of format 1.0), so a filter by text or "
                        "difficulty leaves them out of every score; preprocess the set again to keep them",
                        source.place, f"{len(unknown):,}")
        return Part(self.keeps, lambda row: self.keeps(row["key"], missed_query(row, made_with)), self.keeps_empty,
                    step, detail)

    def as_dict(self) -> dict[str, Any]:
        """For the manifest: what was asked for; lists of names as their number."""
        asked = {"split": self.split, "difficulty": self.difficulty and [end if math.isfinite(end) else None
                                                                          for end in self.difficulty],
                 "queries": None if self.queries is None else len(self.queries),
                 "keys": None if self.keys is None else len(self.keys), "text": self.text}
        return {name: value for name, value in asked.items() if value is not None}


def choose(source: ShardSet, selection: Selection) -> tuple[Sequence[QueryRef], dict[str, int]]:
    """The queries of a set that a selection keeps, in order, and how many each of its filters leaves out; by the index
    where the set has one."""
    every, left_out = source.queries(), Counter[str]()
    if not isinstance(every, IndexedQueries):
        kept = []
        for ref in every:
            why = selection.left_out_by(ref.key, ref.known)
            left_out.update([why] if why else [])
            kept += [ref] if why is None else []
        return kept, dict(left_out)
    rows = every.rows
    for name in Index.FILTERS:
        value = getattr(selection, name)
        if value is not None:
            passing = every.held.passing(rows, name, value)
            left_out.update({name: int((~passing).sum())} if not passing.all() else {})
            rows = rows[passing]
    return every.of(rows), dict(left_out)


def named(words: Iterable[str]) -> frozenset[str]:
    """Names as filters take them: each a name, or @FILE with one a line. Raises ConfigError.

    >>> sorted(named(["b", "a"]))
    ['a', 'b']
    """
    names: list[str] = []
    for word in words:
        listed = [word]
        if word.startswith("@"):
            if not Path(word[1:]).is_file():
                raise ConfigError(f"{word}: expected a file with one name a line after the @, got none")
            listed = read_text(Path(word[1:]), error=ConfigError, limit_bytes=MAX_LIST_BYTES).split("\n")
        names += listed
    return frozenset(name.rstrip("\r") for name in names if name.strip())


def filter_set(source: ShardSet, out: str | Path, selection: Selection, *, slice_bytes: int = SLICE_BYTES,
               progress: OnProgress | None = None) -> Derived:
    """Writes the queries that `selection` keeps, and their clips, as a set at `out`."""
    if not selection.as_dict():
        raise ConfigError("nothing to filter by; expected a split, a difficulty, queries, keys or a text "
                          "(a plain copy is `cp -r`)")
    selection.check(source)
    part = selection.part(source, {"by": "filter", **selection.as_dict()}, "filter")
    made = derive(out, [source], lambda root, write: write_part(root, source, part, write, slice_bytes=slice_bytes,
                                                                progress=progress))
    return replace(made, root=Path(out))


def _known(what: str, wanted: Collection[str] | None, held: Collection[str], source: ShardSet) -> None:
    lost = sorted(set(wanted or ()) - set(held))
    if lost:
        raise ShardError(f"{source.place}: holds no {what} {', '.join(name[:120] for name in lost[:5])}"
                         f"{f' and {len(lost) - 5} more' if len(lost) > 5 else ''}; `taro shards sample` shows some")
