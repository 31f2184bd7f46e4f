"""Several sets as one: `merge` copies every clip once and unites the queries of clips that come twice.

All sets must hold the same kinds, made by the same encoders. A clip that comes twice must be the same clip (video, cut,
frame times, captions, tensors), a query that comes twice the same query; anything else is refused by name, since which
one to believe is not ours to say. Frame variants come along where all sets hold the same for the clips
that they share; else they are left out, and that is said: a set is whole without. The result does not depend on the
order in which the sets are named, to the byte.

The ledger: a query or a skipped row that comes twice counts once; a row that a part left out ("filter", see
rewrite.py) goes where another part holds its query, and a miss where another set holds its clip. So the inputs of all
sets are the inputs of the new one and what came repeatedly, which its manifest says."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from taro.core.counting import OnProgress, counted
from taro.core.errors import ConfigError, ShardError
from taro.grounding.records import ClipRecord
from taro.models.features import EncoderFingerprint
from taro.shards.encoders import encoder_numbers
from taro.shards.format import Manifest, Provenance
from taro.shards.manifest import SKIPPED_COLUMNS
from taro.shards.ops.diff import digests, named_queries
from taro.shards.ops.rewrite import (
    SLICE_BYTES,
    Derived,
    Piece,
    Writer,
    derive,
    derived_steps,
    source_facts,
)
from taro.shards.reader import ShardSet
from taro.shards.skipped import NOT_MISSED, Row, is_miss, miss_name, skipped_rows

__all__ = ["Merged", "merge_sets"]


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged set; `clips_twice`: clips that several sets held; `source_inputs` of all sets = inputs + `repeated`."""

    made: Derived
    clips_twice: int
    source_inputs: int
    left_out: tuple[str, ...] = ()
    """kinds of frame variants that some sets hold and the merged one does not"""

    @property
    def repeated(self) -> int:
        """Rows that came in several sets, and rows that one set left out and another holds."""
        return self.source_inputs - self.made.inputs


def merge_sets(sources: Sequence[ShardSet], out: str | Path, *, slice_bytes: int = SLICE_BYTES,
               progress: OnProgress | None = None) -> Merged:
    """Writes all clips and queries of two or more sets as one set at `out`."""
    if len(sources) < 2:
        raise ConfigError(f"{len(sources)} set to merge; expected two or more, and the folder to make")
    sources = sorted(sources, key=lambda source: str(source_facts(source)["manifest_sha256"]))
    kinds = _same_kinds(sources)
    facts = [source_facts(source) for source in sources]
    owners: dict[str, list[ShardSet]] = {}
    for source in sources:
        for key in source.keys:
            owners.setdefault(key, []).append(source)
    kinds, left_out = _variants(sources, owners, kinds)
    written: set[tuple[str, ...]] = set()
    skipped: list[Row] = []

    def pieces() -> Iterator[Piece]:
        for key in counted(sorted(owners), progress):
            piece = _united(key, owners[key], kinds)
            for query in piece.record.queries:
                written.update([(key, query.id), miss_name(query.id, query.text, query.split,
                                                           piece.record.video.path_hint)])
            yield piece
        # The last clip is known now; the table of skipped rows is written after it.
        skipped.extend(_united_skipped(sources, written))

    step = {"by": "merge", "sources": facts}

    def write(root: Path, writer: Writer) -> Derived:
        return writer(root, pieces(), kinds, skipped, slice_bytes=slice_bytes,
                      **_fields([source.manifest for source in sources], step))

    made = derive(out, sources, write)
    return Merged(replace(made, root=Path(out)),
                  sum(len(sets) > 1 for sets in owners.values()), sum(fact["inputs"] for fact in facts), left_out)


def _same_kinds(sources: Sequence[ShardSet]) -> list[str]:
    """The kinds of all sets, variants aside; ShardError that names the encoders where they differ."""
    first = sources[0]
    for other in sources[1:]:
        if _whole(first) != _whole(other) or _encoders(first) != _encoders(other):
            held = "\n".join(f"  {one.place}: {', '.join(kind for kind in one.manifest.kinds if kind != 'paths')}"
                             f"{''.join(chr(10) + '    ' + line for line in _makers(one.manifest))}"
                             for one in (first, other))
            raise ShardError(f"the sets were not made by the same encoders, so they cannot be one set\n{held}\n"
                             "add what is missing with `taro preprocess ... --only features --policy DIR`, then merge")
    return _whole(first)


def _whole(source: ShardSet) -> list[str]:
    return [kind for kind in source.manifest.kinds if not kind.startswith("variants/")]


def _variants(sources: Sequence[ShardSet], owners: Mapping[str, Sequence[ShardSet]],
              kinds: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """`kinds` with those variants that the merged set can hold, and those that are left out: of another making in
    another set, or not the same for a clip that several sets hold."""
    every = sorted({kind for source in sources for kind in source.manifest.kinds} - set(kinds))
    kept = []
    for kind in every:
        made = {source.reading(kind.partition("/")[2]).variant_settings() for source in sources}
        held = all(kind in source.manifest.kinds for source in sources)
        same = all(digests(one, kind, key) == digests(sets[0], kind, key) for key, sets in owners.items()
                   for one in sets[1:])
        if held and same and len(made - {None}) <= 1:
            kept.append(kind)
    return sorted([*kinds, *kept]), tuple(kind for kind in every if kind not in kept)


def _encoders(source: ShardSet) -> tuple[dict[str, Any], dict[str, Any]]:
    """What decides the numbers, by encoder."""
    numbers = {one.name: encoder_numbers(one) for one in source.manifest.encoders}
    return numbers, {one.name: one.model_dump(exclude={"model"}) for one in source.manifest.clip_encoders}


def _makers(manifest: Manifest) -> list[str]:
    def line(one: EncoderFingerprint) -> str:
        return (f"{one.name}: {one.model_id}, tower {one.tower_sha256[:16]}, {one.dtype}, up to "
                f"{one.sampling.max_frames} frames and {one.sampling.total_tokens} tokens a clip")
    lines = [*map(line, manifest.encoders), *(f"{one.name}: {one.model}, weights {str(one.weights_sha256)[:16]}"
                                              for one in manifest.clip_encoders)]
    # Untrusted text: nothing that moves a terminal's cursor.
    return ["".join(char if char.isprintable() else "?" for char in text[:300]) for text in lines]


def _united(key: str, sets: Sequence[ShardSet], kinds: Sequence[str]) -> Piece:
    """The clip `key` of the sets that hold it, with the queries of all."""
    first, clip = sets[0], sets[0].clip(key)
    queries, owner = named_queries(clip), dict.fromkeys(named_queries(clip), first)
    for other in sets[1:]:
        again = other.clip(key)
        wrong = _differ(clip, again) + [kind for kind in kinds if kind != "paths"
                                        and digests(first, kind, key) != digests(other, kind, key)]
        sheets = {digests(one, "paths", key).get("jpg") for one in (first, other)}
        if wrong or len(sheets) > 1:
            raise ShardError(f"clip {key} is not the same in {first.place} and {other.place}: its "
                             f"{', '.join(wrong or ['contact sheet'])} differ; leave it out of one with `taro shards "
                             "filter`, or make both with the same settings")
        for name, query in named_queries(again).items():
            if queries.setdefault(name, query) != query:
                raise ShardError(f"query {name[0][:120]!r} of clip {key} is not the same in {owner[name].place} "
                                 f"and {other.place} (`taro shards diff` says what differs); leave it out of one "
                                 "with `taro shards filter`")
            owner.setdefault(name, other)
    if len(queries) == len(clip.queries):
        return Piece(clip, first)
    return Piece(clip.model_copy(update={"queries": list(queries.values())}), first)


def _differ(a: ClipRecord, b: ClipRecord) -> list[str]:
    names = {"video": "video facts", "clip": "cut", "times_s": "frame times", "captions": "captions"}
    return [label for name, label in names.items() if getattr(a, name) != getattr(b, name)]


def _united_skipped(sources: Sequence[ShardSet], written: set[tuple[str, ...]]) -> list[Row]:
    """Skipped rows of all sets. A miss, or a query that a part left out, is there once, and only where no set holds it
    as a query (or, of one left out, as a miss); `written`: names of the queries, by clip and by what they ask. Other
    rows are there as often as in the set that has them most often."""
    others: Counter[tuple[Any, ...]] = Counter()
    missed: dict[tuple[str, ...], Row] = {}
    left_out: dict[tuple[str, ...], Row] = {}
    for source in sources:
        mine: Counter[tuple[Any, ...]] = Counter()
        for row in skipped_rows(source):
            if row["stage"] in NOT_MISSED - {"filter"}:
                mine[tuple(row[name] for name in SKIPPED_COLUMNS)] += 1
            elif not any(name in written for name in _names(row)):
                group = missed if is_miss(row) else left_out
                kept = group.setdefault(_names(row)[-1], row)
                group[_names(row)[-1]] = min(kept, row, key=lambda one: json.dumps(one, sort_keys=True))
        others |= mine
    rows = [dict(zip(SKIPPED_COLUMNS, row, strict=True)) for row in sorted(others.elements(), key=repr)]
    return rows + [missed[name] for name in sorted(missed)] + [
        left_out[name] for name in sorted(left_out) if name not in missed]


def _names(row: Row) -> list[tuple[str, ...]]:
    """What names a skipped query in another set: its clip and id, and what it asks, if the row says that; the last is
    its own."""
    of_clip = [(row["key"], row["row_id"])] if row["key"] else []
    asked = miss_name(row["row_id"], row["query"], row["split"], row["video"])
    return [*of_clip, asked if row["query"] else of_clip[0] if of_clip else (*asked, str(row["line"]))]


def _fields(manifests: Sequence[Manifest], step: dict[str, Any]) -> dict[str, Any]:
    """The new manifest's fields: what all sets say is kept, what differs is listed."""
    plain = [{name: value for name, value in one.config.items() if name not in {"derived", "configs"}}
             for one in manifests]
    listed = [one.config.get("configs") for one in manifests]
    configs = _distinct([config for several, own in zip(listed, plain, strict=True)
                         for config in (several if isinstance(several, list) and several else [own])])
    config = configs[0] if len(configs) == 1 and isinstance(configs[0], dict) else {"configs": configs}
    sheets = any(own.get("thumbnails", True) is not False for own in plain)
    earlier = _distinct([old for one in manifests for old in derived_steps(one)])
    captioners = _distinct([one.captioner for one in manifests])
    versions: dict[str, set[str]] = {}
    for one in manifests:
        for library, version in one.versions.items():
            versions.setdefault(library, set()).update(version.split(", "))
    return {"name": _joined([one.name for one in manifests], " + "), "provenance": _provenance(manifests),
            "encoders": manifests[0].encoders, "clip_encoders": manifests[0].clip_encoders,
            "captioner": captioners[0] if len(captioners) == 1 else {"captioners": captioners},
            "versions": {library: ", ".join(sorted(found)) for library, found in sorted(versions.items())},
            "config": {**config, "thumbnails": sheets, "derived": [*earlier, step]}}


def _provenance(manifests: Sequence[Manifest]) -> Provenance:
    """Each field as all sets say it, or all that they say; the digest of annotations only where it is one."""
    joined = {name: _joined([str(getattr(one.provenance, name)) for one in manifests], "; ")
              for name in Provenance.model_fields if name != "annotations_sha256"}
    digest = {one.provenance.annotations_sha256 for one in manifests}
    return Provenance(**joined, annotations_sha256=digest.pop() if len(digest) == 1 else None)


def _joined(texts: Sequence[str], between: str) -> str:
    return between.join(sorted(set(texts)))[:20_000]


def _distinct(values: Sequence[Any]) -> list[Any]:
    """Each value once, in an order of their own."""
    named = {json.dumps(value, sort_keys=True): value for value in values}
    return [named[text] for text in sorted(named)]
