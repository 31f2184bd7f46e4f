"""Reads a whole set and lists everything that is wrong with it, instead of stopping at the first.

Checked: manifest and version; every sidecar against the manifest; every shard against its sidecar, byte by byte, with
the strict tar reader (hash, offsets, sizes, member digests); every KEY.json and tensor file against the format;
features' patches against the JSON's times; frame variants against the features that they go over, and that no query
lacks those of its windows; that the kinds of a slice hold the same keys; the manifest's counts and encoders;
skipped.parquet; queries.parquet against every record; files that the manifest does not know."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from taro.core.errors import ShardError
from taro.core.files import file_sha256
from taro.grounding.records import ClipRecord
from taro.shards.format import INDEX, MANIFEST, MAX_MANIFEST_BYTES, SKIPPED, Manifest, ShardEntry, split_kind
from taro.shards.index import Index
from taro.shards.manifest import read_manifest, read_sidecar, read_skipped
from taro.shards.places import open_fresh
from taro.shards.reader import check_times, parse_clip
from taro.shards.remote.bucket import NoListError
from taro.shards.store import Store
from taro.shards.tar import TarMember, read_tar
from taro.shards.tensors import unpack_features, unpack_frames
from taro.shards.variants import VariantSettings, check_variants, patch_facts, unpack_variants, wanted_groups

__all__ = ["VerifyReport", "verify"]

MAX_PROBLEMS = 1000
"""listed before kinds that lack shards are not told one by one any more"""


@dataclass
class VerifyReport:
    """What `verify` read, and every problem it found, one message each; `ok` where there is none."""

    root: str
    shards: int = 0
    records: int = 0
    queries: int = 0
    captions: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "ok": self.ok}


@dataclass
class _Seen:
    """What later shards are checked against: clips (times alone), the boundaries that variants must have, features'
    facts by (encoder, key), how each kind of variants was made; the index."""

    clips: dict[str, ClipRecord] = field(default_factory=dict)
    groups: dict[str, list[tuple[float, ...]]] = field(default_factory=dict)
    facts: dict[tuple[str | None, str], tuple[int, int, str, int]] = field(default_factory=dict)
    settings: dict[str, VariantSettings] = field(default_factory=dict)
    index: Index | None = None


def verify(place: str | Path | Store, *, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Checks everything, of a remote place what lies there, not what the cache kept of it; `progress(bytes done, bytes
    in all)` is called after every shard."""
    with open_fresh(place) as store:
        return _verify(store, progress or (lambda done, total: None), copies=store is not place)


def _verify(store: Store, progress: Callable[[int, int], None], *, copies: bool) -> VerifyReport:
    """`copies`: what the store keeps of a shard is needed no longer once the shard was read."""
    report = VerifyReport(store.place)
    try:
        manifest = read_manifest(store)
    except ShardError as error:
        report.problems.append(str(error))
        return report
    total = sum(entry.bytes for entry in manifest.shards)
    keys: dict[tuple[str, int], list[str]] = {}
    seen = _Seen(index=_index(store, manifest, report))
    # The paths shards first: the others are checked against their JSON. Only times are kept of it. Variants last.
    for entry in sorted(manifest.shards, key=lambda entry: (entry.kind != "paths", entry.kind, entry.index)):
        keys[entry.kind, entry.index] = _shard(store, entry, report, seen)
        if copies:
            store.forget(entry.path, 0, entry.bytes)
        progress(report.bytes, total)
    _same_keys(store, keys, seen, report)
    lost = [] if seen.index is None else [key for key in seen.index.keys if key not in seen.clips]
    if lost:
        report.problems.append(f"{store.describe(INDEX)}: lists {len(lost):,} clips that no paths shard holds, such as "
                               f"{lost[0]}; make the index again with `taro shards index`")
    _totals(store, manifest, report)
    return report


def _index(store: Store, manifest: Manifest, report: VerifyReport) -> Index | None:
    """The set's index, None where it has none or it cannot be read; its keys and counts are the manifest's."""
    if manifest.index is None:
        return None
    report.bytes += manifest.index.bytes
    try:
        return Index(store, manifest)
    except ShardError as error:
        report.problems.append(str(error))
    except ImportError:
        pass
    return None


def _shard(store: Store, entry: ShardEntry, report: VerifyReport, seen: _Seen) -> list[str]:
    """Checks one shard; returns the keys that were read."""
    report.shards += 1
    report.bytes += entry.bytes
    keys: list[str] = []
    try:
        expected: dict[tuple[str, str], tuple[int, int, str]] | None = {
            (record.key, member.ext): (member.offset, member.size, member.sha256)
            for record in read_sidecar(store, entry).records for member in record.members}
    except ShardError as error:
        report.problems.append(str(error))
        expected = None
    where = store.describe(entry.path)
    try:
        with store.open(entry.path) as file:
            if file_sha256(file) != entry.sha256:
                report.problems.append(f"{where}: its sha256 is not the manifest's; the shard is damaged, fetch it "
                                       "again or make it again")
            file.seek(0)
            for member, data in read_tar(file, where):
                if member.ext != "jpg":
                    keys.append(member.key)
                at = f"{where}: record {member.key} at byte {member.offset:,}"
                said = None if expected is None else expected.pop((member.key, member.ext), (0, 0, ""))
                if said is not None and said != (member.offset, member.size, hashlib.sha256(data).hexdigest()):
                    report.problems.append(f"{at}: offset, size or sha256 of .{member.ext} is not the sidecar's")
                _content(entry, member, data, at, report, seen)
    except ShardError as error:
        report.problems.append(str(error))
    for key, ext in expected or {}:
        report.problems.append(f"{where}: the sidecar lists {key}.{ext}, which was not found")
    return keys


def _content(entry: ShardEntry, member: TarMember, data: bytes, at: str, report: VerifyReport, seen: _Seen) -> None:
    stem, encoder = split_kind(entry.kind)
    clips = seen.clips
    try:
        if member.ext == "json" and stem == "paths":
            clip = parse_clip(data, at)
            if clip.key != member.key:
                raise ShardError(f"{at}: its JSON is of {clip.key}")
            if member.key in clips:
                raise ShardError(f"{at}: this key is in another paths shard too")
            report.records += 1
            report.queries += len(clip.queries)
            report.captions += len(clip.captions)
            seen.groups[member.key] = wanted_groups(clip)
            clips[member.key] = clip.model_copy(update={"captions": [], "queries": []})
            if seen.index is not None:
                seen.index.check_record(clip, entry.index, at)
        elif member.ext == "jpg" and stem == "paths":
            if data[:3] != b"\xff\xd8\xff":
                raise ShardError(f"{at}: not a JPEG")
        elif member.ext != "safetensors" or stem == "paths":
            raise ShardError(f"{at}: a {entry.kind} shard holds no .{member.ext}")
        elif stem == "features":
            features = unpack_features(data, at)
            seen.facts[encoder, member.key] = patch_facts(features.main_SND, features.deepstack_LSND)
            if member.key in clips:
                check_times(clips[member.key], features, at)
        elif stem == "clip":
            frames_TD = unpack_frames(data, at)
            if member.key in clips and len(frames_TD) != len(clips[member.key].times_s):
                raise ShardError(f"{at}: {len(frames_TD)} frames, its JSON says {len(clips[member.key].times_s)}")
        else:
            _variants(entry.kind, member.key, data, at, seen)
    except ShardError as error:
        report.problems.append(str(error))


def _variants(kind: str, key: str, data: bytes, at: str, seen: _Seen) -> None:
    """The frame variants of one clip. Groups that no query has any more are no fault: a cut set carries them."""
    found = unpack_variants(data, at)
    if seen.settings.setdefault(kind, found.settings) != found.settings:
        raise ShardError(f"{at}: made with {found.settings}, others with {seen.settings[kind]}; make them again with "
                         "`taro preprocess ... --only variants`")
    facts = seen.facts.get((split_kind(kind)[1], key))
    if facts is None or key not in seen.clips:
        raise ShardError(f"{at}: variants of a clip or an encoder whose features the set does not hold")
    check_variants(found, len(seen.clips[key].times_s) // 2, facts, at)
    lost = [group for group in seen.groups[key] if group not in found.boundaries]
    if lost:
        raise ShardError(f"{at}: none for a query with boundaries {str(list(lost[0]))[:80]} s, so its windows changed "
                         "since; make them again with `taro preprocess ... --only variants`")


def _same_keys(store: Store, keys: dict[tuple[str, int], list[str]], seen: _Seen, report: VerifyReport) -> None:
    kinds = sorted({kind for kind, _ in keys})
    indices = sorted({index for _, index in keys})
    for kind in kinds:
        for index in indices:
            paths = set(keys.get(("paths", index), ()))
            if len(report.problems) >= MAX_PROBLEMS:
                report.problems.append(f"{store.place}: more kinds lack shards or records than are listed here")
                return
            if (kind, index) not in keys:
                report.problems.append(f"{store.place}: slice {index} has no {kind} shard")
                continue
            if split_kind(kind)[0] == "variants":  # a clip of one frame, or without a window, can have none
                paths = {key for key in paths if seen.groups.get(key) or key in keys[kind, index]}
            if set(keys[kind, index]) != paths:
                differ = sorted(set(keys[kind, index]) ^ paths)
                report.problems.append(f"{store.place}: slice {index}: {kind} and paths hold different records, such "
                                       f"as {', '.join(differ[:3])}")


def _totals(store: Store, manifest: Manifest, report: VerifyReport) -> None:
    counts, where = manifest.counts, store.describe(MANIFEST)
    if (counts.clips, counts.queries, counts.captions) != (report.records, report.queries, report.captions):
        report.problems.append(f"{where}: counts {counts.clips} clips, {counts.queries} queries, {counts.captions} "
                               f"captions; found {report.records}, {report.queries}, {report.captions}")
    for prefix, named in (("features/", [encoder.name for encoder in manifest.encoders]),
                          ("clip/", [encoder.name for encoder in manifest.clip_encoders])):
        held = [kind.removeprefix(prefix) for kind in manifest.kinds if kind.startswith(prefix)]
        if sorted(named) != held:
            report.problems.append(f"{where}: names the {prefix[:-1]} encoders {sorted(named)}, the shards are of "
                                   f"{held}")
    try:
        _skipped(store, manifest)
    except ShardError as error:
        report.problems.append(str(error))
    known = {entry.path for entry in manifest.shards}
    try:
        listed = store.list()
    except NoListError:  # behind a web address: what the manifest does not name is not seen
        return
    for name in listed:
        if name.endswith(".tar") and name not in known:
            report.problems.append(f"{store.describe(name)}: not in the manifest; remove it, or run `taro preprocess` "
                                   "again")


def _skipped(store: Store, manifest: Manifest) -> None:
    where = store.describe(SKIPPED)
    if manifest.skipped_sha256 is None:
        if manifest.counts.skipped:
            raise ShardError(f"{where}: {manifest.counts.skipped} skipped rows, but the manifest names no table")
        return
    data = store.read(SKIPPED, limit_bytes=MAX_MANIFEST_BYTES)
    if hashlib.sha256(data).hexdigest() != manifest.skipped_sha256:
        raise ShardError(f"{where}: its sha256 is not the manifest's")
    try:
        rows = len(read_skipped(store))
    except ImportError:
        return
    if rows != manifest.counts.skipped:
        raise ShardError(f"{where}: {rows} rows, the manifest counts {manifest.counts.skipped} skipped")
