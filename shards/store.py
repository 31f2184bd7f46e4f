"""Where a set lies: reading ranges of its files by name. A local folder today; the seam for URLs.

A name is a path inside the set that the format allows; it is checked here once more, and neither the file nor a folder
on the way may be a symbolic link, so a stranger's set cannot read outside itself. Files are opened per read: nothing to
share between threads, to inherit over a fork or to pickle to a worker.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from taro.core.errors import ShardError
from taro.shards.format import CARD, MANIFEST, SKIPPED, kind_ok, split_kind

__all__ = ["LocalStore", "file_sha256", "open_store", "safe_name"]


def safe_name(name: str) -> bool:
    """Whether `name` is a file that a set may hold.

    >>> [safe_name(n) for n in ("manifest.json", "paths/paths-000000.tar", "paths/../paths-000000.tar", "/etc/passwd")]
    [True, True, False, False]
    """
    if name in {MANIFEST, CARD, SKIPPED}:
        return True
    kind, _, file = name.rpartition("/")
    return kind_ok(kind) and re.fullmatch(rf"{split_kind(kind)[0]}-[0-9]{{6}}\.(?:tar|json)", file) is not None


def file_sha256(file: BinaryIO) -> str:
    """Hex digest of a file from where it stands to its end."""
    digest = hashlib.sha256()
    while piece := file.read(2**22):
        digest.update(piece)
    return digest.hexdigest()


class LocalStore:
    """A folder. `where(name)` names a file in messages."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def where(self, name: str) -> str:
        """The file's full name, for messages."""
        return str(self.root / name)

    def size(self, name: str) -> int:
        """Bytes of the file; ShardError where it is missing or not a regular file."""
        with self.open(name) as file:
            return os.fstat(file.fileno()).st_size

    def read(self, name: str, *, limit_bytes: int) -> bytes:
        """The whole file; ShardError where it is longer than the limit."""
        with self.open(name) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit_bytes:
                raise ShardError(f"{self.where(name)}: {size:,} bytes, at most {limit_bytes:,} are read")
            return file.read(size)  # not the limit: all that is asked for is allocated

    def pread(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer at the end of the file; no more is allocated than it has."""
        with self.open(name) as file:
            room = max(os.fstat(file.fileno()).st_size - offset, 0)
            file.seek(offset)
            return file.read(min(size, room))

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """The file, opened for reading, neither it nor its folders being links."""
        if not safe_name(name):
            raise ShardError(f"{self.root}: {name[:200]!r} is not a file of a shard set; the manifest or a sidecar is "
                             "damaged or malicious")
        with contextlib.ExitStack() as stack:
            try:
                self._refuse_links(name)
                handle = os.open(self.root / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
                file = stack.enter_context(os.fdopen(handle, "rb"))
                regular = stat.S_ISREG(os.fstat(handle).st_mode)
            except FileNotFoundError:
                raise ShardError(f"{self.where(name)}: missing; the set is incomplete, run `taro preprocess` again "
                                 "(it resumes) or fetch the file") from None
            except OSError as error:
                raise ShardError(f"{self.where(name)}: cannot be opened ({error.strerror})") from None
            if not regular:
                raise ShardError(f"{self.where(name)}: not a regular file")
            yield file

    def _refuse_links(self, name: str) -> None:
        path = self.root
        for part in name.split("/"):
            path = path / part
            if stat.S_ISLNK(path.lstat().st_mode):
                raise ShardError(f"{path}: a symbolic link; shards are read only from real files inside the set's "
                                 "folder (copy the set with `cp -rL`)")


def open_store(path_or_url: str | Path) -> LocalStore:
    """The place of a set. Only folders for now: a URL is refused with the way around."""
    text = str(path_or_url)
    if re.match(r"[a-z][a-z0-9+.-]*://", text):
        raise ShardError(f"{text}: shards are read from a local folder; download the set there first "
                         "(for hf://, `hf download --repo-type dataset --local-dir DIR`)")
    root = Path(path_or_url)
    if not root.is_dir():
        raise ShardError(f"{root}: no such folder; expected a shard set, as `taro preprocess` writes it")
    return LocalStore(root)
