"""Where the records of a set lie: by its index, or by all its sidecars where it has none.

With an index the slice of a clip is known, so a sidecar is read when a record of its shard is first asked for, and the
shard's size is compared with the manifest's then. Of the sidecars read so far no more stay in memory than hold
`HELD_RECORDS` records. Without an index every sidecar is read when the set is opened."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Collection, Sequence
from typing import Any, Protocol

from taro.core.errors import ShardError
from taro.shards.format import Manifest, ShardEntry, SidecarRecord, sidecar_path
from taro.shards.index import Index
from taro.shards.manifest import read_sidecar
from taro.shards.store import Store, Wanted

__all__ = ["Catalog", "open_catalog"]

HELD_RECORDS = 200_000
"""of sidecars that stay in memory, about 2 kB each"""


class Catalog(Protocol):
    """The keys of a set and where their records lie."""

    @property
    def index(self) -> Index | None:
        """The set's index, None where it has none."""

    @property
    def keys(self) -> Sequence[str]:
        """Keys of all clips, ascending."""

    def holds(self, key: object) -> bool:
        """Whether there is a clip of that key."""

    def find(self, kind: str, key: str) -> tuple[int, SidecarRecord] | None:
        """The slice that holds a record, and what its sidecar says of it; None where the kind has no such record."""

    def prefetch(self, kinds: Collection[str], keys: Sequence[str]) -> None:
        """Has a remote store fetch what `find` will read for these, several files at a time."""


def open_catalog(store: Store, manifest: Manifest) -> Catalog:
    """The catalog of a set. An index is read with pyarrow: without it, a set is read as one that has none."""
    if manifest.index is None or importlib.util.find_spec("pyarrow") is None:
        return _BySidecars(store, manifest)
    return _ByIndex(store, manifest)


class _BySidecars:
    index: Index | None = None

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._records: dict[str, dict[str, tuple[int, SidecarRecord]]] = {kind: {} for kind in manifest.kinds}
        store.prefetch(Wanted(sidecar_path(entry.kind, entry.index)) for entry in manifest.shards)
        for entry in manifest.shards:
            records = self._records[entry.kind]
            for record in _sidecar_records(store, entry):
                if record.key in records:
                    raise ShardError(f"{store.describe(entry.path)}: record {record.key} is in another {entry.kind} "
                                     "shard too")
                records[record.key] = (entry.index, record)
        self.keys: Sequence[str] = sorted(self._records["paths"])

    def holds(self, key: object) -> bool:
        return key in self._records["paths"]

    def find(self, kind: str, key: str) -> tuple[int, SidecarRecord] | None:
        return self._records.get(kind, {}).get(key)

    def prefetch(self, kinds: Collection[str], keys: Sequence[str]) -> None:
        """All was read when the set was opened."""


class _ByIndex:
    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._store, self._manifest = store, manifest
        self._begin()

    def _begin(self) -> None:
        self._index = Index(self._store, self._manifest)
        self._entries = {(entry.kind, entry.index): entry for entry in self._manifest.shards}
        self._held: dict[tuple[str, int], dict[str, SidecarRecord]] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Travels to a worker light: the index is read again there."""
        return {"_store": self._store, "_manifest": self._manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    @property
    def index(self) -> Index | None:
        return self._index

    @property
    def keys(self) -> Sequence[str]:
        return self._index.keys

    def holds(self, key: object) -> bool:
        return key in self._index.keys

    def find(self, kind: str, key: str) -> tuple[int, SidecarRecord] | None:
        at = self._index.slice_of(key)
        if at is None or (kind, at) not in self._entries:
            return None
        record = self._shard(kind, at).get(key)
        return None if record is None else (at, record)

    def prefetch(self, kinds: Collection[str], keys: Sequence[str]) -> None:
        slices = {self._index.slice_of(key) for key in keys}
        self._store.prefetch(Wanted(sidecar_path(kind, at)) for kind in kinds for at in slices
                             if at is not None and (kind, at) in self._entries and (kind, at) not in self._held)

    def _shard(self, kind: str, at: int) -> dict[str, SidecarRecord]:
        """The records of a shard by key. Those of the shard that was read longest ago make room for it."""
        with self._lock:
            found = self._held.get((kind, at))
        if found is not None:
            return found
        found = {record.key: record for record in _sidecar_records(self._store, self._entries[kind, at])}
        with self._lock:
            self._held[kind, at] = found
            while len(self._held) > 1 and sum(map(len, self._held.values())) > HELD_RECORDS:
                del self._held[next(iter(self._held))]
        return found


def _sidecar_records(store: Store, entry: ShardEntry) -> list[SidecarRecord]:
    """The records of a shard by its sidecar, once the shard has the size that the manifest says."""
    sidecar = read_sidecar(store, entry)
    size, where = store.size(entry.path), store.describe(entry.path)
    if size != entry.bytes:
        raise ShardError(f"{where}: {size:,} bytes, expected {entry.bytes:,}; the shard is truncated or replaced, "
                         "fetch it again or run `taro preprocess` again")
    return sidecar.records
