"""A set in a local folder.

Neither a file nor a folder on the way to it may be a symbolic link, so an untrusted set cannot make its reader open
what lies outside. Files are opened for each read, without waiting for pipes or devices."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from taro.core.errors import ShardError
from taro.core.files import make_folders, new_file
from taro.shards.store import MissingFileError, Piece, Range, Uncached, check_name, read_piece

__all__ = ["LocalStore"]


class LocalStore(Uncached):
    """A folder as a `Store`. It need not exist: then every file is missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def place(self) -> str:
        """The folder."""
        return str(self.folder)

    def describe(self, name: str) -> str:
        """The file's full path."""
        return str(self.folder / name)

    def size(self, name: str) -> int:
        """Bytes of the file."""
        with self.open(name) as file:
            return os.fstat(file.fileno()).st_size

    def read(self, name: str, *, limit_bytes: int) -> bytes:
        """The whole file; ShardError where it is longer than the limit."""
        with self.open(name) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit_bytes:
                raise ShardError(f"{self.describe(name)}: {size:,} bytes, at most {limit_bytes:,} are read")
            return file.read(size)  # not the limit: all that is asked for is allocated

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer at the end of the file."""
        with self.open(name) as file:
            room = max(os.fstat(file.fileno()).st_size - offset, 0)
            file.seek(offset)
            return file.read(min(size, room))

    def read_ranges(self, name: str, ranges: Sequence[Range]) -> list[Piece]:
        """Ranges of the file, opened once."""
        with self.open(name) as file:
            return [read_piece(file, *one) for one in ranges]

    def open(self, name: str) -> BinaryIO:
        """The file, opened for reading, neither it nor its folders being links."""
        check_name(self.place, name)
        try:
            self._refuse_links(name)
            handle = os.open(self.folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise MissingFileError(f"{self.describe(name)}: missing; the set is incomplete, run `taro preprocess` "
                                   "again (it resumes) or fetch the file") from None
        except OSError as error:
            raise ShardError(f"{self.describe(name)}: cannot be opened ({error.strerror})") from None
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise ShardError(f"{self.describe(name)}: not a regular file")
        return os.fdopen(handle, "rb")

    def list(self) -> Sequence[str]:
        """Names of all files below the folder, ascending, and of links to folders: those are not followed, and
        opening what they should hold raises ShardError."""
        return sorted((Path(folder) / name).relative_to(self.folder).as_posix()
                      for folder, folders, files in os.walk(self.folder)
                      for name in (*files, *(one for one in folders if Path(folder, one).is_symlink())))

    def put_if_absent(self, name: str, data: BinaryIO) -> bool:
        """Writes a temporary file, forces it to the disk and links it to its name, which fails where that exists."""
        check_name(self.place, name)
        path = self.folder / name
        try:
            make_folders(path.parent)
            self._refuse_links(name.rpartition("/")[0] or ".")
            with contextlib.suppress(FileExistsError):
                with new_file(path, replace=False) as file:
                    shutil.copyfileobj(data, file)
                return True
        except OSError as error:
            raise ShardError(f"{self.describe(name)}: cannot be written ({error.strerror})") from None
        return False

    def _refuse_links(self, name: str) -> None:
        path = self.folder
        for part in name.split("/"):
            path = path / part
            if stat.S_ISLNK(path.lstat().st_mode):
                raise ShardError(f"{path}: a symbolic link; shards are read only from real files inside the set's "
                                 "folder (copy the set with `cp -rL`)")
