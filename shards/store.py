"""The contract of a store: the bytes of a set's files by name, wherever they lie.

A set is read through a `Store` alone. So another place (http, an object store, a hub) is one file with one class, and
one row in `taro.shards.remote.places`; nothing else of the package knows where a set lies.

Left out: removing and overwriting. A set is written into a folder (`taro.shards.writer`) and may be copied from there.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from io import BufferedReader
from typing import BinaryIO, NamedTuple, Protocol, cast

from taro.core.errors import ShardError
from taro.shards.format import CARD, INDEX, MANIFEST, SKIPPED, kind_ok, split_kind
from taro.shards.memory import record_memory

__all__ = ["Expected", "MissingFileError", "Piece", "Range", "Store", "Uncached", "Wanted", "check_name", "read_piece",
           "safe_name"]

QUIET_S = 10.0
"""since a file changed last, before it can be told from a file that changes again: clocks of file systems are coarse"""
Range = tuple[int, int]
"""bytes [start, stop) of a file"""


class MissingFileError(ShardError):
    """The store is there, the file is not."""


class Expected(NamedTuple):
    """What a manifest says of a file: its bytes, None where it does not say, and its sha256 in hex."""

    size: int | None
    sha256: str


class Wanted(NamedTuple):
    """Bytes [start, stop) of a file that will be read soon; to its end where `stop` is None."""

    name: str
    start: int = 0
    stop: int | None = None


class Piece(NamedTuple):
    """Bytes of a file, in memory of their own that may be written. `stamp`: device, inode, size and times of the file
    they were read from, and where they lie there: the same stamp, the same bytes; None where that cannot be told.
    `sha256`: in hex, of the bytes after the first BLOCK, a tar header; "" where it was not computed as they came."""

    data: memoryview
    stamp: tuple[int, ...] | None = None
    sha256: str = ""


class Store(Protocol):
    """Where one set lies.

    A store keeps no file open and no lock: it can be used from several threads and pickled to a worker. Every method
    that takes a name of a file checks it (`check_name`), since names come from manifests that are untrusted. Every
    failure is a ShardError that opens with `describe(name)`; `MissingFileError` where there is no such file. Nothing
    is allocated on the word of a caller or of a server alone: a read returns at most what the file has."""

    @property
    def place(self) -> str:
        """How a user names the set: a folder or a URL, never one with a secret in it."""

    def describe(self, name: str) -> str:
        """The file's full name, for messages; does not check it."""

    def size(self, name: str) -> int:
        """Bytes of the file."""

    def read(self, name: str, *, limit_bytes: int) -> bytes:
        """The whole file; ShardError where it is longer than the limit."""

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer where the file ends before."""

    def read_ranges(self, name: str, ranges: Sequence[Range]) -> list[Piece]:
        """Several ranges of one file, each as `read_range` has it, in as few requests as `groups` says."""

    def groups(self, wanted: Sequence[Wanted]) -> list[list[Wanted]]:
        """Ranges in the groups that are best read together by one call of `read_ranges`; each range once."""

    @property
    def at_once(self) -> int:
        """How many calls of `read_ranges` at the same time are quickest."""

    def open(self, name: str) -> BinaryIO:
        """The file as a seekable file object, for whoever reads a shard from its beginning to its end."""

    def list(self) -> Sequence[str]:
        """Names of all files at the place, ascending, with `/` between folders; also of those that no set may hold."""

    def put_if_absent(self, name: str, data: BinaryIO) -> bool:
        """Writes what is left to read of `data` as a new file, whole or not at all; False, and nothing changed, where
        the file exists already."""

    def expect(self, files: Mapping[str, Expected]) -> None:
        """Takes what files must be, once a manifest was read. A store that keeps copies names them by it."""

    def prefetch(self, wanted: Iterable[Wanted]) -> None:
        """Takes what will be read soon, so that a remote store fetches it in few requests; returns when it has."""

    def forget(self, name: str, offset: int, size: int) -> bool:
        """Notes that a range was read and is wrong. Whether reading it again may give other bytes: True where a copy
        was dropped."""


class Uncached:
    """What a store inherits that keeps no copies: each range is read on its own, and nothing is done ahead."""

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Of the store that inherits."""
        raise AssertionError("the store that inherits reads its ranges")

    def read_ranges(self, name: str, ranges: Sequence[Range]) -> list[Piece]:
        """One after the other."""
        return [Piece(memoryview(bytearray(self.read_range(name, start, stop - start)))) for start, stop in ranges]

    def groups(self, wanted: Sequence[Wanted]) -> list[list[Wanted]]:
        """Each alone."""
        return [[one] for one in dict.fromkeys(wanted)]

    @property
    def at_once(self) -> int:
        """One for each core, since a disk is rarely slower than a digest; two at least, so that one can wait."""
        return max(2, min(os.cpu_count() or 1, 8))

    def expect(self, files: Mapping[str, Expected]) -> None:
        """Nothing is kept, so nothing is named."""

    def prefetch(self, wanted: Iterable[Wanted]) -> None:
        """Reading is as near."""

    def forget(self, name: str, offset: int, size: int) -> bool:
        """Reading again gives the same bytes."""
        return False


def read_piece(file: BinaryIO, start: int, stop: int) -> Piece:
    """Bytes [start, stop) of an open file, fewer where it ends before. Not more is allocated than the file has."""
    before = _stamp(file)
    stop = min(stop, os.fstat(file.fileno()).st_size)
    view, count = record_memory(max(stop - start, 0)), 0
    file.seek(start)
    while count < len(view) and (more := cast(BufferedReader, file).readinto(view[count:])):
        count += more
    return Piece(view[:count], (*before, start, count) if before is not None and before == _stamp(file) else None)


def _stamp(file: BinaryIO) -> tuple[int, ...] | None:
    """What changes when an open file does; None where it changed so lately that another change may not show. Neither a
    write nor `os.utime` can set the time of the last change of a file (ctime)."""
    facts = os.fstat(file.fileno())
    if time.time() - facts.st_ctime < QUIET_S:
        return None
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def safe_name(name: str) -> bool:
    """Whether `name` is a file that a set may hold.

    >>> [safe_name(n) for n in ("manifest.json", "paths/paths-000000.tar", "paths/../paths-000000.tar", "/etc/passwd")]
    [True, True, False, False]
    """
    if name in {MANIFEST, CARD, SKIPPED, INDEX}:
        return True
    kind, _, file = name.rpartition("/")
    return kind_ok(kind) and re.fullmatch(rf"{split_kind(kind)[0]}-[0-9]{{6}}\.(?:tar|json)", file) is not None


def check_name(place: str, name: str) -> None:
    """Raises ShardError unless `name` is a file that a set may hold."""
    if not safe_name(name):
        raise ShardError(f"{place}: {name[:200]!r} is not a file of a shard set; the manifest or a sidecar is damaged "
                         "or malicious")
