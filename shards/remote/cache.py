"""The local cache of remote sets: whole files and ranges, named by the sha256 of the file that they belong to.

A name stands for one content, so nothing in the cache can be out of date, and sets that share files share them here
too. An entry is written as `NAME.part` and renamed when all of it is there: a name without `.part` is whole. Nothing is
forced to the disk; whoever reads an entry checks its bytes, and has it fetched again where they are wrong.

Processes that want the same entry take turns by the system's file locks, which end with their holder, also by
`kill -9`; what a killed one left is written over by the next. Locks are files too, a fixed number of them, so two
entries may share one: that costs time now and then, never more. Where the entries outgrow the limit, those used longest
ago go (a file's time of change is its last use, to the hour). Processes look when they have written a hundredth of the
limit, so it is exceeded by at most that for each. Left out: a list of what is there, it would need a lock of its own.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from taro.core.errors import ConfigError, ShardError
from taro.core.files import locked
from taro.core.numbers import read_number
from taro.core.places import expand_home

__all__ = ["Cache", "default_cache", "range_key", "whole_key"]

FOLDER = "TARO_CACHE"
LIMIT = "TARO_CACHE_GB"
DEFAULT_GB = 50
STRIPES = 4096
USED_S = 3600.0
"""for so long an entry counts as used now: writing the time anew would make it look changed"""
PART = ".part"


def whole_key(sha256: str) -> str:
    """The entry of a whole file."""
    return f"{sha256[:2]}/{sha256}/whole"


def range_key(sha256: str, start: int, stop: int) -> str:
    """The entry of bytes [start, stop) of a file."""
    return f"{sha256[:2]}/{sha256}/{start}-{stop}"


class Cache:
    """A folder of entries, at most `limit_bytes` of them; see the module. With a limit of 0 nothing is kept."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._written = limit_bytes  # so that the first entry of a process looks

    def takes(self, size: int) -> bool:
        """Whether an entry of so many bytes is kept."""
        return size <= self.limit_bytes // 2

    def open(self, key: str) -> BinaryIO | None:
        """An entry, open for reading; None where it is not there, or no file is. It counts as used now."""
        try:
            handle = os.open(self.folder / key, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None
            raise self._trouble(error) from None
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            os.close(handle)
            return None
        with contextlib.suppress(OSError):
            if time.time() - facts.st_mtime > USED_S:
                os.utime(handle)
        return os.fdopen(handle, "rb")

    def has(self, key: str) -> bool:
        """Whether an entry is there; it counts as used now."""
        path = self.folder / key
        try:
            facts = path.lstat()
        except OSError:
            return False
        with contextlib.suppress(OSError):
            if time.time() - facts.st_mtime > USED_S:
                os.utime(path, follow_symlinks=False)
        return stat.S_ISREG(facts.st_mode)

    def forget(self, key: str) -> bool:
        """Removes an entry whose bytes are wrong; False where there is none."""
        try:
            (self.folder / key).unlink()
        except OSError:
            return False
        return True

    @contextlib.contextmanager
    def filling(self, keys: Sequence[str]) -> Iterator[list[str]]:
        """Yields those of `keys` that are not there, which nobody else writes inside the block."""
        stripes = sorted({_stripe(key) for key in keys})  # in one order, so that two never wait for each other
        with contextlib.ExitStack() as stack:
            try:
                (self.folder / "locks").mkdir(parents=True, exist_ok=True, mode=0o700)
                for stripe in stripes:
                    stack.enter_context(locked(self.folder / "locks" / stripe, wait=True))
            except OSError as error:
                raise self._trouble(error) from None
            yield [key for key in keys if not self.has(key)]

    @contextlib.contextmanager
    def new(self, key: str) -> Iterator[BinaryIO]:
        """A file that becomes the entry where the block ends well; only inside `filling` of its key."""
        path = self.folder / key
        part = path.with_name(path.name + PART)
        try:
            with self._created(part) as file:
                try:
                    yield file
                    file.flush()
                    size = file.tell()
                    part.replace(path)
                except BaseException:
                    part.unlink(missing_ok=True)
                    raise
        except OSError as error:
            raise self._trouble(error) from None
        self._written += size
        if self._written * 100 >= self.limit_bytes:
            self._written = 0
            self.shrink()

    def _created(self, part: Path) -> BinaryIO:
        while True:
            part.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            part.unlink(missing_ok=True)  # of a killed process; or a link, which is not followed
            try:
                return part.open("x+b")
            except FileNotFoundError:  # the folder was removed, empty, by one that shrinks
                continue

    def shrink(self) -> None:
        """Removes the entries used longest ago until all are within the limit, and what killed processes left."""
        with locked(self.folder / "locks" / "shrink", wait=False) as held:
            if not held:
                return
            entries, parts = self._scan()
            total = sum(size for _, size, _ in entries)
            for _, size, path in sorted(entries) if total > self.limit_bytes else ():
                if total <= self.limit_bytes - self.limit_bytes // 20:
                    break
                with contextlib.suppress(OSError):
                    path.unlink()
                total -= size
                with contextlib.suppress(OSError):
                    path.parent.rmdir()
        for path in parts:
            key = path.relative_to(self.folder).as_posix().removesuffix(PART)
            with locked(self.folder / "locks" / _stripe(key), wait=False) as mine:
                if mine:
                    path.unlink(missing_ok=True)

    def _scan(self) -> tuple[list[tuple[int, int, Path]], list[Path]]:
        """(last use, bytes, path) of each entry, and the parts."""
        entries, parts = [], []
        for path in self.folder.glob("??/*/*"):
            with contextlib.suppress(OSError):
                facts = path.lstat()
                if path.name.endswith(PART):
                    parts.append(path)
                else:
                    entries.append((facts.st_mtime_ns, facts.st_size, path))
        return entries, parts

    def _trouble(self, error: OSError) -> ShardError:
        free = ""
        with contextlib.suppress(OSError):
            free = f", {shutil.disk_usage(self.folder).free / 1e9:.1f} GB free"
        return ShardError(f"{self.folder}: the cache of remote sets cannot be used ({error.strerror}{free}); make "
                          f"room, name another folder in {FOLDER}, or lower {LIMIT} (0 keeps nothing)")


def _stripe(key: str) -> str:
    return f"{int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], 'big') % STRIPES:04x}"


def default_cache() -> Cache:
    """The cache that the environment names: TARO_CACHE, TARO_CACHE_GB. ConfigError where the latter is no size."""
    text = os.environ.get(LIMIT) or str(DEFAULT_GB)
    limit_gb = read_number(text)
    if limit_gb is None or not 0 <= limit_gb <= 1e9:
        raise ConfigError(f"{LIMIT}={text[:40]!a}: expected gigabytes, such as {DEFAULT_GB}, or 0 to keep nothing")
    return Cache(expand_home(os.environ.get(FOLDER) or "~/.cache/taro") / "shards", int(limit_gb * 1e9))
