"""Where a disk says no: writing files whole and tensors so that it says why, and turning its answer into one message.

A full disk, a quota, a read-only mount and a failing drive are the user's to mend, and Python tells of them in an
OSError that mostly names no file. `telling` adds where and what to do; `write_tensors` makes safetensors, which has an
exception of its own for it, answer like the rest. Left out: trying again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from taro.core.errors import TaroError

if TYPE_CHECKING:
    import torch

__all__ = ["fsync", "telling", "write_atomically", "write_tensors"]

MENDABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}


@contextlib.contextmanager
def telling(folder: Path, advice: Callable[[], str]) -> Iterator[None]:
    """Turns a disk's refusal inside the block into a TaroError: which folder, what it said, `advice()`. Other errors
    pass, and those about files outside of `folder`, which are read."""
    try:
        yield
    except OSError as error:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        path, root = Path(name).absolute(), folder.absolute()
        if error.errno not in MENDABLE or (name and not path.is_relative_to(root) and not root.is_relative_to(path)):
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


def fsync(path: Path) -> None:
    """Forces a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
