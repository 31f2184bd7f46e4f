"""What taro raises at its users: one base class, one subclass per kind of thing that was wrong.

A user's mistake (or an untrusted file) is a `TaroError`: its message says what was expected, what was got and what
to do. The command line prints that message alone, a traceback only with `--debug`. A broken invariant of our own is
an assert, never one of these."""

from __future__ import annotations

__all__ = ["AnnotationError", "ConfigError", "MissingPackageError", "ModelError", "ShardError", "Stopped", "TaroError",
           "VideoError", "first_line", "full_memory"]


class TaroError(Exception):
    """Base class: something outside taro is not as it must be; the message says what to do."""


class Stopped(KeyboardInterrupt):
    """A command stopped in good order, since a signal asked it to; the message says what is kept."""


class ConfigError(TaroError):
    """A recipe, a `--set` or a command-line value does not fit."""


class MissingPackageError(ConfigError):
    """What was asked for needs a package that is not installed; the message names the extra of taro that brings it."""


class AnnotationError(TaroError):
    """An annotation file cannot be read as the dataset it was named to be."""


class VideoError(TaroError):
    """A video cannot be decoded as asked. `transient` says whether trying again may help (a time-out, a lost mount)."""

    def __init__(self, message: str, *, reason: str = "undecodable", transient: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.transient = transient


class ShardError(TaroError):
    """A shard, sidecar or manifest is not what it says; the message names shard, key and offset."""


class ModelError(TaroError):
    """A model folder is incomplete, unknown, or not the one that a shard set was made with."""


GPU_MEMORY = ("cuda out of memory", "cuda error: out of memory", "cublas_status_alloc_failed",
              "cudaerrormemoryallocation", "cudnn_status_alloc_failed")
HOST_MEMORY = ("defaultcpuallocator", "std::bad_alloc", "cannot allocate memory")
"""what torch says, in small letters, where an allocation fails and the class of the error does not tell"""


def first_line(error: BaseException) -> str:
    """What an error of a library says, for a message: its first line (CUDA adds hints below), at most 300 characters;
    its name where it says nothing.

    >>> first_line(RuntimeError("CUDA  out of memory.\\nhint")), first_line(MemoryError())
    ('CUDA out of memory.', 'MemoryError')
    """
    return " ".join(str(error).strip().partition("\n")[0].split())[:300] or type(error).__name__


def full_memory(error: BaseException) -> str | None:
    """"GPU" or "host" where an error says that this memory is full, None for another. Told by names and words: torch
    need not be loaded, and not every library's class is torch's.

    >>> full_memory(MemoryError()), full_memory(RuntimeError("CUDA error: out of memory")), full_memory(ValueError())
    ('host', 'GPU', None)
    """
    said = str(error).lower()
    names = {kind.__name__ for kind in type(error).__mro__}
    if "OutOfMemoryError" in names or any(words in said for words in GPU_MEMORY):
        return "GPU"
    return "host" if "MemoryError" in names or any(words in said for words in HOST_MEMORY) else None
