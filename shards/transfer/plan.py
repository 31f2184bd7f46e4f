"""What moves: the files that a manifest names, what of it lies at the other side already, and whether both are one set.

**A set at a place only grows.** Files that the manifest there names never change under its readers: a transfer adds
kinds (features of another tower, frame variants), the index, and shards that are missing, then replaces the manifest,
in one step. Kinds that only the other side has stay in its manifest. Where both hold a shard of the same name with
other bytes, or other rows, they are two sets, and the transfer is refused. skipped.parquet and the index of a place
stay as they are once they are there (their digests may differ with the version of a library, the rows do not).

**What lies there already** is known by the digest in the manifest there and its size in the listing. Without a manifest
(a transfer was killed) a shard counts where its sidecar there is the one wanted, byte for byte, since a sidecar is
written after its shard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taro.core.errors import ShardError
from taro.shards.format import FORMAT_VERSION, INDEX, SKIPPED, Manifest, check_version, sidecar_path
from taro.shards.transfer.target import Held

__all__ = ["OtherSetError", "Transfer", "SetFile", "manifest_files", "there_already", "united"]


class OtherSetError(ShardError):
    """Another set lies at the place that a transfer goes to."""


@dataclass(frozen=True, slots=True)
class SetFile:
    """A file that a manifest names: bytes where it says them, None of sidecars and skipped.parquet."""

    name: str
    sha256: str
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a transfer has moved, or would move: `place` it went to, files and bytes of the whole set, names and bytes
    of those that moved, and the revision that now holds the set, where the place has revisions."""

    place: str
    files: int
    bytes: int
    moved: tuple[tuple[str, int], ...]
    revision: str | None = None
    dry_run: bool = False

    @property
    def moved_bytes(self) -> int:
        """Bytes of the files that moved."""
        return sum(size for _, size in self.moved)

    @property
    def moved_shards(self) -> int:
        """How many shards moved."""
        return sum(name.endswith(".tar") for name, _ in self.moved)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        shards = sum(size for name, size in self.moved if name.endswith(".tar"))
        return {"place": self.place, "revision": self.revision, "files": self.files, "bytes": self.bytes,
                "moved_files": len(self.moved), "moved_bytes": self.moved_bytes, "moved_shards": self.moved_shards,
                "moved_shard_bytes": shards, "dry_run": self.dry_run,
                "moved": [{"name": name, "bytes": size} for name, size in self.moved]}


def manifest_files(manifest: Manifest) -> list[SetFile]:
    """Every file that a manifest names, each shard before its sidecar, all of one slice together."""
    found = []
    for entry in sorted(manifest.shards, key=lambda entry: (entry.index, entry.kind)):
        found += [SetFile(entry.path, entry.sha256, entry.bytes),
                  SetFile(sidecar_path(entry.kind, entry.index), entry.sidecar_sha256)]
    if manifest.index is not None:
        found.append(SetFile(INDEX, manifest.index.sha256, manifest.index.bytes))
    if manifest.skipped_sha256 is not None:
        found.append(SetFile(SKIPPED, manifest.skipped_sha256))
    return found


def united(new: Manifest, there: Manifest | None, *, where: str) -> Manifest:
    """The manifest of a place after a transfer of `new` to it: its own kinds and the new ones. OtherSetError, which
    names the place `where`, unless both describe one set."""
    if there is None:
        return new
    if check_version(there.format_version, where) is not None:
        raise ShardError(f"{where}: a set of format {there.format_version}, this taro writes {FORMAT_VERSION}; update "
                         "taro before you add to it")
    mine, theirs = ({(entry.kind, entry.index): entry for entry in one.shards} for one in (new, there))
    kinds = set(new.kinds) & set(there.kinds)
    for place in sorted((*mine, *theirs)):
        if place[0] in kinds and mine.get(place) != theirs.get(place):
            raise _other(where, f"{place[0]} shard {place[1]} differs")
    if new.counts != there.counts or "paths" not in kinds:
        raise _other(where, f"it has {there.counts.queries} queries and {there.counts.skipped} skipped rows, this set "
                            f"{new.counts.queries} and {new.counts.skipped}")
    encoders = {one.name: one for one in (*there.encoders, *new.encoders)}
    clips = {one.name: one for one in (*there.clip_encoders, *new.clip_encoders)}
    shards = {**theirs, **mine}
    return new.model_copy(update={
        "shards": [shards[place] for place in sorted(shards)],
        "encoders": [encoders[name] for name in sorted(encoders)],
        "clip_encoders": [clips[name] for name in sorted(clips)],
        "skipped_sha256": there.skipped_sha256 or new.skipped_sha256, "index": there.index or new.index})


def there_already(files: Sequence[SetFile], held: Mapping[str, Held], there: Manifest | None,
                  digests: Callable[[Sequence[str]], Mapping[str, str]]) -> set[str]:
    """Names of the files that lie at a place with the bytes wanted. `there`: the manifest there; `digests`: the sha256
    of files there, asked of sidecars whose shards no manifest vouches for."""
    vouched = {one.name: one.sha256 for one in (manifest_files(there) if there else ())}
    found = {one.name for one in files if (lies := held.get(one.name)) is not None and one.size in {None, lies.size}
             and one.sha256 == (vouched.get(one.name) if lies.sha256 is None else lies.sha256)}
    wanted = {one.name: one for one in files}
    open_ones = [(name, sidecar) for name, one in wanted.items() if name.endswith(".tar") and name not in found
                 and (lies := held.get(name)) is not None and (lies.size, lies.sha256) == (one.size, None)
                 and (sidecar := name.removesuffix(".tar") + ".json") in held]
    read = digests([sidecar for _, sidecar in open_ones])
    for name, sidecar in open_ones:
        if read.get(sidecar) == wanted[sidecar].sha256:
            found |= {name, sidecar}
    return found


def _other(where: str, why: str) -> OtherSetError:
    return OtherSetError(f"{where}: another set lies there ({why}); sets are added to and never changed under their "
                         "readers: name another place, or remove that set first")
