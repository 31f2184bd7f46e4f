"""`stats`: what is in a set, counted in one pass over its index, or the JSON of its clips; no tensor is read.

Histograms have fixed bins, so that two sets can be compared. `sample` draws single queries to look at.
Left out: judging; a set of strange numbers is still a set (`taro shards verify` says what is wrong with one)."""

from __future__ import annotations

import itertools
import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from taro.core.counting import OnProgress, counted
from taro.core.draws import rng
from taro.core.errors import ShardError
from taro.core.text import shortened
from taro.grounding.records import ClipRecord, QueryRecord
from taro.models.features import TIME_ERROR_S
from taro.shards.index import query_of_row
from taro.shards.index_file import IndexRow
from taro.shards.manifest import read_skipped
from taro.shards.reader import ShardSet

__all__ = ["SetStats", "ShownQuery", "Spread", "sample", "stats"]

SECONDS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
"""lower ends of the bins of a window's length; the last has no upper end"""
TENTHS = 10


@dataclass(frozen=True)
class Spread:
    """Least, middle, greatest, mean and sum of some numbers; all 0 where there are none."""

    least: float
    median: float
    greatest: float
    mean: float
    total: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of `values`."""
        if not values:
            return cls(0.0, 0.0, 0.0, 0.0, 0.0)
        return cls(min(values), statistics.median(values), max(values), statistics.fmean(values), sum(values))


@dataclass(frozen=True)
class SetStats:
    """Counts of a set. `window_s`: windows by length, label of the bin to count; `window_centre`, `window_share`:
    windows by where their middle lies in the clip and by how much of it they take, ten tenths each; `paths` by tag:
    candidate paths in all, and queries without any; `skipped`: by "stage: reason", None where pyarrow is missing;
    `time_error_s`: by how much the patches of a clip lie at most from the times that positions tell; `off_clips`: clips
    where that is over 1 s."""

    name: str
    clips: int
    queries: int
    windows: int
    captions: int
    splits: dict[str, int]
    clip_s: Spread
    windows_per_query: dict[int, int]
    window_length_s: Spread
    window_s: dict[str, int]
    window_centre: list[int]
    window_share: list[int]
    captions_per_clip: dict[int, int]
    queries_per_clip: dict[int, int]
    paths: dict[str, dict[str, int]]
    with_difficulty: int
    difficulty: Spread
    inputs: int
    skipped_rows: int
    skipped: dict[str, int] | None
    bytes: dict[str, int]
    time_error_s: Spread
    off_clips: int

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For a terminal."""
        text = [f"{self.name}: {self.clips} clips, {self.queries} queries, {self.windows} windows, {self.captions} "
                "captions",
                f"  rows: {self.inputs} = {self.queries} queries + {self.skipped_rows} skipped",
                "  splits: " + _counts(self.splits),
                f"  clip length: {_spread(self.clip_s, 's')}, {self.clip_s.total / 3600:.2f} h in all",
                f"  window length: {_spread(self.window_length_s, 's')}"]
        text += _bars("window length, s", self.window_s)
        text += _bars("middle of the window in the clip", _tenths(self.window_centre))
        text += _bars("share of the clip", _tenths(self.window_share))
        text += ["  windows per query: " + _counts(self.windows_per_query),
                 "  queries per clip: " + _counts(self.queries_per_clip),
                 "  captions per clip: " + _counts(self.captions_per_clip)]
        text += [f"  paths, {tag}: {one['paths']} in all, {one['queries_without']} queries without"
                 for tag, one in self.paths.items()]
        text += [f"  difficulty: {self.with_difficulty} queries have one"
                 + (f"; {_spread(self.difficulty, '')}" if self.with_difficulty else "")]
        text += [f"  times: patches lie up to {self.time_error_s.greatest:.2f} s from the times that positions tell"]
        if self.off_clips:
            text += [f"  warning: over {TIME_ERROR_S:g} s in {self.off_clips} clips of variable rate; models that read "
                     "times from positions (Qwen2.5-VL) are misled. Preprocess with sampling.policy=uniform-2fps-time"]
        text += ["  skipped: " + ("unknown, pyarrow is not installed" if self.skipped is None
                                  else _counts(self.skipped))]
        text += [f"  bytes, {kind}: {size:,}" for kind, size in self.bytes.items()]
        return text


class _Tally:
    """What a pass over the clips adds up; `add` takes the rows of one clip."""

    def __init__(self) -> None:
        self.clips = 0
        self.clip_s: list[float] = []
        self.off_s: list[float] = []
        self.lengths_s: list[float] = []
        self.difficulties: list[float] = []
        self.captions, self.queries, self.windows = Counter[int](), Counter[int](), Counter[int]()
        self.splits = Counter[str]()
        self.centre, self.share, self.bins = [0] * TENTHS, [0] * TENTHS, [0] * len(SECONDS)
        self.paths = {"random": Counter[str](), "overlap": Counter[str]()}

    def add(self, rows: Sequence[IndexRow], place: str) -> None:
        clip, asked = rows[0], [row for row in rows if row["id"] is not None]
        self.clips += 1
        self.clip_s.append(clip["duration_s"])
        self.off_s.append(clip["time_error_s"])
        self.captions[clip["captions"]] += 1
        self.queries[len(asked)] += 1
        for row in asked:
            self._query(row, query_of_row(row, place), clip["duration_s"])

    def _query(self, row: IndexRow, query: QueryRecord, duration_s: float) -> None:
        self.splits[query.split] += 1
        self.windows[len(query.windows)] += 1
        if query.difficulty is not None:
            self.difficulties.append(query.difficulty)
        for tag in ("random", "overlap"):
            self.paths[tag]["paths"] += row[f"paths_{tag}"]
            self.paths[tag]["queries_without"] += not row[f"paths_{tag}"]
        for window in query.windows:
            length_s = window.duration_s
            self.lengths_s.append(length_s)
            self.bins[max(bisect_right(SECONDS, length_s) - 1, 0)] += 1
            if duration_s > 0:
                self.centre[_tenth((window.start_s + window.end_s) / 2 / duration_s)] += 1
                self.share[_tenth(length_s / duration_s)] += 1


def stats(shard_set: ShardSet, *, progress: OnProgress | None = None) -> SetStats:
    """Counts everything: rows of the index, or of every KEY.json, which is read once and let go."""
    tally, every = _Tally(), shard_set.rows()
    for _ in counted(shard_set.keys, progress):
        tally.add(next(every)[1], shard_set.place)
    manifest = shard_set.manifest
    try:
        rows = read_skipped(shard_set.store)
        skipped: dict[str, int] | None = _ordered(Counter(f"{row['stage']}: {row['reason']}" for row in rows))
    except ImportError:
        skipped = None
    return SetStats(
        name=manifest.name, clips=tally.clips, queries=sum(tally.splits.values()), windows=len(tally.lengths_s),
        captions=sum(count * clips for count, clips in tally.captions.items()), splits=_ordered(tally.splits),
        clip_s=Spread.of(tally.clip_s), windows_per_query=_ordered(tally.windows),
        window_length_s=Spread.of(tally.lengths_s), window_s=dict(zip(_labels(), tally.bins, strict=True)),
        window_centre=tally.centre, window_share=tally.share, captions_per_clip=_ordered(tally.captions),
        queries_per_clip=_ordered(tally.queries),
        paths={tag: {name: count[name] for name in ("paths", "queries_without")} for tag, count in tally.paths.items()},
        with_difficulty=len(tally.difficulties), difficulty=Spread.of(tally.difficulties),
        inputs=manifest.counts.inputs, skipped_rows=manifest.counts.skipped, skipped=skipped,
        bytes={kind: sum(entry.bytes for entry in manifest.shards if entry.kind == kind) for kind in manifest.kinds},
        time_error_s=Spread.of(tally.off_s), off_clips=sum(off_s > TIME_ERROR_S for off_s in tally.off_s))


@dataclass(frozen=True)
class ShownQuery:
    """A query with its clip, to be looked at. `members`: bytes of each member of its record, by kind and extension."""

    key: str
    clip: ClipRecord
    query: QueryRecord
    members: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"key": self.key, "video": self.clip.video.path_hint, "duration_s": self.clip.duration_s,
                "query": self.query.model_dump(mode="json"), "members": self.members,
                "captions": [caption.model_dump(mode="json") for caption in self.clip.captions]}

    def lines(self) -> list[str]:
        """For a terminal."""
        clip, query = self.clip, self.query
        windows = ", ".join(f"{window.start_s:.2f}s to {window.end_s:.2f}s" for window in query.windows)
        text = [f"{self.key}  ({clip.video.path_hint}, {clip.duration_s:.2f} s, {len(clip.times_s)} frames)",
                f"  query {query.id} ({query.split}): {shortened(query.text)}",
                f"  windows: {windows or 'none'}"
                + ("" if query.difficulty is None else f"; difficulty {query.difficulty:g}")]
        text += [f"  caption {index}: {caption.start_s:.2f}s to {caption.end_s:.2f}s, {shortened(caption.text)}"
                 for index, caption in enumerate(clip.captions)]
        text += [f"  paths, {tag}: {len(paths)}" + (f", such as {shortened(str(paths[0]))}" if paths else "")
                 for tag, paths in (("random", query.paths.random), ("overlap", query.paths.overlap))]
        return [*text, "  bytes: " + ", ".join(f"{name} {size:,}" for name, size in self.members.items())]


def sample(shard_set: ShardSet, count: int, *, seed: int = 0) -> list[ShownQuery]:
    """`count` queries of the set (all, where it has fewer), drawn without repeat by `seed`, in the order of the set."""
    index = shard_set.index
    owners = [(key, at) for key in ([] if index is not None else shard_set.keys)
              if (listed := shard_set.listed("paths", key)) for at in range(listed.queries)]
    rows = None if index is None else index.queries()
    held = len(owners) if rows is None else len(rows)
    if not held:
        raise ShardError(f"{shard_set.place}: no query to show; the set holds {len(shard_set.keys)} clips and "
                         "no query")
    drawn = np.sort(rng("shards-sample", seed).permutation(held)[:count])
    shown = []
    for key, at in [owners[one] for one in drawn] if index is None or rows is None else index.places(rows[drawn]):
        clip = shard_set.clip(key)
        members = {f"{kind} .{member.ext}": member.size for kind in shard_set.manifest.kinds
                   if (listed := shard_set.listed(kind, key)) for member in listed.members}
        shown.append(ShownQuery(key, clip, clip.queries[at], members))
    return shown


def _tenth(share: float) -> int:
    return min(int(min(max(share, 0.0), 1.0) * TENTHS), TENTHS - 1)  # a share of a clip of 5e-324 s may be infinite


def _labels() -> list[str]:
    return [*(f"{low:g}-{high:g}" for low, high in itertools.pairwise(SECONDS)), f"{SECONDS[-1]:g}-"]


def _tenths(counts: Iterable[int]) -> dict[str, int]:
    return {f"{at / TENTHS:.1f}-{(at + 1) / TENTHS:.1f}": count for at, count in enumerate(counts)}


def _ordered(counts: Counter[Any]) -> dict[Any, int]:
    return {name: counts[name] for name in sorted(counts)}


def _counts(counts: dict[Any, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items()) or "none"


def _spread(spread: Spread, unit: str) -> str:
    return (f"{spread.least:.2f}{unit} to {spread.greatest:.2f}{unit}, median {spread.median:.2f}{unit}, mean "
            f"{spread.mean:.2f}{unit}")


def _bars(title: str, counts: dict[str, int]) -> list[str]:
    """A histogram as text: the longest bar has 40 marks, a bin that is not empty at least one."""
    most = max(counts.values(), default=0)
    wide = max(len(label) for label in counts)
    return [f"  {title}:", *(f"    {label:>{wide}} {count:>7} {'#' * (-(-40 * count // most) if most else 0)}".rstrip()
                             for label, count in counts.items())]
