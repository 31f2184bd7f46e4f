"""Durable writes, locks, digests, and disk errors that say which folder and what to do.

A full disk, a quota, a read-only mount and a failing drive are the user's to fix, and Python reports them in an OSError
that mostly names no file. `explain_disk_errors` adds where and what to do; `write_tensors` makes safetensors, which has
an exception of its own for it, answer like the rest. Locks are the system's (flock): they end with their holder, also
by `kill -9`. Left out: trying again."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from taro.core.errors import TaroError

if TYPE_CHECKING:
    import torch

__all__ = ["explain_disk_errors", "file_sha256", "fsync", "locked", "remove_temporary", "write_atomically",
           "write_tensors"]

log = logging.getLogger(__name__)

FIXABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}


@contextlib.contextmanager
def explain_disk_errors(folder: Path, advice: Callable[[], str]) -> Iterator[None]:
    """Turns a disk error inside the block into a TaroError: which folder, what the system said, `advice()`. Other
    errors pass, and those about files outside of `folder`, which are read."""
    try:
        yield
    except OSError as error:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        path, root = Path(name).absolute(), folder.absolute()
        if error.errno not in FIXABLE or (name and not path.is_relative_to(root) and not root.is_relative_to(path)):
            raise
        where = f" ({name})" if name else ""
        raise TaroError(f"{folder}: expected a folder with room to write in, got: {os.strerror(error.errno)}{where}. "
                        f"{advice()}") from error


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], *, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, forced to the disk, with the access rights that a new file has here. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:
        number = re.search(r"\(os error ([0-9]{1,5})\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)  # safetensors makes a file that its owner alone can read
    fsync(path)


def write_atomically(path: Path, data: bytes) -> None:
    """Temporary name, fsync, rename, fsync of the folder: the file is the old one or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


def remove_temporary(folder: Path, name: str = "*") -> None:
    """Removes what killed writers of `name` left in `folder`; the caller holds a lock, so nobody writes there now."""
    for left in folder.glob(f".{name}.*.tmp"):
        left.unlink(missing_ok=True)


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


def file_sha256(file: Path | BinaryIO) -> str:
    """Hex digest of a file; of an open one, from where it stands to its end."""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return file_sha256(opened)
    digest = hashlib.sha256()
    while piece := file.read(2**22):
        digest.update(piece)
    return digest.hexdigest()
