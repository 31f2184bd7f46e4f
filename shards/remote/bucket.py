"""The narrow contract of one remote place, its errors, and how it is asked again.

A `Bucket` moves bytes of named objects and knows nothing of shard sets. `taro.shards.remote.store.RemoteStore` makes a
`Store` of it, `taro.shards.transfer` copies over it. A kind of place is one file beside this one.

Whatever goes wrong is one error of this file. Its message names the place without secrets and says what to do; nothing
that a server or a library said is in it but a status, since such texts hold signed addresses and keys. An error that
may pass (`transient`) is retried here, for all kinds of places: `retrying` asks again, `resumed` goes on where a
connection broke. Left out: removing objects.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar
from urllib.parse import SplitResult, urlsplit

from taro.core.draws import rng
from taro.core.errors import ShardError
from taro.core.places import shown_place
from taro.shards.store import MissingFileError

__all__ = ["MAX_LISTED", "WAITS_S", "Bucket", "ChangedError", "CutOffError", "Files", "Head", "Listed", "NoListError",
           "NoRangesError", "RefusedError", "RemoteError", "ServerError", "TooManyRequestsError", "UnreachableError",
           "check_etag", "missing", "read_whole", "resumed", "retrying", "split_url", "status_error"]

T = TypeVar("T")
WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""seconds between attempts, each drawn from half of it to all of it; so there are six attempts"""
MAX_WAIT_S = 60.0
"""of what a server asks for in Retry-After; one that asks for more is not waited for"""
PROGRESS_BYTES = 2**20
"""a connection that brought as many bytes before it broke does not count as an attempt"""
MAX_LISTED = 1_000_000
"""names that `list` gives at most"""


class RemoteError(ShardError):
    """A remote place did not give what was asked for. `transient`: asking again may help; `retry_after_s`: the seconds
    that the server asked to wait."""

    def __init__(self, message: str, *, transient: bool = False, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.transient = transient
        self.retry_after_s = retry_after_s


class RefusedError(RemoteError):
    """401 or 403: credentials are missing, or do not open this object."""


class TooManyRequestsError(RemoteError):
    """429: the place asks to be asked less often."""


class ServerError(RemoteError):
    """The server failed (5xx), or answered what no such place answers."""


class ChangedError(RemoteError):
    """The object is another than when it was first read."""


class CutOffError(RemoteError):
    """The bytes that came are fewer or more than were asked for, or came too slowly."""


class UnreachableError(RemoteError):
    """No answer: no such host, no connection, a time-out, redirects without end."""


class NoListError(RemoteError):
    """The place cannot list what it holds."""


class NoRangesError(RemoteError):
    """The server sends whole objects alone, so that nothing can be read from their middle."""


@dataclass(frozen=True, slots=True)
class Head:
    """Facts of an object. `etag`: names this version of its bytes; None where the place gives none."""

    size: int
    etag: str | None


class Listed(NamedTuple):
    """An object in a listing: its name below the place, with `/` between folders, and its bytes."""

    name: str
    size: int


class Files(Protocol):
    """One remote folder, for reading. Can be used from several threads and pickled to another process; holds no lock.

    Names are relative to the place and were checked by the caller. Failures are `MissingFileError` (no such object) or
    a `RemoteError`, after retries where they can help. Sizes that a server tells are only told: nothing is allocated
    by them."""

    @property
    def place(self) -> str:
        """The URL, without any secret and without a `/` at its end."""

    def head(self, name: str) -> Head:
        """Size and version of an object."""

    def chunks(self, name: str, start: int, stop: int, etag: str | None = None) -> Iterator[bytes]:
        """Bytes [start, stop) of an object in pieces of at most a few MiB: exactly as many, or an error at the end.

        `etag`: of the version that is wanted; ChangedError where the object is another by now."""

    def list(self) -> Sequence[Listed]:
        """All objects below the place, by name, at most MAX_LISTED; NoListError where it cannot."""


class Bucket(Files, Protocol):
    """One remote folder that can be written too."""

    def put(self, name: str, path: Path, *, absent: bool) -> bool:
        """Writes a file as an object, whole or not at all, in parts where it is large. `absent`: only where there is no
        such object; False, and nothing changed, where there is."""


def split_url(url: str) -> SplitResult:
    """The parts of an address; ShardError where it is none."""
    try:
        return urlsplit(url)
    except ValueError:
        raise ShardError(f"{shown_place(url)!a}: expected an address such as https://example.org/sets/train, or "
                         "s3://BUCKET/FOLDER") from None


def read_whole(files: Files, name: str, *, limit_bytes: int) -> bytes:
    """A small object, all of it of one version; ShardError where it is longer than the limit."""
    head = files.head(name)
    if head.size > limit_bytes:
        raise ShardError(f"{files.place}/{name}: {head.size:,} bytes, at most {limit_bytes:,} are read")
    return b"".join(files.chunks(name, 0, head.size, head.etag))


def missing(where: str) -> MissingFileError:
    """The error of an object that is not there."""
    return MissingFileError(f"{where}: not found; check the address (is there such a bucket?), or the set there is not "
                            "complete (yet)")


def status_error(where: str, status: int, *, advice: str, retry_after_s: float | None = None) -> ShardError:
    """The error of an HTTP status that is none of success. `advice`: how credentials are given to such a place."""
    if status in {404, 410}:
        return missing(where)
    if status in {401, 403, 407}:
        return RefusedError(f"{where}: refused (status {status}); the address is wrong, or the credentials of this "
                            f"machine do not open it. {advice}")
    if status == 412:
        return _changed(where)
    if status == 416:
        return CutOffError(f"{where}: shorter than it should be (status 416); the set was replaced or is not complete")
    if status == 429:
        return TooManyRequestsError(f"{where}: too many requests (status 429); wait, or read with fewer processes",
                                    transient=True, retry_after_s=retry_after_s)
    if status >= 500 or status == 408:
        return ServerError(f"{where}: the server failed (status {status}); try again later", transient=True,
                           retry_after_s=retry_after_s)
    return ServerError(f"{where}: expected an object, got status {status}; check the address")


def _changed(where: str) -> ChangedError:
    return ChangedError(f"{where}: changed since it was first read; open the set again, and see that nobody replaces "
                        "it while it is read")


def check_etag(where: str, found: str | None, wanted: str | None) -> None:
    """Raises ChangedError where an answer names another version than the one that is wanted. A weak name (`W/`) is the
    same version: a proxy weakens names on its way."""
    if found is not None and wanted is not None and found.removeprefix("W/") != wanted.removeprefix("W/"):
        raise _changed(where)


def retrying(call: Callable[[], T], *, waits_s: Sequence[float] = WAITS_S) -> T:
    """What `call` returns; asked again, after a wait, where it raises a transient RemoteError."""
    attempt = 0
    while True:
        try:
            return call()
        except RemoteError as error:
            _wait_or_raise(error, attempt, waits_s)
            attempt += 1


def resumed(part: Callable[[int], Iterator[bytes]], where: str, start: int, stop: int, *,
            waits_s: Sequence[float] = WAITS_S) -> Iterator[bytes]:
    """Bytes [start, stop) of an object; `part(at)` opens a connection that gives those from `at` to `stop`.

    A connection that breaks with a transient RemoteError, or ends early, is followed by another that goes on there.
    CutOffError where more comes than was asked for."""
    at, attempt = start, 0
    while at < stop:
        began = at
        try:
            for piece in part(at):
                if len(piece) > stop - at:
                    raise CutOffError(f"{where}: more bytes came than the {stop - start:,} asked for; the server, or a "
                                      "proxy before it, does not keep to HTTP")
                at += len(piece)
                yield piece
            if at < stop:
                raise CutOffError(f"{where}: {at - start:,} of {stop - start:,} bytes came; the connection was cut, or "
                                  "the object is shorter than it should be", transient=True)
        except RemoteError as error:
            attempt = 0 if at - began >= PROGRESS_BYTES else attempt
            _wait_or_raise(error, attempt, waits_s)
            attempt += 1


def _wait_or_raise(error: RemoteError, attempt: int, waits_s: Sequence[float]) -> None:
    """Sleeps before the next attempt; raises the error where there is none."""
    asked_s = error.retry_after_s or 0.0
    if not error.transient or attempt >= len(waits_s) or asked_s > MAX_WAIT_S:
        if attempt:
            error.args = (f"{error} (asked {attempt + 1} times)", *error.args[1:])
        raise error
    wait_s = waits_s[attempt] * (1 + rng("backoff", os.getpid(), time.monotonic_ns()).random()) / 2
    time.sleep(max(wait_s, asked_s))
