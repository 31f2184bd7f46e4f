"""A set of this machine as it leaves it: chosen kinds, redacted texts, a card of its own, every file with its digest.

Shards, sidecars and the index are sent as they lie. The manifest, skipped.parquet and paths shards are made anew in a
scratch folder where they change: kinds are left out, texts redacted, contact sheets taken out. All of that is a
function of the set, so a set that was pushed before gives the same digests, and nothing moves. Only files that the
manifest names leave, and the card, which is made from it; whatever else lies in the folder stays.

Left out: writing anything into the set's own folder."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from taro.core.counting import OnProgress
from taro.core.errors import ConfigError, ShardError
from taro.core.files import file_sha256
from taro.core.json import canonical_json
from taro.shards.card import card_text
from taro.shards.format import CARD, MANIFEST, MAX_MANIFEST_BYTES, SKIPPED, Manifest, split_kind
from taro.shards.manifest import read_manifest, read_skipped, write_skipped
from taro.shards.ops.thumbnails import without_thumbnails
from taro.shards.reader import open_shards
from taro.shards.store_local import LocalStore
from taro.shards.transfer.plan import SetFile, manifest_files
from taro.shards.transfer.redact import redacted, redacted_manifest
from taro.shards.transfer.target import Outgoing

__all__ = ["Bundle", "kept_kinds", "outgoing", "with_kinds"]


@dataclass(frozen=True, slots=True)
class Bundle:
    """What leaves: the manifest as it will lie there, with its bytes, and where each file that it names lies here."""

    manifest: Manifest
    manifest_bytes: bytes
    files: tuple[SetFile, ...]
    folders: tuple[Path, ...]
    """where files are looked for, in this order"""

    def store_of(self, name: str) -> LocalStore:
        """Where a file lies; the set's own folder where it lies nowhere."""
        return LocalStore(next((folder for folder in self.folders if (folder / name).is_file()), self.folders[-1]))

    def file(self, wanted: SetFile) -> Outgoing:
        """A file as it is sent; ShardError where it has not the bytes that the manifest says."""
        store = self.store_of(wanted.name)
        size = store.size(wanted.name)
        if wanted.size not in {None, size}:
            raise ShardError(f"{store.describe(wanted.name)}: {size:,} bytes, the manifest says {wanted.size:,}; the "
                             "set is damaged, `taro shards verify` lists what is wrong with it")
        return Outgoing(wanted.name, store.folder / wanted.name, size, wanted.sha256)

    def about(self, manifest: Manifest) -> list[Outgoing]:
        """The card and the manifest of a place that holds these files and maybe more."""
        texts = {CARD: card_text(manifest).encode(),
                 MANIFEST: self.manifest_bytes if manifest == self.manifest else canonical_json(manifest) + b"\n"}
        for name, data in texts.items():
            (self.folders[0] / name).write_bytes(data)
        return [Outgoing(name, self.folders[0] / name, len(data), hashlib.sha256(data).hexdigest())
                for name, data in texts.items()]


def kept_kinds(manifest: Manifest, without: Collection[str]) -> list[str]:
    """Kinds that are left when those named are left out, and the frame variants of an encoder with its features.
    ConfigError for a name that is none of the set's, and for paths."""
    for name in without:
        if name not in manifest.kinds or name == "paths":
            others = ", ".join(kind for kind in manifest.kinds if kind != "paths")
            raise ConfigError(f"--without {name[:200]!r}: expected one of {others or 'no kind: it has paths alone'}; "
                              "paths, which holds the queries, always goes along")
    gone = {*without, *(f"variants/{split_kind(name)[1]}" for name in without if name.startswith("features/"))}
    return [kind for kind in manifest.kinds if kind not in gone]


def with_kinds(manifest: Manifest, kinds: Collection[str]) -> Manifest:
    """The manifest of the set with these kinds alone."""
    return manifest.model_copy(update={
        "shards": [entry for entry in manifest.shards if entry.kind in kinds],
        "encoders": [one for one in manifest.encoders if f"features/{one.name}" in kinds],
        "clip_encoders": [one for one in manifest.clip_encoders if f"clip/{one.name}" in kinds]})


def outgoing(store: LocalStore, scratch: Path, *, without: Sequence[str] = (), thumbnails: bool = True,
             progress: OnProgress | None = None) -> Bundle:
    """What leaves of a set in a local folder. `scratch`: an empty folder for files that are made anew, kept until all
    is sent; `thumbnails`: whether contact sheets leave."""
    whole = read_manifest(store)
    manifest = with_kinds(whole, kept_kinds(whole, without))
    if not thumbnails and manifest.config.get("thumbnails", True) is not False:
        entries = without_thumbnails(open_shards(store), scratch, progress=progress)
        manifest = manifest.model_copy(update={
            "shards": sorted([*entries, *(entry for entry in manifest.shards if entry.kind != "paths")],
                             key=lambda entry: (entry.kind, entry.index)),
            "config": {**manifest.config, "thumbnails": False}})
    manifest = redacted_manifest(manifest)
    if manifest.skipped_sha256 is not None:
        manifest = manifest.model_copy(update={"skipped_sha256": _skipped(store, manifest.skipped_sha256, scratch)})
    data = (store.read(MANIFEST, limit_bytes=MAX_MANIFEST_BYTES) if manifest == whole
            else canonical_json(manifest) + b"\n")
    return Bundle(manifest, data, tuple(manifest_files(manifest)), (scratch, store.folder))


def _skipped(store: LocalStore, digest: str, scratch: Path) -> str:
    """The digest of skipped.parquet as it leaves: a new one in `scratch` where a text of it was redacted."""
    rows = read_skipped(store)
    cleaned = [{**row, **{name: redacted(row[name]) for name in ("video", "reason", "detail")}} for row in rows]
    if cleaned == rows:
        return digest
    write_skipped(scratch, cleaned)
    return file_sha256(scratch / SKIPPED)
