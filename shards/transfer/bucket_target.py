"""A push to an object store: shards and sidecars in parallel, the manifest when all of them lie there.

An object appears whole or not at all. A new name is written only where there is nothing yet, so two transfers to one
place notice each other; an object that lies there and is not the one wanted was left by a killed transfer of other
bytes (`taro.shards.transfer.plan` refuses to change what a manifest names) and is replaced. Its sidecar is emptied
first: a sidecar vouches for its shard. Objects are never removed."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from taro.core.errors import ShardError
from taro.core.parallel import in_parallel
from taro.shards.format import MANIFEST
from taro.shards.remote.bucket import Bucket, Head, read_whole
from taro.shards.store import MissingFileError
from taro.shards.transfer.target import Held, OnMoved, Outgoing
from taro.shards.transfer.workers import JOBS, Counter

__all__ = ["BucketTarget", "ChangedTargetError"]


class ChangedTargetError(ShardError):
    """Another transfer to the same place has finished, or is under way."""


class BucketTarget:
    """A place of an object store as a `Target`."""

    at_once = False
    revision: str | None = None

    def __init__(self, bucket: Bucket, *, jobs: int = JOBS) -> None:
        self.bucket, self.jobs = bucket, jobs
        self._held: Mapping[str, Held] = {}
        self._manifest: Head | None = None

    @property
    def place(self) -> str:
        """The URL."""
        return self.bucket.place

    def have(self) -> Mapping[str, Held]:
        """What lies there, by name; an object store knows no sha256."""
        self._held = {one.name: Held(one.size) for one in self.bucket.list()}
        self._manifest = self._head(MANIFEST)
        return self._held

    def read(self, name: str, *, limit_bytes: int) -> bytes:
        """A small object, whole."""
        return read_whole(self.bucket, name, limit_bytes=limit_bytes)

    def send(self, files: Sequence[Outgoing], remove: Sequence[str], moved: OnMoved) -> None:
        """Puts the files: shards with their sidecars in parallel, then the rest in order, each after all before it."""
        assert not remove
        by_name = {one.name: one for one in files}
        shards = [one for one in files if one.name.endswith(".tar")]
        sidecars = {one.name: by_name.get(one.name.removesuffix(".tar") + ".json") for one in shards}
        beside = {one.name for one in sidecars.values() if one is not None}
        stop = moved.stop if isinstance(moved, Counter) else Counter(0, 0).stop
        with tempfile.TemporaryDirectory() as folder:
            empty = Path(folder) / "empty.json"
            empty.write_bytes(b"{}")
            in_parallel([partial(self._shard, one, sidecars[one.name], empty, moved) for one in shards], stop,
                        jobs=self.jobs)
        for one in (one for one in files if one not in shards and one.name not in {*beside, MANIFEST}):
            self._put(one, moved)
        if MANIFEST in by_name:
            self._last(by_name[MANIFEST], files, moved)

    def _shard(self, shard: Outgoing, sidecar: Outgoing | None, empty: Path, moved: OnMoved) -> None:
        moved(0, 0)
        name = shard.name.removesuffix(".tar") + ".json"
        if sidecar is not None and name in self._held:
            self.bucket.put(name, empty, absent=False)
        self._put(shard, moved)
        if sidecar is not None:
            self._put(sidecar, moved)

    def _put(self, one: Outgoing, moved: OnMoved) -> None:
        new = one.name not in self._held
        one.check()
        if not self.bucket.put(one.name, one.path, absent=new) and self._digest(one) != one.sha256:
            raise ChangedTargetError(f"{self.place}/{one.name}: another transfer has written it meanwhile; see that "
                                     "one set alone is pushed there, then run the same command again")
        moved(1, one.size)

    def _digest(self, one: Outgoing) -> str:
        """sha256 of an object that is there: an attempt may have succeeded though its answer was lost."""
        digest = hashlib.sha256()
        if self.bucket.head(one.name).size == one.size:
            for piece in self.bucket.chunks(one.name, 0, one.size):
                digest.update(piece)
        return digest.hexdigest()

    def _last(self, manifest: Outgoing, files: Sequence[Outgoing], moved: OnMoved) -> None:
        """Puts the manifest, once every file is seen to lie there and nobody else has put one."""
        sizes = {one.name: one.size for one in self.bucket.list()}
        for one in files:
            if one.name != MANIFEST and sizes.get(one.name) != one.size:
                raise ChangedTargetError(f"{self.place}/{one.name}: {sizes.get(one.name, 0):,} bytes lie there, "
                                         f"{one.size:,} were sent; see that one set alone is pushed there, then run "
                                         "the same command again")
        if self._head(MANIFEST) != self._manifest:
            raise ChangedTargetError(f"{self.place}: another transfer has finished there meanwhile; run the same "
                                     "command again, it adds to that set")
        self._put(manifest, moved)

    def _head(self, name: str) -> Head | None:
        try:
            return self.bucket.head(name)
        except MissingFileError:
            return None
