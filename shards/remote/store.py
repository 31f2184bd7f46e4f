"""A set at a remote place as a `Store`: every file through a local cache, records as ranges, several at once.

What a file must be (its bytes and sha256) is learnt from the manifest (`expect`). From then on whole files are checked
when they arrive, and ranges are named by their file's sha256; whoever asks for a range checks it, as for a folder, and
says where it was wrong (`forget`), so that a damaged cache is fetched anew. What no manifest names is read anew each
time. A range that is read when it comes is handed on from memory, and written to the cache beside that.

Small files come whole. Of larger ones ranges are fetched; those that are wanted together (`prefetch`) and lie close are
one request. Left out: guessing what will be wanted."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, BinaryIO

from taro.core.errors import ShardError
from taro.core.files import file_sha256
from taro.core.parallel import in_parallel
from taro.shards.format import BLOCK, MAX_MANIFEST_BYTES
from taro.shards.memory import record_memory
from taro.shards.remote.bucket import CutOffError, Files, Head, NoRangesError
from taro.shards.remote.cache import Cache, range_key, whole_key
from taro.shards.store import Expected, Piece, Range, Wanted, check_name, read_piece

__all__ = ["RemoteStore", "coalesced"]

CONNECTIONS = 8
"""requests at the same time, of one process and set"""
WHOLE_BYTES = 32 * 2**20
"""a file of at most so many bytes is fetched whole"""
REQUEST_BYTES = 64 * 2**20
"""of one request at most, unless one record is larger"""
GAP_BYTES = 2**20
"""between two records that are one request all the same: fetching it costs less than another round trip"""
ROOM_BYTES = 2**26
"""of memory for a range before anything came; more only when as much has come"""


def coalesced(ranges: Iterable[Range], *, gap: int = GAP_BYTES, most: int = REQUEST_BYTES) -> list[list[Range]]:
    """Ranges [start, stop) in groups, each for one request: neighbours that are at most `gap` apart, of `most` bytes
    together.

    >>> coalesced([(50, 60), (0, 10), (12, 20), (0, 10)], gap=5)
    [[(0, 10), (12, 20)], [(50, 60)]]
    """
    groups: list[list[Range]] = []
    for one in sorted(set(ranges)):
        last = groups[-1] if groups else None
        stop = max(stop for _, stop in last) if last else 0
        if last and one[0] - stop <= gap and max(one[1], stop) - last[0][0] <= most:
            last.append(one)
        else:
            groups.append([one])
    return groups


class RemoteStore:
    """`Files` at a place and a `Cache` as a `Store`. It can be used from several threads and pickled to a worker."""

    def __init__(self, bucket: Files, cache: Cache) -> None:
        self._bucket, self._cache = bucket, cache
        self._expected: dict[str, Expected] = {}
        self._heads: dict[str, Head] = {}
        self._checked: set[str] = set()
        self._requests = threading.Semaphore(CONNECTIONS)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_requests"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._requests = threading.Semaphore(CONNECTIONS)

    @property
    def place(self) -> str:
        """The URL."""
        return self._bucket.place

    def describe(self, name: str) -> str:
        """The file's URL."""
        return f"{self.place}/{name}"

    def expect(self, files: Mapping[str, Expected]) -> None:
        """What files must be."""
        self._expected.update(files)

    def forget(self, name: str, offset: int, size: int) -> bool:
        """Removes what the cache holds of a range whose bytes were wrong; False where it holds nothing."""
        known = self._expected.get(name)
        if known is None:
            return False
        found = [self._cache.forget(key) for key in (range_key(known.sha256, offset, offset + size),
                                                     whole_key(known.sha256))]
        return any(found)

    def size(self, name: str) -> int:
        """Bytes of the file: those that the manifest tells, and else the server."""
        check_name(self.place, name)
        known = self._expected.get(name)
        return self._head(name).size if known is None or known.size is None else known.size

    def read(self, name: str, *, limit_bytes: int) -> bytes:
        """The whole file; ShardError where it is longer than the limit."""
        check_name(self.place, name)
        known = self._expected.get(name)
        file = self._whole(name, known, limit_bytes) if known else None
        if file is not None:
            with file:
                return file.read(self._within(name, os.fstat(file.fileno()).st_size, limit_bytes))
        return self._direct(name, 0, self._within(name, self.size(name), limit_bytes))

    def _within(self, name: str, size: int, limit_bytes: int) -> int:
        if size > limit_bytes:
            raise ShardError(f"{self.describe(name)}: {size:,} bytes, at most {limit_bytes:,} are read")
        return size

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer at the end of the file."""
        return bytes(self.read_ranges(name, [(offset, offset + size)])[0].data)

    def read_ranges(self, name: str, ranges: Sequence[Range]) -> list[Piece]:
        """Ranges from the cache; what it lacks is fetched together, and kept there too."""
        size, known = self.size(name), self._expected.get(name)
        spans = [(start, max(start, min(stop, size))) for start, stop in ranges]
        found = {one: Piece(memoryview(bytearray())) for one in spans if one[0] == one[1]}
        for fetch in (True, False):
            for one in spans:
                piece = None if known is None or one in found else self._from_cache(known, *one)
                found |= {} if piece is None else {one: piece}
            lacking = [one for one in dict.fromkeys(spans) if one not in found and self._cache.takes(one[1] - one[0])]
            if known and lacking and fetch:
                found |= self._fetch(name, known, lacking, keep=True)
        for one in spans:
            if one not in found:
                found |= self._fill(name, None, [one], keep=True)
        return [found[one] for one in spans]

    def groups(self, wanted: Sequence[Wanted]) -> list[list[Wanted]]:
        """Of a small file all, of a larger one what is one request."""
        files: dict[str, dict[Range, Wanted]] = {}
        for one in wanted:
            files.setdefault(one.name, {})[one.start, self.size(one.name) if one.stop is None else one.stop] = one
        return [[ranges[span] for span in group] for name, ranges in files.items()
                for group in ([[*ranges]] if self.size(name) <= WHOLE_BYTES else coalesced(ranges))]

    @property
    def at_once(self) -> int:
        """Of connections as many as keep the cores busy."""
        return min(CONNECTIONS, 2 * (os.cpu_count() or 1))

    def open(self, name: str) -> BinaryIO:
        """The file, fetched whole and checked where the cache takes it, else read in pieces."""
        check_name(self.place, name)
        known = self._expected.get(name)
        file = self._whole(name, known) if known else None
        return file or io.BufferedReader(_Ranged(partial(self._direct, name), self.size(name)), 2**24)

    def prefetch(self, wanted: Iterable[Wanted]) -> None:
        """Brings ranges, and whole files where `stop` is None, into the cache, several at a time; returns when all are
        there. What the cache does not take, or no manifest names, is left to be read later."""
        whole: dict[str, Expected] = {}
        ranges: dict[str, list[Range]] = {}
        for name, start, stop in wanted:
            known = self._expected.get(name)
            if known is not None and stop is None:
                whole[name] = known
            elif known is not None and stop is not None and self._cache.takes(stop - start):
                ranges.setdefault(name, []).append((start, min(stop, self.size(name))))
        jobs: list[Callable[[], object]] = [partial(self._fetch_whole, name, known) for name, known in whole.items()]
        for name, of_file in ranges.items():
            known = self._expected[name]
            if known.size is not None and known.size <= WHOLE_BYTES:
                jobs.append(partial(self._fetch_whole, name, known))
            else:
                jobs += [partial(self._fetch, name, known, group) for group in coalesced(of_file)]
        _together(jobs)

    def list(self) -> Sequence[str]:
        """Names of all files at the place, ascending; NoListError where the place cannot list."""
        return [one.name for one in self._bucket.list()]

    def put_if_absent(self, name: str, data: BinaryIO) -> bool:
        """A remote set is written by `taro shards push`."""
        raise ShardError(f"{self.describe(name)}: a set at a remote place is only read; write to a folder, then `taro "
                         "shards push`")

    def _head(self, name: str) -> Head:
        check_name(self.place, name)
        if name not in self._heads:
            self._heads[name] = self._bucket.head(name)
        return self._heads[name]

    def _chunks(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        check_name(self.place, name)
        known = self._heads.get(name)
        with self._requests:
            yield from self._bucket.chunks(name, start, stop, known.etag if known else None)

    def _direct(self, name: str, start: int, stop: int) -> bytes:
        """Bytes past the cache."""
        return b"".join(self._chunks(name, start, stop))

    def _from_cache(self, known: Expected, start: int, stop: int) -> Piece | None:
        for key, at in ((range_key(known.sha256, start, stop), 0), (whole_key(known.sha256), start)):
            file = self._cache.open(key)
            if file is not None:
                with file:
                    return read_piece(file, at, at + stop - start)
        return None

    def _fetch(self, name: str, known: Expected, ranges: Sequence[Range], *,
               keep: bool = False) -> dict[Range, Piece]:
        """Brings ranges of one file into the cache with one request, or the whole file where it is small or its server
        has no ranges. `keep`: gives the ranges that this call fetched, too."""
        found: dict[Range, Piece] = {}
        if known.size is not None and known.size <= WHOLE_BYTES and self._cache.takes(known.size):
            self._fetch_whole(name, known)
            return found
        if self._cache.has(whole_key(known.sha256)):
            return found
        keys = {range_key(known.sha256, *one): one for one in ranges}
        try:
            with self._cache.filling([*keys]) as lacking:
                for group in coalesced(keys[key] for key in lacking):
                    found |= self._fill(name, known, group, keep=keep)
        except NoRangesError:
            if not self._cache.takes(self.size(name)):
                raise
            self._fetch_whole(name, known)
        return found

    def _fill(self, name: str, known: Expected | None, group: Sequence[Range], *, keep: bool) -> dict[Range, Piece]:
        """The ranges of one request, written to the cache as they come, unless `known` is None, and kept in memory
        where they are asked for."""
        at = group[0][0]
        rooms = {one: _Room(one[1] - one[0]) for one in group} if keep else {}
        with contextlib.ExitStack() as stack:
            files = {one: stack.enter_context(self._cache.new(range_key(known.sha256, *one)))
                     for one in group} if known else {}
            for piece in self._chunks(name, at, max(stop for _, stop in group)):
                for start, stop in group:
                    part = memoryview(piece)[max(start - at, 0) : max(stop - at, 0)]
                    if part and (start, stop) in files:
                        files[start, stop].write(part)
                    if part and keep:
                        rooms[start, stop].add(part)
                at += len(piece)
        return {one: room.piece() for one, room in rooms.items()}

    def _fetch_whole(self, name: str, known: Expected) -> None:
        """Brings a file into the cache, its sha256 checked; asked twice before it is called wrong."""
        key = whole_key(known.sha256)
        if self._cache.has(key):
            return
        size = self.size(name)
        if not self._cache.takes(size) or (known.size is None and size > MAX_MANIFEST_BYTES):
            return
        with self._cache.filling([key]) as lacking:
            for last in (False, True) if lacking else ():
                try:
                    with self._cache.new(key) as file:
                        digest = hashlib.sha256()
                        for piece in self._chunks(name, 0, size):
                            file.write(piece)
                            digest.update(piece)
                        if digest.hexdigest() != known.sha256:
                            raise CutOffError(f"{self.describe(name)}: its sha256 is not the manifest's; the set was "
                                              "replaced, or the file there is damaged: ask whoever shares it")
                        self._checked.add(known.sha256)
                    return
                except CutOffError:
                    if last:
                        raise

    def _whole(self, name: str, known: Expected, limit_bytes: int = 2**63) -> BinaryIO | None:
        """A whole file in the cache, fetched where it is not there; None where the cache does not take it."""
        for _ in range(3):  # it may be damaged, and it may be removed before it is opened
            file = self._cache.open(whole_key(known.sha256))
            if file is None:
                self._within(name, self.size(name), limit_bytes)
                self._fetch_whole(name, known)
            elif known.sha256 in self._checked or file_sha256(file) == known.sha256:
                self._checked.add(known.sha256)
                file.seek(0)
                return file
            else:
                file.close()
                self._cache.forget(whole_key(known.sha256))
        return None


def _together(jobs: Sequence[Callable[[], object]]) -> None:
    """Runs all jobs, several at a time; the first error is raised, jobs that have not begun are dropped then."""
    if len(jobs) == 1:
        jobs[0]()
        return
    in_parallel(jobs, threading.Event(), jobs=CONNECTIONS)


class _Room:
    """Memory for a range that comes in parts, each hashed while it is in the processor's cache, and while the server
    sends the next. It grows with what has come: a range that is only said to be long allocates little."""

    def __init__(self, size: int) -> None:
        self._size, self._count = size, 0
        self._data = record_memory(min(size, ROOM_BYTES))
        self._digest = hashlib.sha256()

    def add(self, part: memoryview) -> None:
        """Takes what comes next."""
        stop = self._count + len(part)
        if stop > len(self._data):
            held, self._data = self._data, record_memory(min(self._size, max(2 * len(self._data), stop)))
            self._data[: self._count] = held[: self._count]
        self._data[self._count : stop] = part
        self._digest.update(part[max(BLOCK - self._count, 0) :])
        self._count = stop

    def piece(self) -> Piece:
        """What came."""
        return Piece(self._data[: self._count], sha256=self._digest.hexdigest())


class _Ranged(io.RawIOBase):
    """A file that is read range by range."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read, self._size, self._at = read, size, 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of any file."""
        self._at = max(offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence], 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """As of any file."""
        stop = min(self._at + len(buffer), self._size)
        data = self._read(self._at, stop) if stop > self._at else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
