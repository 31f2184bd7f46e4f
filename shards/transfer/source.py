"""Where a pull comes from: a folder, a bundle that is about to leave, or a remote place; read in pieces, never trusted.

Sizes are only told by a server; whoever reads bounds them. Every byte is checked by `taro.shards.transfer.receive`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from taro.core.errors import ShardError
from taro.shards.remote.bucket import Bucket, NoListError
from taro.shards.store import check_name
from taro.shards.store_local import LocalStore
from taro.shards.transfer.outgoing import Bundle

__all__ = ["BucketSource", "BundleSource", "FolderSource", "Source", "read_small"]

PIECE_BYTES = 2**20


class Source(Protocol):
    """A set that is copied from. Failures are ShardErrors without secrets."""

    @property
    def place(self) -> str:
        """How its user names it, without any secret."""

    @property
    def revision(self) -> str | None:
        """What all reads are of, where the place has revisions."""

    def sizes(self) -> Mapping[str, int] | None:
        """Bytes of every file by name; None where the place cannot list."""

    def size(self, name: str) -> int:
        """Bytes of a file."""

    def chunks(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        """Bytes [start, stop) of a file in pieces: exactly as many, or an error at the end."""


class FolderSource:
    """A set in a local folder."""

    revision: str | None = None

    def __init__(self, store: LocalStore) -> None:
        self.store = store

    @property
    def place(self) -> str:
        """The folder."""
        return self.store.place

    def sizes(self) -> Mapping[str, int] | None:
        """None: the files are asked one by one, since a folder may hold anything beside the set."""
        return None

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return self.store.size(name)

    def chunks(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        """Bytes [start, stop) of a file in pieces."""
        with self.store.open(name) as file:
            file.seek(start)
            left = stop - start
            while left and (piece := file.read(min(left, PIECE_BYTES))):
                left -= len(piece)
                yield piece
        if left:
            raise ShardError(f"{self.store.describe(name)}: {stop:,} bytes expected, the file ends before; `taro "
                             "shards verify` lists what is wrong with the set")


class BundleSource(FolderSource):
    """What is about to leave a set; its files lie in two folders."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(LocalStore(bundle.folders[-1]))
        self._bundle = bundle

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return self._bundle.store_of(name).size(name)

    def chunks(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        """Bytes [start, stop) of a file in pieces."""
        return FolderSource(self._bundle.store_of(name)).chunks(name, start, stop)


class BucketSource:
    """A set at a remote place."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.revision: str | None = getattr(bucket, "revision", None)
        """of a place that has revisions: the one that it was opened at"""

    @property
    def place(self) -> str:
        """The URL."""
        return self.bucket.place

    def sizes(self) -> Mapping[str, int] | None:
        """Bytes of every file by name; None where the place cannot list."""
        try:
            return {one.name: one.size for one in self.bucket.list()}
        except NoListError:
            return None

    def size(self, name: str) -> int:
        """Bytes of a file, as the server says."""
        check_name(self.place, name)
        return self.bucket.head(name).size

    def chunks(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        """Bytes [start, stop) of a file in pieces."""
        check_name(self.place, name)
        return self.bucket.chunks(name, start, stop)


def read_small(source: Source, name: str, *, limit_bytes: int) -> bytes:
    """A small file, whole; ShardError where it is longer than the limit."""
    size = source.size(name)
    if size > limit_bytes:
        raise ShardError(f"{source.place}/{name}: {size:,} bytes, at most {limit_bytes:,} are read")
    return b"".join(source.chunks(name, 0, size))
