"""Writing a slice: all its shards, or none of them.

`SliceWriter` streams each kind's shard to a temporary name; `commit` ends and fsyncs every file, rereads and hashes it
with the strict reader, renames all shards, fsyncs the folders, and only then writes the sidecars. So a sidecar that
verifies means a complete shard, whenever the job was killed; a rerun asks `slice_done`. Two writers of one slice must
be kept apart by the caller (a lock on the slice).

    with SliceWriter(root, 0, kinds=("paths", "features/" + fingerprint.name)) as slice_writer:
        for clip in sorted(clips, key=lambda clip: clip.key):
            slice_writer.add_clip(record, thumbnail, {fingerprint.name: features}, {})
        slice_writer.commit()
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

from taro.core.errors import ShardError
from taro.core.files import file_sha256, fsync, make_folders, remove_temporary, write_atomically
from taro.core.json import canonical_json, elements
from taro.grounding.records import ClipRecord
from taro.models.features import VideoFeatures
from taro.shards.format import (
    MAX_ELEMENTS,
    MAX_JPEG_BYTES,
    MAX_JSON_BYTES,
    SIDECAR_VERSION,
    Member,
    ShardEntry,
    Sidecar,
    SidecarRecord,
    key_ok,
    kind_ok,
    shard_path,
    sidecar_path,
    split_kind,
)
from taro.shards.manifest import stored_sidecar
from taro.shards.store_local import LocalStore
from taro.shards.tar import TarWriter, read_tar
from taro.shards.tensors import pack_features, pack_frames
from taro.shards.variants import FrameVariants, pack_variants

if TYPE_CHECKING:
    import torch

    from taro.shards.reader import ShardSet

__all__ = ["SliceWriter", "slice_done"]


class _Shard:
    """One shard being written: temporary file, tar state, and what its sidecar will say."""

    def __init__(self, root: Path, kind: str, index: int) -> None:
        self.kind, self.index = kind, index
        self.final = root / shard_path(kind, index)
        self.sidecar = root / sidecar_path(kind, index)
        self.temporary = self.final.with_name(f".{self.final.name}.{uuid.uuid4().hex}.tmp")
        self.records: list[SidecarRecord] = []
        self.sha256 = ""

    def open(self) -> None:
        make_folders(self.final.parent)
        self.sweep()
        self.file: BinaryIO = self.temporary.open("xb")
        self.tar = TarWriter(self.file)

    def sweep(self) -> None:
        """Removes what stands under temporary names of this slice, a killed job's too; the lock on the slice says that
        nobody else is writing it."""
        for path in (self.final, self.sidecar):
            remove_temporary(path.parent, path.name)

    def discard(self) -> None:
        if hasattr(self, "file"):
            with contextlib.suppress(OSError):  # a full disk refuses the last bytes once more
                self.file.close()
        self.sweep()

    def add(self, key: str, queries: int, parts: Iterable[tuple[str, bytes]]) -> None:
        members = []
        for ext, data in parts:
            at = self.tar.add(key, ext, data)
            members.append(Member.model_validate({"ext": ext, "offset": at.offset, "size": at.size,
                                                  "sha256": hashlib.sha256(data).hexdigest()}))
        self.records.append(SidecarRecord(key=key, queries=queries, members=members))

    def finish(self) -> None:
        """Ends the archive, forces it to the disk, and reads it back."""
        self.sha256 = self.tar.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        expected = [(record.key, m.ext, m.offset, m.size, m.sha256) for record in self.records for m in record.members]
        with self.temporary.open("rb") as file:
            found = [(m.key, m.ext, m.offset, m.size, hashlib.sha256(data).hexdigest())
                     for m, data in read_tar(file, str(self.temporary))]
            file.seek(0)
            digest = file_sha256(file)
        if found != expected or digest != self.sha256:
            raise ShardError(f"{self.temporary}: what was read back is not what was written; check the "
                             "disk, then run again")

    def describe(self) -> Sidecar:
        return Sidecar(format_version=SIDECAR_VERSION, kind=self.kind, index=self.index, bytes=self.tar.bytes,
                       sha256=self.sha256, records=self.records)


class SliceWriter:
    """One slice of the plan, open for writing in its `with` block; leaving that without `commit` leaves nothing behind,
    even where a signal comes while files are being opened."""

    def __init__(self, root: str | Path, index: int, *, kinds: Sequence[str]) -> None:
        """`kinds`: what this slice writes, such as ("paths", "features/ENCODER", "clip/ENCODER"); each gets a shard
        even where all clips were skipped. Kinds that are on the disk already and not named stay as they are."""
        for kind in kinds:
            if not kind_ok(kind):
                raise ShardError(f"{kind!r} is not a kind of shard; expected paths, features/ENCODER, clip/ENCODER or "
                                 "variants/ENCODER")
        self.root = Path(root)
        self._shards = {kind: _Shard(self.root, kind, index) for kind in sorted(set(kinds))}

    def add_clip(self, record: ClipRecord, thumbnail_jpeg: bytes | None, features: Mapping[str, VideoFeatures],
                 clip_features: Mapping[str, torch.Tensor],
                 variants: Mapping[str, FrameVariants | None] | None = None) -> None:
        """Adds one clip to every kind of the slice, or to none if it does not fit the format.

        `features`: by encoder name (`EncoderFingerprint.name`); `clip_features`: CLIP frame features [T, D] by encoder
        name; `variants`: by encoder name, None for a clip that can have none. Encoders must be the ones named in
        `kinds`. Clips come in ascending order of key."""
        parts = {f"features/{name}": [("safetensors", _checked(record, x))] for name, x in features.items()}
        parts |= {f"clip/{name}": [("safetensors", pack_frames(x))] for name, x in clip_features.items()}
        parts |= {f"variants/{name}": [] if x is None else [("safetensors", pack_variants(x))]
                  for name, x in (variants or {}).items()}
        if "paths" in self._shards:
            text = canonical_json(record)
            parts["paths"] = [("jpg", thumbnail_jpeg)] if thumbnail_jpeg is not None else []
            parts["paths"].append(("json", text))
            if (count := elements(text)) > MAX_ELEMENTS["clip"]:
                raise ShardError(f"record {record.key}: {count:,} values in its JSON, at most "
                                 f"{MAX_ELEMENTS['clip']:,}; make fewer paths, or split its queries over clips")
            if len(text) > MAX_JSON_BYTES or len(thumbnail_jpeg or b"") > MAX_JPEG_BYTES:
                raise ShardError(f"record {record.key}: {len(text):,} bytes of JSON (at most {MAX_JSON_BYTES:,}), "
                                 f"{len(thumbnail_jpeg or b''):,} of JPEG (at most {MAX_JPEG_BYTES:,})")
        if set(parts) != set(self._shards):
            raise ShardError(f"record {record.key}: got {sorted(parts)}, the slice holds {sorted(self._shards)}")
        if not key_ok(record.key):
            raise ShardError(f"key {record.key[:120]!r}: use taro.shards.format.clip_key")
        for kind, shard in self._shards.items():
            if parts[kind]:
                shard.add(record.key, len(record.queries), parts[kind])

    def copy_clip(self, record: ClipRecord, source: ShardSet) -> None:
        """Adds `record` with everything else of its key copied from `source`, as bytes, one member at a time.

        A kind of the slice that the source lacks for this key is an error, but for variants: not every clip has some.
        """
        for kind, shard in self._shards.items():
            listed = source.listed(kind, record.key)
            if listed is None and split_kind(kind)[0] == "variants":
                continue
            if listed is None:
                raise ShardError(f"{source.place}: no record {record.key} in {kind}; `taro shards verify` lists "
                                 "what is wrong with the set")
            parts = ((member.ext, canonical_json(record) if member.ext == "json" else
                      source.raw(kind, record.key, member.ext)) for member in listed.members)
            shard.add(record.key, len(record.queries), parts)

    def finish(self) -> None:
        """Ends every archive and reads it back, under its temporary name still; `commit` does it where it was not done.
        What can fail for want of room has happened after that."""
        for shard in self._shards.values():
            if not shard.sha256:
                shard.finish()

    def commit(self) -> list[ShardEntry]:
        """Makes the slice real; returns what the manifest says of its shards."""
        self.finish()
        shards = list(self._shards.values())
        for shard in shards:
            # An older sidecar must not vouch for the new shard, not even for a moment.
            shard.sidecar.unlink(missing_ok=True)
            shard.temporary.rename(shard.final)
            fsync(shard.final.parent)
        entries = []
        for shard in shards:
            sidecar = shard.describe()
            data = canonical_json(sidecar)
            write_atomically(shard.sidecar, data)
            entries.append(ShardEntry.of(sidecar, hashlib.sha256(data).hexdigest()))
        return entries

    def __enter__(self) -> SliceWriter:
        try:
            for shard in self._shards.values():
                shard.open()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for shard in self._shards.values():
            shard.discard()


def slice_done(root: str | Path, index: int, kinds: Iterable[str]) -> bool:
    """Whether every shard of the slice is there and hashes to what its sidecar says (reads all of it)."""
    store = LocalStore(Path(root))
    try:
        for kind in kinds:
            sidecar, _ = stored_sidecar(store, kind, index)
            with store.open(shard_path(kind, index)) as file:
                if file_sha256(file) != sidecar.sha256:
                    return False
    except ShardError:
        return False
    return True


def _checked(record: ClipRecord, features: VideoFeatures) -> bytes:
    S = features.grid_thw[0]
    if len(record.times_s) != 2 * S:
        raise ShardError(f"record {record.key}: features have {S} patches, its JSON says {len(record.times_s) / 2:g} "
                         f"(half of {len(record.times_s)} sampled frames)")
    return pack_features(features)
