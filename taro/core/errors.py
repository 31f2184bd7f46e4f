"""What taro raises at its users: one base class, one subclass per kind of thing that was wrong.

A user's mistake (or an untrusted file) is a `TaroError`: its message says what was expected, what was got and what
to do. The command line prints that message alone, a traceback only with `--debug`. A broken invariant of our own is
an assert, never one of these."""

from __future__ import annotations

__all__ = ["AnnotationError", "ConfigError", "ModelError", "ShardError", "TaroError", "VideoError"]


class TaroError(Exception):
    """Base class: something outside taro is not as it must be; the message says what to do."""


class ConfigError(TaroError):
    """A recipe, a `--set` or a command-line value does not fit."""


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
