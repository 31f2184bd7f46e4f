"""Random access to a set: any clip, any query, any encoder's features, without unpacking and without trust.

A record is one ranged read at the offset that its sidecar gives, header included: the header must name the record, the
data must have the sidecar's sha256, the JSON and the tensors must keep the format's bounds. Whatever is wrong is a
ShardError that names shard, key and offset. A set is light (no open files) and can be pickled to workers.
The bytes come from a `Store`, so a set reads alike wherever it lies."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from taro.core.errors import ConfigError, MissingPackageError, ShardError
from taro.grounding.records import ClipRecord, QueryRecord
from taro.models.features import EncoderFingerprint, VideoFeatures, patch_times_s
from taro.shards.catalog import open_catalog
from taro.shards.format import BLOCK, MANIFEST, SidecarRecord, shard_path
from taro.shards.index import Index, query_of_row
from taro.shards.index_file import IndexRow, index_rows
from taro.shards.manifest import read_manifest, read_sidecar
from taro.shards.members import Accepted, clip_of, member_of, parse_clip, read_clips
from taro.shards.places import open_store
from taro.shards.queries import IndexedQueries, QueryRef
from taro.shards.skipped import missed_rows
from taro.shards.store import Piece, Store, Wanted
from taro.shards.tensors import HEADER_BYTES, stored_shape, unpack_features, unpack_frames
from taro.shards.variants import FrameVariants, VariantSettings, check_variants, patch_facts, unpack_variants

if TYPE_CHECKING:
    import pandas as pd
    import torch

__all__ = ["QueryRef", "Sample", "ShardSet", "check_times", "open_shards",
           "parse_clip"]


@dataclass(frozen=True, slots=True)
class Sample:
    """All that training needs for one query. `variants`: those of its windows, None where none were asked for or it
    has none; `from_set`: the name of its set, where there are several; `repeat`: how often the same step held the query
    before."""

    ref: QueryRef
    clip: ClipRecord
    query: QueryRecord
    features: VideoFeatures
    variants: FrameVariants | None = None
    from_set: str = ""
    repeat: int = 0


@dataclass(slots=True)
class _Labels:
    """What one pass over every KEY.json keeps, shared by all that read the same open set."""

    refs: list[QueryRef] = field(default_factory=list)
    captioned: set[str] = field(default_factory=set)
    read: bool = False


def check_times(record: ClipRecord, features: VideoFeatures, where: str) -> None:
    """Features and JSON must agree on the clip's temporal patches: their number, and their times to a microsecond."""
    S, T = features.grid_thw[0], len(record.times_s)
    if 2 * S != T:
        raise ShardError(f"{where}: features have {S} patches, its JSON says {T / 2:g} (half of {T} sampled frames); "
                         "make the features again with `taro preprocess --only features`")
    if not np.allclose(features.times_S, patch_times_s(np.array(record.times_s)), rtol=0, atol=1e-6):
        raise ShardError(f"{where}: the features' patch times are not those of its JSON; make the features again with "
                         "`taro preprocess --only features`")


class ShardSet:
    """A set that is open for reading; see `open_shards`."""

    def __init__(self, store: Store, encoder: str | None = None) -> None:
        self.store = store
        self.manifest = read_manifest(store)
        if "paths" not in self.manifest.kinds:
            raise ShardError(f"{store.place}: the set has no paths shards; the manifest lists {self.manifest.kinds}")
        self._catalog = open_catalog(store, self.manifest)
        self._encoder = None if encoder is None else self._named(encoder)
        self._with_variants = False
        self._shared = _Labels()
        self._accepted = Accepted()

    def __repr__(self) -> str:
        counts = self.manifest.counts
        return (f"ShardSet({self.place!r}: {counts.clips} clips, {counts.queries} queries, features of "
                f"{', '.join(self.encoders) or 'no encoder'})")

    def __len__(self) -> int:
        """How many clips it holds."""
        return len(self.keys)

    def __iter__(self) -> Iterator[ClipRecord]:
        """The clips, in order of their keys, each read when it is asked for."""
        return (self.clip(key) for key in self.keys)

    def __contains__(self, key: object) -> bool:
        """Whether it holds a clip of that key."""
        return self._catalog.holds(key)

    def __bool__(self) -> bool:
        return True

    def to_pandas(self) -> pd.DataFrame:
        """A table of the queries, one row each: key, query_id, query, split, windows_s, difficulty, video, duration_s,
        captions (how many). Raises MissingPackageError without pandas."""
        try:
            import pandas as pd
        except ImportError:
            raise MissingPackageError("to_pandas needs pandas, which is not installed; pip install 'taro-vtg[pandas]'"
                                      ) from None
        columns = ["key", "query_id", "query", "split", "windows_s", "difficulty", "video", "duration_s", "captions"]
        return pd.DataFrame([(key, query.id, query.text, query.split, query.windows_s, query.difficulty,
                              row["video"], row["duration_s"], row["captions"])
                             for key, rows in self.rows() for row in rows if row["id"] is not None
                             for query in [query_of_row(row, self.place)]], columns=columns)

    @property
    def place(self) -> str:
        """How its user names the set: a folder or a URL."""
        return self.store.place

    @property
    def keys(self) -> Sequence[str]:
        """Keys of all clips, ascending."""
        return self._catalog.keys

    @property
    def index(self) -> Index | None:
        """What the set's queries.parquet says; None where it has none."""
        return self._catalog.index

    def rows(self) -> Iterator[tuple[str, list[IndexRow]]]:
        """(key, rows) of every clip, in order of their keys: from the index, or made of every KEY.json."""
        if self.index is not None:
            return self.index.clips()
        return ((key, index_rows(self.clip(key), self._find("paths", key)[0])) for key in self.keys)

    @property
    def encoders(self) -> list[str]:
        """Names of the encoders whose features the set holds, ascending."""
        return [kind.partition("/")[2] for kind in self.manifest.kinds if kind.startswith("features/")]

    @property
    def clip_encoders(self) -> list[str]:
        """Names of the CLIP encoders whose frame features the set holds, ascending."""
        return [kind.partition("/")[2] for kind in self.manifest.kinds if kind.startswith("clip/")]

    @property
    def encoder(self) -> str:
        """The encoder that `features` reads: the one asked for, or the only one."""
        if self._encoder is None:
            self._encoder = self._named("")
        return self._encoder

    def reading(self, encoder: str, *, variants: bool = False) -> ShardSet:
        """The same open set, its features those of `encoder`, its samples with frame variants where asked for; nothing
        is read again, the queries neither."""
        other = copy.copy(self)
        other._encoder, other._with_variants = self._named(encoder), variants
        return other

    def shard_of(self, key: str) -> int:
        """The number of the shards that a clip lies in, of every kind."""
        return self._find("paths", key)[0]

    @property
    def kinds_of_a_sample(self) -> tuple[str, ...]:
        """The kinds that `sample` reads."""
        kinds = ("paths", f"features/{self.encoder}")
        return (*kinds, f"variants/{self.encoder}") if self._with_variants else kinds

    def variant_settings(self) -> VariantSettings | None:
        """How the frame variants of `encoder` were made, from the first record; None where the set has none."""
        kind = f"variants/{self.encoder}"
        first = next((entry for entry in self.manifest.shards if entry.kind == kind and entry.records), None)
        found = None if first is None else self.variants(read_sidecar(self.store, first).records[0].key)
        return None if found is None else found.settings

    @property
    def fingerprint(self) -> EncoderFingerprint:
        """The fingerprint of `encoder`, as the manifest has it."""
        found = [entry for entry in self.manifest.encoders if entry.name == self.encoder]
        if not found:
            raise ShardError(f"{self.store.describe(MANIFEST)}: holds no fingerprint of encoder {self.encoder}")
        return found[0]

    def _named(self, encoder: str) -> str:
        """The one encoder whose name begins with `encoder`."""
        found = [name for name in self.encoders if name == encoder] or [
            name for name in self.encoders if name.startswith(encoder)]
        if len(found) != 1:
            raise ShardError(f"{self.place}: encoder {encoder or 'not named'}: the set holds "
                             f"{', '.join(self.encoders) or 'no features'}; name one of them, or add one with "
                             "`taro preprocess ... --only features --policy DIR`")
        return found[0]

    def clip(self, key: str) -> ClipRecord:
        """KEY.json, compared with the set's index where it has one."""
        at, record = self._find("paths", key)
        data, where = self._member("paths", key, "json")
        clip = clip_of(record, data, where)
        if self.index is not None:
            self.index.check_record(clip, at, where)
        return clip

    def _query(self, key: str, place: int) -> QueryRecord:
        """A query by its place in its clip's record."""
        return self.clip(key).queries[place]

    def features(self, key: str, piece: Piece | None = None) -> VideoFeatures:
        """The features of a clip from `encoder`. `piece`: the bytes at `features_place`, if they were read before."""
        data, where = self._member(f"features/{self.encoder}", key, "safetensors", piece)
        return unpack_features(data, where)

    def features_place(self, key: str) -> Wanted:
        """Where the features of a clip lie."""
        index, record = self._find(kind := f"features/{self.encoder}", key)
        member = member_of(record, "safetensors", self.store.describe(name := shard_path(kind, index)))
        return Wanted(name, member.offset - BLOCK, member.offset + member.size)

    def features_shape(self, key: str) -> tuple[int, int, int]:
        """(S, N, D) of a clip's features. The beginning of the record tells, so that counting the tokens of a set reads
        little of it."""
        start = self._features_start(key)
        where = f"{self.store.describe(start.name)}: record {key}"
        return stored_shape(self.store.read_range(start.name, start.start, (start.stop or 0) - start.start), where)

    def features_shapes(self, keys: Iterable[str]) -> dict[str, tuple[int, int, int]]:
        """The same of several clips, which a remote store fetches together."""
        wanted = {key: self._features_start(key) for key in keys}
        self.store.prefetch(wanted.values())
        return {key: self.features_shape(key) for key in wanted}

    def _features_start(self, key: str) -> Wanted:
        name, start, stop = self.features_place(key)
        assert stop is not None
        return Wanted(name, start + BLOCK, min(stop, start + BLOCK + HEADER_BYTES))

    def variants(self, key: str) -> FrameVariants | None:
        """The frame variants of a clip for `encoder`, None where it has none."""
        kind = f"variants/{self.encoder}"
        if self.listed(kind, key) is None:
            return None
        data, where = self._member(kind, key, "safetensors")
        return unpack_variants(data, where)

    def clip_features(self, key: str, encoder: str | None = None) -> torch.Tensor:
        """CLIP features [T, D] of the sampled frames; `encoder` may be left out where there is one."""
        names = [encoder] if encoder else self.clip_encoders
        if len(names) != 1:
            raise ShardError(f"{self.place}: CLIP features of {', '.join(names) or 'no encoder'}; name one of "
                             f"{', '.join(self.clip_encoders) or 'none'}")
        data, where = self._member(f"clip/{names[0]}", key, "safetensors")
        return unpack_frames(data, where)

    def thumbnail(self, key: str) -> bytes | None:
        """The contact sheet (JPEG bytes, not decoded here), or None where the set was made without."""
        has_one = any(member.ext == "jpg" for member in self._find("paths", key)[1].members)
        return bytes(self._member("paths", key, "jpg")[0]) if has_one else None

    def queries(self, split: str | None = None, ids: Collection[str] | None = None,
                difficulty: tuple[float, float] | None = None) -> Sequence[QueryRef]:
        """Queries in order of (key, place in the clip), filtered: of a split, with one of the ids, with a difficulty in
        `[low, high]` (a query without difficulty is left out then). Of a set without an index the first call reads
        every KEY.json. Raises ConfigError with the splits that exist where no query, and no miss, is of that split."""
        if split is not None and split not in self.splits and not _has_misses(self, split):
            raise ConfigError(f"{self.place}: no query of split {split[:120]!r}; the set has {self.splits_text}")
        wanted = None if ids is None else set(ids)
        if self.index is not None:
            rows = self.index.queries()
            for name, value in (("split", split), ("queries", wanted), ("difficulty", difficulty)):
                rows = rows if value is None else rows[self.index.passing(rows, name, value)]
            return IndexedQueries(self.index, rows, self._query, self.place)
        return [ref for ref in self._labels.refs if (split is None or ref.query.split == split)
                and (wanted is None or ref.query.id in wanted)
                and (difficulty is None or (ref.query.difficulty is not None
                                            and difficulty[0] <= ref.query.difficulty <= difficulty[1]))]

    @property
    def query_ids(self) -> set[str]:
        """The ids of all queries."""
        return self.index.ids() if self.index is not None else {ref.known.id for ref in self._labels.refs}

    @property
    def splits(self) -> list[str]:
        """The splits that queries name, ascending."""
        return self.index.splits if self.index is not None else sorted({ref.query.split for ref in self._labels.refs})

    @property
    def splits_text(self) -> str:
        """The same for a message, the first ten."""
        found = self.splits
        return (", ".join(name[:120] for name in found[:10]) + (f" and {len(found) - 10:,} more" * (len(found) > 10))
                or "no query at all")

    @property
    def captioned(self) -> frozenset[str]:
        """Keys of the clips that have captions; read with the queries, once."""
        return self.index.captioned if self.index is not None else frozenset(self._labels.captioned)

    @property
    def _labels(self) -> _Labels:
        """Every KEY.json, parsed once: each paths shard is opened once and read from its beginning to its end, without
        its contact sheets."""
        if not self._shared.read:
            found, shards = _Labels(), dict[int, list[SidecarRecord]]()
            for key in self.keys:
                index, record = self._find("paths", key)
                shards.setdefault(index, []).append(record)
            for index, records in sorted(shards.items()):
                for clip in read_clips(self.store, shard_path("paths", index), records):
                    found.refs += [QueryRef(clip.key, query) for query in clip.queries]
                    found.captioned |= {clip.key} if clip.captions else set()
            found.refs.sort(key=lambda ref: ref.key)  # stable: queries keep their places
            self._shared.refs, self._shared.captioned, self._shared.read = found.refs, found.captioned, True
        return self._shared

    def sample(self, ref: QueryRef) -> Sample:
        """Clip and features of a query, checked against each other."""
        return self.samples([ref])[0]

    def samples(self, refs: Sequence[QueryRef], piece: Piece | None = None) -> list[Sample]:
        """The same of some queries of one clip, which is read once. `piece`: as in `features`."""
        key = refs[0].key
        clip, features = self.clip(key), self.features(key, piece)
        refs = [QueryRef(key, ref.of_clip(clip.queries)) for ref in refs]
        kind = f"features/{self.encoder}"
        shard = self.store.describe(shard_path(kind, self._find(kind, key)[0]))
        check_times(clip, features, f"{shard}: record {key}")
        held = self.variants(key) if self._with_variants else None
        if held is None:
            return [Sample(ref, clip, ref.query, features) for ref in refs]
        check_variants(held, features.grid_thw[0], patch_facts(features.main_SND, features.deepstack_LSND),
                       f"{self.store.describe(f'variants/{self.encoder}')}: record {key}")
        return [Sample(ref, clip, ref.query, features, held.of(ref.query.windows)) for ref in refs]

    def prefetch(self, refs: Iterable[QueryRef], *, features: bool = True) -> None:
        """Has a remote store fetch all that `sample` reads for these queries, in few requests; reading a folder is as
        near. `features`: False: without these, which whoever asks reads at once (`taro.shards.together`)."""
        keys, kinds = list(dict.fromkeys(ref.key for ref in refs)), self.kinds_of_a_sample
        self._catalog.prefetch(kinds, keys)
        kinds = tuple(kind for kind in kinds if features or not kind.startswith("features/"))
        found = [(kind, self._catalog.find(kind, key)) for key in keys for kind in kinds]
        self.store.prefetch(Wanted(shard_path(kind, one[0]), member.offset - BLOCK, member.offset + member.size)
                            for kind, one in found if one for member in one[1].members if member.ext != "jpg")

    def listed(self, kind: str, key: str) -> SidecarRecord | None:
        """What the sidecars say of a record (members, sizes, digests), none of it read; None where it is not there."""
        found = self._catalog.find(kind, key)
        return None if found is None else found[1]

    def raw(self, kind: str, key: str, ext: str) -> bytes:
        """The bytes of a member as they lie in the shard, checked against the sidecar's digest and not parsed."""
        return bytes(self._member(kind, key, ext)[0])

    def _find(self, kind: str, key: str) -> tuple[int, SidecarRecord]:
        """The index of the shard that holds a record, and what its sidecar says of it."""
        found = self._catalog.find(kind, key)
        if found is None:
            held = sum(entry.records for entry in self.manifest.shards if entry.kind == kind)
            raise ShardError(f"{self.place}: no record {key[:120]} in {kind}, which holds {held} records")
        return found

    def _member(self, kind: str, key: str, ext: str, piece: Piece | None = None) -> tuple[memoryview, str]:
        """The bytes of a member, checked, and how to name it in a message."""
        index, record = self._find(kind, key)
        name = shard_path(kind, index)
        member = member_of(record, ext, where := self.store.describe(name))
        there = (member.offset - BLOCK, member.offset + member.size)
        try:
            return self._accepted.checked(piece or self.store.read_ranges(name, [there])[0], where, key, member)
        except ShardError:
            if not self.store.forget(name, there[0], there[1] - there[0]):
                raise
        piece = self.store.read_ranges(name, [there])[0]  # a damaged copy was dropped
        return self._accepted.checked(piece, where, key, member)


def _has_misses(shard_set: ShardSet, split: str) -> bool:
    """Whether a split is one of queries whose clips could not be made; False where that cannot be read."""
    return importlib.util.find_spec("pyarrow") is not None and bool(missed_rows(shard_set, split))


def open_shards(place: str | Path | Store, encoder: str | None = None) -> ShardSet:
    """Opens the set at `place`: a folder, a URL or a store. `encoder`: the name (or its beginning) of the features to
    read; needed where there are several. ShardError where it is not a set, or damaged."""
    return ShardSet(open_store(place), encoder)
