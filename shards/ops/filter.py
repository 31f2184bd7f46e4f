"""Parts of a set as sets of their own: `filter` keeps what is asked for, `split` cuts a set into named parts.

A clip stays where a query of it stays, with all its captions; where only clips are chosen, clips without a query stay
too. Fractions are cut between videos, never through one, so no video is in two parts. A part carries the source's
skipped rows and lists every query that went elsewhere, so the parts of a split, merged, are the set again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taro.core.draws import rng
from taro.core.errors import ConfigError, ShardError
from taro.grounding.records import ClipRecord, QueryRecord
from taro.shards.ops.rewrite import (
    SLICE_BYTES,
    Derived,
    Piece,
    derived_steps,
    left_out_row,
    new_folder,
    source_facts,
    source_skipped,
    write_derived,
)
from taro.shards.reader import ShardSet

__all__ = ["Selection", "filter_set", "named", "split_by_fraction", "split_by_split"]

PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


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

    def as_dict(self) -> dict[str, Any]:
        """For the manifest: what was asked for; lists of names as their number."""
        told = {"split": self.split, "difficulty": self.difficulty and [end if math.isfinite(end) else None
                                                                         for end in self.difficulty],
                "queries": None if self.queries is None else len(self.queries),
                "keys": None if self.keys is None else len(self.keys), "text": self.text}
        return {name: value for name, value in told.items() if value is not None}


def named(words: Iterable[str]) -> frozenset[str]:
    """Names as filters take them: each a name, or @FILE with one a line. Raises ConfigError.

    >>> sorted(named(["b", "a"]))
    ['a', 'b']
    """
    names: list[str] = []
    for word in words:
        try:
            listed = Path(word[1:]).read_text(encoding="utf-8", errors="replace") if word.startswith("@") else word
        except OSError as error:
            raise ConfigError(f"{word}: expected a file with one name a line after the @, got none that can be read "
                              f"({error.strerror})") from None
        names += listed.split("\n")
    return frozenset(name.rstrip("\r") for name in names if name.strip())


def filter_set(source: ShardSet, out: str | Path, selection: Selection, *, slice_bytes: int = SLICE_BYTES) -> Derived:
    """Writes the queries that `selection` keeps, and their clips, as a set at `out`."""
    if not selection.as_dict():
        raise ConfigError("nothing to filter by; expected a split, a difficulty, queries, keys or a text "
                          "(a plain copy is `cp -r`)")
    _known("key", selection.keys, source.keys, source)
    if selection.queries is not None:
        _known("query", selection.queries,
               {query.id for key in source.keys for query in source.clip(key).queries}, source)
    step = {"by": "filter", **selection.as_dict()}
    with new_folder(out, [source]) as root:
        made = _part(source, root, selection.keeps, selection.keeps_empty, step, "filter", slice_bytes)
    return Derived(Path(out), made.clips, made.queries, made.skipped)


def split_by_split(source: ShardSet, out: str | Path, *, slice_bytes: int = SLICE_BYTES) -> dict[str, Derived]:
    """One set `out/NAME` for each split that queries name."""
    names = sorted({query.split for key in source.keys for query in source.clip(key).queries})
    if not names:
        raise ShardError(f"{source.place}: no query, so no split to cut it by")
    made = {}
    with new_folder(out, [source]) as root:
        for name in _checked(names):
            selection = Selection(split=name)
            made[name] = _part(source, root / name, selection.keeps, selection.keeps_empty,
                               {"by": "split", "part": name}, "split by split", slice_bytes)
    return {name: Derived(Path(out) / name, one.clips, one.queries, one.skipped) for name, one in made.items()}


def split_by_fraction(source: ShardSet, out: str | Path, fractions: Mapping[str, float], *, seed: int = 0,
                      slice_bytes: int = SLICE_BYTES) -> dict[str, Derived]:
    """One set `out/NAME` for each fraction of the videos; who goes where is drawn by `seed` from the videos' digests.

    The splits that queries name stay as they are.
    """
    _checked(sorted(fractions))
    if len(fractions) < 2 or not all(0 < share < 1 for share in fractions.values()) or not math.isclose(
            sum(fractions.values()), 1, abs_tol=1e-6):
        raise ConfigError(f"fractions {dict(fractions)}: expected two or more, each over 0, that add up to 1, such as "
                          "train=0.9,val=0.1")
    videos = sorted({source.clip(key).video.sha256 for key in source.keys})
    order = [videos[index] for index in rng("shards-split", seed).permutation(len(videos))]
    owner: dict[str, str] = {}
    done = 0.0
    for name, share in fractions.items():
        begin, done = round(done * len(order)), done + share
        owner |= dict.fromkeys(order[begin : round(done * len(order))], name)
    lost = [name for name in fractions if name not in owner.values()]
    if lost:
        raise ConfigError(f"fractions {dict(fractions)}: of {len(videos)} videos none is left for {', '.join(lost)}; "
                          "make that fraction larger")
    parts: dict[str, str] = {key: owner[source.clip(key).video.sha256] for key in source.keys}
    made = {}
    with new_folder(out, [source]) as root:
        for name in fractions:
            def mine(key: str, _: QueryRecord | None = None, name: str = name) -> bool:
                return parts[key] == name
            step = {"by": "fraction", "part": name, "fractions": dict(fractions), "seed": seed}
            made[name] = _part(source, root / name, mine, mine, step, "split by fraction", slice_bytes)
    return {name: Derived(Path(out) / name, one.clips, one.queries, one.skipped) for name, one in made.items()}


def _part(source: ShardSet, root: Path, keeps: Callable[[str, QueryRecord], bool],
          keeps_empty: Callable[[str], bool], step: dict[str, Any], detail: str, slice_bytes: int) -> Derived:
    """Writes one part into `root`."""
    manifest = source.manifest
    skipped = source_skipped(source)

    def pieces() -> Iterator[Piece]:
        for key in source.keys:
            clip = source.clip(key)
            kept = [query for query in clip.queries if keeps(key, query)]
            skipped.extend(left_out_row(key, clip.video.path_hint, query, detail) for query in clip.queries
                           if not keeps(key, query))
            if kept or (not clip.queries and keeps_empty(key)):
                yield Piece(_with(clip, kept), source)

    config = {**manifest.config, "derived": [*derived_steps(manifest), {**step, "source": source_facts(source)}]}
    return write_derived(root, pieces(), manifest.kinds, skipped, slice_bytes=slice_bytes, config=config,
                         **manifest.model_dump(include={"name", "captioner", "versions"}),
                         provenance=manifest.provenance, encoders=manifest.encoders,
                         clip_encoders=manifest.clip_encoders)


def _with(clip: ClipRecord, queries: list[QueryRecord]) -> ClipRecord:
    return clip if len(queries) == len(clip.queries) else clip.model_copy(update={"queries": queries})


def _known(what: str, wanted: Collection[str] | None, held: Collection[str], source: ShardSet) -> None:
    lost = sorted(set(wanted or ()) - set(held))
    if lost:
        raise ShardError(f"{source.place}: holds no {what} {', '.join(name[:120] for name in lost[:5])}"
                         f"{f' and {len(lost) - 5} more' if len(lost) > 5 else ''}; `taro shards sample` shows some")


def _checked(names: list[str]) -> list[str]:
    """Names that are safe as folders, and stay apart where case does not count."""
    for name in names:
        if PART.fullmatch(name) is None or name.endswith("."):
            raise ShardError(f"{name[:120]!r} cannot name a folder; expected at most 100 letters, digits, _ - and dots "
                             "(use `taro shards filter --split NAME` with a folder of your choice)")
    if len({name.lower() for name in names}) != len(names):
        raise ShardError(f"parts {', '.join(names)}: two differ in case alone and would be one folder on some disks; "
                         "use `taro shards filter --split NAME`")
    return names
