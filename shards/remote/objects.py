"""Object stores (s3://, gs://, az://) through obstore, which reads addresses and credentials from the environment.

Retries are ours (`taro.shards.remote.bucket`), the same for all kinds of places, so obstore's are off. What obstore
says in an error is looked at for its status and never shown: it holds signed addresses. Left out: credentials from
files of other tools (~/.aws), which `aws configure export-credentials --format env` puts into the environment."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from taro.core.errors import ConfigError, MissingPackageError, ShardError
from taro.core.numbers import read_count
from taro.core.text import one_line
from taro.shards.remote.bucket import (
    MAX_LISTED,
    WAITS_S,
    CutOffError,
    Head,
    Listed,
    NoRangesError,
    RefusedError,
    RemoteError,
    UnreachableError,
    check_etag,
    missing,
    resumed,
    retrying,
    split_url,
    status_error,
)
from taro.shards.store import MissingFileError

__all__ = ["SCHEMES", "ObjectBucket"]

TIMEOUT_S = 30.0
"""without a byte, before a request is given up"""
CONNECT_S = 5.0
"""for a connection; the machines of a cloud that give out credentials do not answer elsewhere"""
PIECE_BYTES = 2**20
PART_BYTES = 32 * 2**20
"""of an upload in parts; of S3's at most 10,000 parts, so objects of up to 312 GiB"""
SCHEMES = {
    "s3": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL), or "
          "AWS_SKIP_SIGNATURE=true to read without",
    "gs": "Set GOOGLE_APPLICATION_CREDENTIALS to a key file, or GOOGLE_SKIP_SIGNATURE=true to read without",
    "az": "Set AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_KEY, or "
          "AZURE_SKIP_SIGNATURE=true to read without",
}
"""scheme -> how its credentials are given"""
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "GOOGLE_BASE_URL", "AZURE_ENDPOINT",
             "AZURE_STORAGE_ENDPOINT", "AZURITE_BLOB_STORAGE_URL")
"""variables that name another service"""
_NO_CREDENTIALS = re.compile(r"token request|/latest/(?:api/token|meta-data)|computeMetadata|metadata/identity")
"""in what obstore says where it asked the cloud's own machines for credentials and got none"""


class ObjectBucket:
    """A folder of an object store as a `Bucket`: `s3://BUCKET/FOLDER`, `gs://BUCKET/FOLDER`, `az://CONTAINER/FOLDER`.

    MissingPackageError without obstore, ShardError where the address is none or holds a secret."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S, waits_s: Sequence[float] = WAITS_S) -> None:
        parts = split_url(url)
        self.place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
        self._advice = SCHEMES[parts.scheme]
        if parts.query or parts.fragment or "@" in parts.netloc or not parts.netloc:
            raise ShardError(f"{self.place}: expected {parts.scheme}://BUCKET/FOLDER, without a key, `?` or `#`, since "
                             f"it is written into logs and run folders. {self._advice}")
        if {"", ".", ".."} & {*parts.path.rstrip("/").split("/")[1:]}:
            raise ShardError(f"{one_line(self.place)}: expected {parts.scheme}://BUCKET/FOLDER with single slashes and "
                             "no `.` or `..`: an object store takes them for names")
        self._timeout_s, self._waits_s = timeout_s, tuple(waits_s)
        self._answered = False
        self._lock, self._made = threading.Lock(), (0, None)
        _obstore()

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.place, "timeout_s": self._timeout_s, "waits_s": self._waits_s}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def head(self, name: str) -> Head:
        """Size and version of an object."""
        def ask() -> Head:
            with self._explained(where):
                found = self._store().head(name)
            self._answered = True
            return Head(found["size"], found["e_tag"])

        where = self._where(name)
        return retrying(ask, waits_s=self._waits_s)

    def chunks(self, name: str, start: int, stop: int, etag: str | None = None) -> Iterator[bytes]:
        """Bytes [start, stop) of an object."""
        where = self._where(name)
        return resumed(lambda at: self._part(name, where, at, stop, etag), where, start, stop, waits_s=self._waits_s)

    def _part(self, name: str, where: str, start: int, stop: int, etag: str | None) -> Iterator[bytes]:
        try:
            with self._explained(where):
                answer = self._store().get(name, options={"range": (start, stop)})
        except NoRangesError:  # `rclone serve s3` marks its ranges as whole objects
            if start:
                raise
            with self._explained(where):
                answer = self._store().get(name)
        check_etag(where, answer.meta["e_tag"], etag)
        if start == 0 and answer.range[1] > stop:
            raise NoRangesError(f"{where}: the store sends whole objects alone")
        if answer.range != (start, stop):
            raise CutOffError(f"{where}: other bytes came than those asked for; the object is shorter than it should "
                              "be, or a proxy changes answers")
        pieces = iter(answer.stream(min_chunk_size=PIECE_BYTES))
        while True:
            with self._explained(where, reading=True):
                piece = next(pieces, None)
            if piece is None:
                return
            yield bytes(piece)

    def list(self) -> Sequence[Listed]:
        """All objects below the place, by name."""
        def ask() -> list[Listed]:
            found: list[Listed] = []
            with self._explained(self.place):
                for page in self._store().list(chunk_size=1000):
                    found += [Listed(one["path"], one["size"]) for one in page]
                    if len(found) > MAX_LISTED:
                        raise RemoteError(f"{self.place}: more than {MAX_LISTED:,} objects; expected the folder of one "
                                          "set")
            self._answered = True
            return sorted(found)

        return retrying(ask, waits_s=self._waits_s)

    def put(self, name: str, path: Path, *, absent: bool) -> bool:
        """Writes a file as an object. With `absent` it is asked first whether it is there; a file of one part is then
        written on the store's own condition too, so that of two writers one wins where the store knows conditions."""
        where, large = self._where(name), path.stat().st_size > PART_BYTES

        def ask() -> bool:
            with self._explained(where):
                try:
                    self._store().put(name, path, mode="create" if absent and not large else "overwrite",
                                      use_multipart=large, chunk_size=PART_BYTES, max_concurrency=4)
                except (_obstore().exceptions.AlreadyExistsError, _obstore().exceptions.PreconditionError):
                    return False
            return True

        if absent:  # not all stores know the condition
            try:
                self.head(name)
            except MissingFileError:
                pass
            else:
                return False
        return retrying(ask, waits_s=self._waits_s)

    def _where(self, name: str) -> str:
        return f"{self.place}/{name}"

    def _store(self) -> Any:
        with self._lock:
            if self._made[0] != os.getpid():
                self._made = os.getpid(), self._open()
            return self._made[1]

    def _open(self) -> Any:
        wait = timedelta(seconds=self._timeout_s)
        parts, endpoints = urlsplit(self.place), {name: os.environ.get(name) or "https://" for name in ENDPOINTS}
        for name, endpoint in endpoints.items():
            if not re.fullmatch(r"https?://\S*", endpoint):
                raise ConfigError(f"{name}: expected an address that begins with http:// or https://")
        try:
            return _obstore().store.from_url(
                f"{parts.scheme}://{parts.netloc}{quote(parts.path)}",  # a `%` in a folder's name is one
                retry_config={"max_retries": 0, "retry_timeout": wait},
                client_options={"allow_http": any(one.startswith("http://") for one in endpoints.values()),
                                "read_timeout": wait, "connect_timeout": min(wait, timedelta(seconds=CONNECT_S)),
                                "timeout": timedelta(hours=1)})
        except (_obstore().exceptions.BaseError, OSError, ValueError) as error:
            raise RemoteError(f"{self.place}: obstore cannot open such a place ({type(error).__name__}); check the "
                              f"address and the variables of its kind. {self._advice}") from None

    def _explained(self, where: str, *, reading: bool = False) -> _Explained:
        return _Explained(where, self._advice, reading=reading, answered=self._answered)


class _Explained:
    """Turns an error of obstore inside the block into one of ours; other errors pass."""

    def __init__(self, where: str, advice: str, *, reading: bool, answered: bool) -> None:
        """`answered`: whether the store has taken our credentials once."""
        self._where, self._advice, self._reading, self._answered = where, advice, reading, answered

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        known = _obstore().exceptions
        if kind is not None and kind.__name__ == "PanicException":  # of Rust, and no Exception
            raise RemoteError(f"{self._where}: obstore ended in a fault of its own; check the variables of its kind, "
                              f"and update obstore. {self._advice}") from None
        if not isinstance(error, known.BaseError | OSError | ValueError):
            return
        where, found = self._where, re.search(r"status code: (...)", str(error))
        status = read_count(found[1]) if found else None
        busy = status is not None and (status == 429 or status >= 500)
        if _NO_CREDENTIALS.search(str(error)) and not self._answered and not busy:
            raise RefusedError(f"{where}: no credentials: the environment has none, and no machine of a cloud gives "
                               f"any here. {self._advice}") from None
        if found:
            raise status_error(where, status or 0, advice=self._advice) from None
        if "NotPartial" in str(error):
            raise NoRangesError(f"{where}: the store sends whole objects alone") from None
        if isinstance(error, FileNotFoundError):
            raise missing(where) from None
        if isinstance(error, known.PermissionDeniedError | known.UnauthenticatedError):
            raise status_error(where, 403, advice=self._advice) from None
        if self._reading:
            raise CutOffError(f"{where}: the connection broke while it was read", transient=True) from None
        if isinstance(error, known.UnknownConfigurationKeyError | known.NotSupportedError | ValueError):
            raise RemoteError(f"{where}: obstore cannot open such a place ({type(error).__name__}); check the address "
                              f"and the variables of its kind. {self._advice}") from None
        raise UnreachableError(f"{where}: not reachable ({type(error).__name__}); check address, credentials and "
                               f"network. {self._advice}", transient=True) from None


def _obstore() -> Any:
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError:
        raise MissingPackageError("shard sets in object stores (s3://, gs://, az://) need obstore, which is not "
                                  "installed; pip install 'taro-vtg[remote]'") from None
    return obstore
