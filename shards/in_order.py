"""A store whose shards are read from their beginnings to their ends: one file of each kind stays open and is read on.

What is read, and how it is checked, is as with the store itself: a set that is read in order gives the same samples and
the same errors. For one thread at a time; the next shard of a kind closes the one before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import BinaryIO

from taro.shards.store import Expected, Store, Wanted

__all__ = ["InOrder"]


class InOrder:
    """A `Store` that reads ranges through open files."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._files: dict[str, tuple[str, BinaryIO, int]] = {}
        """folder of the shards of a kind -> name, file and bytes of the one that is open"""

    @property
    def place(self) -> str:
        """As `Store.place`."""
        return self.store.place

    def describe(self, name: str) -> str:
        """As `Store.describe`."""
        return self.store.describe(name)

    def size(self, name: str) -> int:
        """As `Store.size`."""
        return self.store.size(name)

    def read(self, name: str, *, limit_bytes: int) -> bytes:
        """As `Store.read`."""
        return self.store.read(name, limit_bytes=limit_bytes)

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """As `Store.read_range`; the file stays open."""
        kind = name.rpartition("/")[0]
        held = self._files.get(kind)
        if held is None or held[0] != name:
            if held is not None:
                del self._files[kind]
                held[1].close()
            held = self._files[kind] = name, self.store.open(name), self.store.size(name)
        _, file, room = held
        file.seek(offset)
        return file.read(min(size, max(room - offset, 0)))  # no more than there is: all that is asked for is allocated

    def open(self, name: str) -> BinaryIO:
        """As `Store.open`."""
        return self.store.open(name)

    def list(self) -> Sequence[str]:
        """As `Store.list`."""
        return self.store.list()

    def put_if_absent(self, name: str, data: BinaryIO) -> bool:
        """As `Store.put_if_absent`."""
        return self.store.put_if_absent(name, data)

    def expect(self, files: Mapping[str, Expected]) -> None:
        """As `Store.expect`."""
        self.store.expect(files)

    def prefetch(self, wanted: Iterable[Wanted]) -> None:
        """As `Store.prefetch`."""
        self.store.prefetch(wanted)

    def forget(self, name: str, offset: int, size: int) -> bool:
        """As `Store.forget`; the file is opened anew."""
        held = self._files.pop(name.rpartition("/")[0], None)
        if held is not None:
            held[1].close()
        return self.store.forget(name, offset, size)

    def close(self) -> None:
        """Closes the files."""
        while self._files:
            self._files.popitem()[1][1].close()
