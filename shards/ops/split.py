"""`split`: a set cut into named parts, each a set of its own.

By the splits that queries name, or by fractions of the videos. Fractions are cut between videos, never through one, so
no video is in two parts. A part lists every query that went elsewhere as skipped, so the parts of a split, merged, are
the set again."""

from __future__ import annotations

import itertools
import math
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from taro.core.counting import OnProgress
from taro.core.draws import rng
from taro.core.errors import ConfigError, ShardError
from taro.grounding.records import QueryRecord
from taro.shards.ops.filter import Selection
from taro.shards.ops.rewrite import SLICE_BYTES, Derived, Part, Writer, derive, write_part
from taro.shards.reader import ShardSet
from taro.shards.skipped import Row

__all__ = ["split_by_fraction", "split_by_split"]

PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def split_by_split(source: ShardSet, out: str | Path, *, slice_bytes: int = SLICE_BYTES,
                   progress: OnProgress | None = None) -> dict[str, Derived]:
    """One set `out/NAME` for each split that queries name."""
    names = source.splits
    if not names:
        raise ShardError(f"{source.place}: no query, so no split to cut it by")
    parts = {}
    for name in _checked(names):
        parts[name] = Selection(split=name).part(source, {"by": "split", "part": name}, "split by split")
    return _cut(source, out, parts, slice_bytes=slice_bytes, progress=progress)


def split_by_fraction(source: ShardSet, out: str | Path, fractions: Mapping[str, float], *, seed: int = 0,
                      slice_bytes: int = SLICE_BYTES, progress: OnProgress | None = None) -> dict[str, Derived]:
    """One set `out/NAME` for each fraction of the videos; who goes where is drawn by `seed` from the videos' digests.

    The splits that queries name stay as they are. A video that could not be read goes by its name: its misses count in
    one part alone."""
    _checked(sorted(fractions))
    if len(fractions) < 2 or not all(0 < share < 1 for share in fractions.values()) or not math.isclose(
            sum(fractions.values()), 1, abs_tol=1e-6):
        raise ConfigError(f"fractions {dict(fractions)}: expected two or more, each over 0, that add up to 1, such as "
                          "train=0.9,val=0.1")
    digests = {clip.key: clip.video.sha256 for clip in source}
    videos = sorted(set(digests.values()))
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
    where: dict[str, str] = {key: owner[sha256] for key, sha256 in digests.items()}
    parts = {}
    for name in fractions:
        def mine(key: str, _: QueryRecord | None = None, name: str = name) -> bool:
            return where[key] == name
        def mine_too(row: Row, name: str = name) -> bool:
            return (where.get(row["key"]) or _drawn(row["video"], fractions, seed)) == name
        step = {"by": "fraction", "part": name, "fractions": dict(fractions), "seed": seed}
        parts[name] = Part(mine, mine_too, mine, step, "split by fraction")
    return _cut(source, out, parts, slice_bytes=slice_bytes, progress=progress)


def _drawn(video: str, fractions: Mapping[str, float], seed: int) -> str:
    """The part of a video that could not be read, so has no digest: drawn by its name."""
    at = bisect_right(list(itertools.accumulate(fractions.values())), float(rng("shards-split", seed, video).random()))
    return list(fractions)[min(at, len(fractions) - 1)]


def _cut(source: ShardSet, out: str | Path, parts: Mapping[str, Part], *, slice_bytes: int,
         progress: OnProgress | None) -> dict[str, Derived]:
    """Writes each part as a set `out/NAME`, all of them or none."""

    def write(root: Path, writer: Writer) -> dict[str, Derived]:
        return {name: write_part(root / name, source, part, writer, slice_bytes=slice_bytes, progress=progress)
                for name, part in parts.items()}

    made = derive(out, [source], write)
    return {name: replace(one, root=Path(out) / name) for name, one in made.items()}


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
