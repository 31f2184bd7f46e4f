"""`diff`: two sets compared by the digests that their sidecars give; no tensor is read.

How a set is cut into slices, what its manifest says about itself, and skipped rows are no difference; what training
would see is: clips, queries, windows, captions, paths, features. JSON is read, a clip of each set at a time, only
where its digest differs. A query is named by its key and id; where an id comes twice in a clip, by its turn too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from taro.core.counting import OnProgress, counted
from taro.grounding.records import ClipRecord, QueryRecord
from taro.shards.reader import ShardSet

__all__ = ["SetDiff", "diff", "digests", "named_queries"]

SHOWN = 10
_A_CLIP = ("video", "clip", "times_s")


@dataclass
class SetDiff:
    """What differs between sets A and B, by name: keys, `KEY/ID` of queries, `KIND KEY` of records in both."""

    a: str
    b: str
    kinds_only_a: list[str] = field(default_factory=list)
    kinds_only_b: list[str] = field(default_factory=list)
    clips_only_a: list[str] = field(default_factory=list)
    clips_only_b: list[str] = field(default_factory=list)
    queries_only_a: list[str] = field(default_factory=list)
    queries_only_b: list[str] = field(default_factory=list)
    windows: list[str] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    """queries with other text, split, difficulty or paths"""
    captions: list[str] = field(default_factory=list)
    clips: list[str] = field(default_factory=list)
    """clips with other video facts, cut or frame times"""
    thumbnails: list[str] = field(default_factory=list)
    features: list[str] = field(default_factory=list)
    """records of the tensor kinds that both sets have"""
    same: int = 0
    """clips that are the same in all that both sets have"""

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return not any(names for _, names in self._parts())

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "ok": self.ok}

    def lines(self) -> list[str]:
        """For a terminal: every kind of difference, with its first names."""
        found = [f"{title}: {len(names)} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
                 for title, names in self._parts() if names]
        return [*found, f"{self.same} clips are the same in both" + ("" if found else "; nothing differs")]

    def _parts(self) -> list[tuple[str, list[str]]]:
        return [(f"kinds only in {self.a}", self.kinds_only_a), (f"kinds only in {self.b}", self.kinds_only_b),
                (f"clips only in {self.a}", self.clips_only_a), (f"clips only in {self.b}", self.clips_only_b),
                (f"queries only in {self.a}", self.queries_only_a), (f"queries only in {self.b}", self.queries_only_b),
                ("queries whose windows differ", self.windows),
                ("queries whose text, split, difficulty or paths differ", self.queries),
                ("clips whose captions differ", self.captions),
                ("clips whose video, cut or frame times differ", self.clips),
                ("contact sheets that differ", self.thumbnails), ("features that differ", self.features)]


def diff(a: ShardSet, b: ShardSet, *, progress: OnProgress | None = None) -> SetDiff:
    """Compares two sets. The queries of a clip that only one set has count as queries of that set alone."""
    found = SetDiff(a.place, b.place)
    keys_a, keys_b = set(a.keys), set(b.keys)
    found.kinds_only_a = sorted(set(a.manifest.kinds) - set(b.manifest.kinds))
    found.kinds_only_b = sorted(set(b.manifest.kinds) - set(a.manifest.kinds))
    found.clips_only_a, found.clips_only_b = sorted(keys_a - keys_b), sorted(keys_b - keys_a)
    for one, keys, queries in ((a, found.clips_only_a, found.queries_only_a),
                               (b, found.clips_only_b, found.queries_only_b)):
        for key in keys:
            queries += [_label(key, name) for name in named_queries(one.clip(key))]
    kinds = [kind for kind in a.manifest.kinds if kind in b.manifest.kinds and kind != "paths"]
    for key in counted(sorted(keys_a & keys_b), progress):
        before = sum(len(names) for _, names in found._parts())
        found.features += [f"{kind} {key}" for kind in kinds if digests(a, kind, key) != digests(b, kind, key)]
        paths_a, paths_b = digests(a, "paths", key), digests(b, "paths", key)
        if paths_a.get("jpg") != paths_b.get("jpg"):
            found.thumbnails.append(key)
        if paths_a["json"] != paths_b["json"]:
            _records(a.clip(key), b.clip(key), found)
        found.same += before == sum(len(names) for _, names in found._parts())
    return found


def _records(a: ClipRecord, b: ClipRecord, found: SetDiff) -> None:
    """What differs between two JSONs of one clip."""
    if any(getattr(a, name) != getattr(b, name) for name in _A_CLIP):
        found.clips.append(a.key)
    if a.captions != b.captions:
        found.captions.append(a.key)
    queries_a, queries_b = named_queries(a), named_queries(b)
    found.queries_only_a += [_label(a.key, name) for name in queries_a if name not in queries_b]
    found.queries_only_b += [_label(a.key, name) for name in queries_b if name not in queries_a]
    for name, one in queries_a.items():
        other = queries_b.get(name)
        if other is None:
            continue
        if one.windows_s != other.windows_s:
            found.windows.append(_label(a.key, name))
        if one != other.model_copy(update={"windows_s": one.windows_s}):
            found.queries.append(_label(a.key, name))


def named_queries(clip: ClipRecord) -> dict[tuple[str, int], QueryRecord]:
    """Queries of a clip by (id, turn): the turn is 0 unless an id comes twice."""
    named: dict[tuple[str, int], QueryRecord] = {}
    turns: dict[str, int] = {}
    for query in clip.queries:
        turn = turns.get(query.id, 0)
        turns[query.id] = turn + 1
        named[query.id, turn] = query
    return named


def digests(shard_set: ShardSet, kind: str, key: str) -> Mapping[str, str]:
    """sha256 of a record's members by extension, as the sidecar has them; {} where the kind lacks the record."""
    listed = shard_set.listed(kind, key)
    return {} if listed is None else {member.ext: member.sha256 for member in listed.members}


def _label(key: str, name: tuple[str, int]) -> str:
    return f"{key}/{name[0]}" + (f" (turn {name[1] + 1})" if name[1] else "")
