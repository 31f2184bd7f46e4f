"""Durable writes, locks, digests, and disk errors that say which folder and what to do.

A full disk, a quota, a read-only mount and a failing drive are the user's to fix, and Python reports them in an OSError
that mostly names no file. `explain_disk_errors` adds where and what to do. Locks are the system's (flock): they end
with their holder, also by `kill -9`.

A file is written beside its place as `.NAME.tmp`, which its writer holds locked, and renamed. So a file of that name
that nobody holds is what a killed writer left, and the next writer of NAME removes it. Left out: trying again."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from taro.core.errors import ConfigError, TaroError

__all__ = ["check_local", "explain_disk_errors", "file_sha256", "fsync", "is_plain_name", "is_unused", "locked",
           "make_folders", "new_file", "open_regular", "remove_temporary", "remove_temporary_folders",
           "replace_folder", "write_atomically"]

log = logging.getLogger(__name__)

MAX_NAME_BYTES = 255
"""of a file; the system calls for longer ones fail"""
FIXABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}


@contextlib.contextmanager
def explain_disk_errors(folder: Path, advice: Callable[[], str], *, aside: Path | None = None) -> Iterator[None]:
    """Turns a disk error inside the block into a TaroError: which folder, what the system said, `advice()`. Other
    errors pass, and those about files outside of `folder` (or of `aside`, where it is written first), which are
    read."""
    try:
        yield
    except OSError as error:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        path, roots = Path(name).absolute(), [one.absolute() for one in (folder, aside) if one is not None]
        ours = not name or any(path.is_relative_to(root) or root.is_relative_to(path) for root in roots)
        if error.errno not in FIXABLE or not ours:
            raise
        where = f" ({name})" if name else ""
        raise TaroError(f"{folder}: expected a folder with room to write in, got: {os.strerror(error.errno)}{where}. "
                        f"{advice()}") from error


def is_plain_name(name: object) -> bool:
    """Whether a value is the name of a file in a folder, and no path: for names that untrusted files tell.

    >>> [is_plain_name(name) for name in ("a.json", "", "..", "a/b", "x" * 256, None)]
    [True, False, False, False, False, False]
    """
    return (isinstance(name, str) and name not in {"", ".", ".."} and not {"/", "\0"} & {*name}
            and len(name.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES)


def write_atomically(path: Path, data: bytes) -> None:
    """Temporary name, fsync, rename, fsync of the folder: the file is the old one or the new one, never a part."""
    with new_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def new_file(path: Path, *, replace: bool = True) -> Iterator[BinaryIO]:
    """A file, open for writing, that becomes `path` where the block ends well, forced to the disk with its name; where
    it does not, nothing is left. Several writers of one path take turns.

    `replace`: False: FileExistsError at the end where the path is there already."""
    if path.exists() and not path.is_file():  # a pipe or a device, such as /dev/stdout
        with path.open("wb") as file:
            yield file
        return
    handle, temporary = _created(path.with_name(f".{path.name}.tmp"))
    with os.fdopen(handle, "wb") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if replace:
                temporary.replace(path)
            else:
                os.link(temporary, path)
        finally:
            _remove(temporary, file.fileno())
    fsync(path.parent)


def _remove(path: Path, handle: int) -> None:
    """Removes a file under a name, unless the name is of another file by now."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(path.lstat(), os.fstat(handle)):
            path.unlink()


def _created(temporary: Path) -> tuple[int, Path]:
    """(descriptor, path) of a new temporary file that this process holds locked; under another name where the file
    system has no locks."""
    while True:
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            if _remove_dead(temporary, wait=True) is None:
                temporary = temporary.with_name(f"{temporary.name.removesuffix('.tmp')}.{uuid.uuid4().hex}.tmp")
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            return handle, temporary
        if os.fstat(handle).st_nlink:
            return handle, temporary
        os.close(handle)  # taken for a dead writer's between the two calls


def _remove_dead(temporary: Path, *, wait: bool) -> bool | None:
    """Removes a temporary file once no writer holds it. False where one does and `wait` is false, None where that
    cannot be told: a file system without locks, a folder of that name."""
    try:
        handle = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link in its place is nobody's temporary file
            temporary.unlink(missing_ok=True)
            return True
        raise
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        _remove(temporary, handle)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in FIXABLE:
            raise
        return None
    finally:
        os.close(handle)
    return True


def remove_temporary(folder: Path, name: str = "*") -> None:
    """Removes what killed writers of `name` left in `folder`. What a living one has open under `new_file` stays; the
    caller holds a lock against writers that use other means."""
    for left in {*folder.glob(f".{name}.tmp"), *folder.glob(f".{name}.*.tmp")}:
        if _remove_dead(left, wait=False) is None and not left.is_dir():
            left.unlink(missing_ok=True)


def is_unused(folder: Path, claim: str) -> bool:
    """Whether a folder holds nothing, but for what killed writers of the file `claim` left. A job that takes only
    empty folders writes such a file first; killed while it does, it must know the folder as its own again.

    >>> is_unused(Path("/nowhere"), "settings.json")
    True
    """
    left = {*folder.glob(f".{claim}.tmp"), *folder.glob(f".{claim}.*.tmp")}
    return not folder.is_dir() or all(path in left for path in folder.iterdir())


def check_local(path: Path) -> None:
    """ConfigError where a path was a URL: a Path of `s3://bucket/set` is the folder `s3:` of where one stands."""
    scheme = path.parts[0] if path.parts else ""
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+:", scheme):
        raise ConfigError(f"{scheme}//...: expected a file or folder of this machine; `taro shards push` and `pull` "
                          "copy sets to other places and from there")


def make_folders(path: Path) -> None:
    """Makes a folder and those above it where they are missing, their names forced to the disk: files that are fsynced
    in a folder are lost with its name. ConfigError where it is a URL."""
    check_local(path)
    missing = []
    while not path.is_dir():
        missing.append(path)
        if path == path.parent:
            break
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        with contextlib.suppress(PermissionError):  # a folder that may be written and not listed cannot be opened
            fsync(folder.parent)


def replace_folder(new: Path, final: Path) -> None:
    """Gives the folder `new` (`.tmp-NAME` beside it, forced to the disk) the name `final`. One that stands there is
    set aside first; `remove_temporary_folders` brings it back where the job was killed in between."""
    old = final.with_name(f".tmp-old-{final.name}")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    new.rename(final)
    fsync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_temporary_folders(folder: Path) -> None:
    """Removes the folders `.tmp-*` that a killed job left in `folder`; the caller holds a lock on it."""
    for old in folder.glob(".tmp-old-*"):
        final = folder / old.name.removeprefix(".tmp-old-")
        if not final.exists():
            old.rename(final)
    for left in folder.glob(".tmp-*"):
        shutil.rmtree(left, ignore_errors=True)


def fsync(path: Path) -> None:
    """Forces a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(path: Path | int, *, wait: bool) -> Iterator[bool]:
    """Holds the lock on a file for the block; yields False where another holds it and `wait` is false.

    `path`: of a lock file, made where it is missing; or the descriptor of an open file or folder, which stays open. A
    file system without locks is warned of, and the block runs."""
    handle = path if isinstance(path, int) else os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    held = True
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            held = False
        except OSError as error:
            log.warning("%s: no lock (%s); see that no other job works in this folder", path, error)
        yield held
    finally:
        if handle is not path:
            os.close(handle)
        elif held:
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file to read. A pipe is not waited for and a device not read: OSError, as where there is none."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    kind = os.fstat(handle).st_mode
    if stat.S_ISREG(kind):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "a pipe, a socket or a device, not a file", str(path))


def file_sha256(file: Path | BinaryIO) -> str:
    """Hex digest of a file; of an open one, from where it stands to its end."""
    if isinstance(file, Path):
        with open_regular(file) as opened:
            return file_sha256(opened)
    digest = hashlib.sha256()
    while piece := file.read(2**22):
        digest.update(piece)
    return digest.hexdigest()
