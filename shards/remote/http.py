"""Reading over http and https: ranges of files below a URL, such as a folder that any web server shows.

The standard library's connections, kept open and shared by threads. Why not a library: an answer's status, Retry-After,
Content-Range and ETag are all needed, a redirect must not carry a password to another host, and no text of a library,
which holds addresses, may reach a message. Proxies are those of the environment (HTTPS_PROXY, NO_PROXY). A password is
read from ~/.netrc (or NETRC), for the host that it names there alone; in a URL it is refused.
Left out: writing and listing, which web servers have no common way for, HTTP/2, and pages behind a login."""

from __future__ import annotations

import base64
import contextlib
import http.client
import netrc
import os
import select
import socket
import ssl
import threading
import urllib.request
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import time
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

from taro.core.errors import ShardError
from taro.core.http_dates import seconds_until
from taro.core.numbers import read_count
from taro.core.version import __version__
from taro.shards.remote.bucket import (
    WAITS_S,
    CutOffError,
    Head,
    Listed,
    NoListError,
    NoRangesError,
    RemoteError,
    ServerError,
    UnreachableError,
    check_etag,
    resumed,
    retrying,
    split_url,
    status_error,
)

__all__ = ["Answer", "HttpBucket", "HttpClient", "check_url"]

TIMEOUT_S = 30.0
"""without a byte, before a request is given up"""
LEAST_RATE = 20_000
"""bytes a second, below which an answer is given up, after TIMEOUT_S"""
PIECE_BYTES = 2**20
MAX_REDIRECTS = 10
MAX_SIZE = 2**50
ADVICE = "A user name and a password for the host are read from ~/.netrc"


def check_url(url: str) -> str:
    """The address of a folder without `/` at its end; ShardError where it holds a secret, or is none.

    What a user names ends in logs, run folders and manifests."""
    parts = split_url(url)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ShardError(f"{shown}: expected an address without a password, `?` or `#`, since it is written into logs "
                         f"and run folders. {ADVICE}; for signed access use s3://, gs:// or az://")
    if not parts.hostname or not shown.isascii() or any(c <= " " for c in shown):
        raise ShardError(f"{shown!a}: expected an address such as https://example.org/sets/train")
    return shown.rstrip("/")


class Answer:
    """A response that is being read; `close` gives its connection back, where it was read to its end."""

    def __init__(self, client: HttpClient, origin: tuple[str, str], connection: http.client.HTTPConnection) -> None:
        """Waits for the answer to the request that was sent; OSError, HTTPException or ValueError where none comes."""
        self._client, self._origin, self._connection = client, origin, connection
        self._socket = connection.sock
        with self._deadline(2 * client.timeout_s):
            self._response = connection.getresponse()
        self.status = self._response.status

    def header(self, name: str) -> str:
        """A header, "" where there is none."""
        return self._response.headers.get(name) or ""

    @property
    def retry_after_s(self) -> float | None:
        """Seconds that the server asks to wait."""
        text = self.header("Retry-After").strip()
        seconds = read_count(text)
        return seconds_until(text, time()) if seconds is None else float(seconds)

    @property
    def length(self) -> int | None:
        """Bytes of the body, where they are announced."""
        return read_count(self.header("Content-Length"))

    def pieces(self, where: str, expected_bytes: int) -> Iterator[bytes]:
        """The body as it comes; a transient CutOffError where the connection breaks or is slower than LEAST_RATE."""
        with self._deadline(self._client.timeout_s + expected_bytes / LEAST_RATE) as late:
            try:
                while piece := self._response.read(PIECE_BYTES):
                    yield piece
            except TimeoutError:
                raise CutOffError(f"{where}: no answer for {self._client.timeout_s:g} s in the middle of it; check the "
                                  "network", transient=True) from None
            except (OSError, http.client.HTTPException, ValueError):
                if not late.is_set():
                    raise CutOffError(f"{where}: the connection broke while it was read", transient=True) from None
        if late.is_set():
            raise CutOffError(f"{where}: slower than {LEAST_RATE:,} bytes a second", transient=True)

    @contextlib.contextmanager
    def _deadline(self, seconds: float) -> Iterator[threading.Event]:
        """Breaks the connection after so long: a server that sends a byte now and then never meets the socket's own
        time-out."""
        late = threading.Event()

        def give_up() -> None:
            late.set()
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(seconds, give_up)
        timer.daemon = True
        timer.start()
        try:
            yield late
        finally:
            timer.cancel()

    def close(self) -> None:
        """Ends the answer."""
        if self._response.length == 0 and not self._response.isclosed():
            self._response.read()
        if self._response.isclosed() and not self._response.will_close:
            self._client.give_back(self._origin, self._connection)
        else:
            self._response.close()
            self._connection.close()


class HttpClient:
    """Connections to any number of hosts. Can be used from several threads and pickled; a process that was forked opens
    its own."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, str], list[http.client.HTTPConnection]] = {}
        self._pid = os.getpid()
        self._end = weakref.finalize(self, _close_all, self._idle)

    def __getstate__(self) -> dict[str, Any]:
        return {"timeout_s": self.timeout_s}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @contextlib.contextmanager
    def request(self, method: str, url: str, where: str, headers: Mapping[str, str] | None = None) -> Iterator[Answer]:
        """The answer to a request, redirects followed; UnreachableError (transient) where none comes. Authorization
        goes to the first host alone; a redirect from https to http is refused."""
        first = urlsplit(url)
        sent = {"Accept-Encoding": "identity", "User-Agent": f"taro/{__version__}", **(headers or {})}
        for _ in range(MAX_REDIRECTS + 1):
            parts = urlsplit(url)
            if (parts.scheme, parts.netloc) != (first.scheme, first.netloc):
                sent = {name: value for name, value in sent.items() if name != "Authorization"}
            answer = self._ask(method, url, where, {**_from_netrc(parts.hostname or ""), **sent})
            try:
                target = answer.header("Location") if answer.status in {301, 302, 303, 307, 308} else ""
                if not target:
                    yield answer
                    return
            finally:
                answer.close()
            url = _redirected(url, target)
            if not url:
                raise UnreachableError(f"{where}: the server redirects to what is no http(s) address, or from https to "
                                       "http; check the address")
        raise UnreachableError(f"{where}: more than {MAX_REDIRECTS} redirects; check the address")

    def give_back(self, origin: tuple[str, str], connection: http.client.HTTPConnection) -> None:
        """Keeps a connection for the next request."""
        with self._lock:
            if self._pid == os.getpid():
                self._idle.setdefault(origin, []).append(connection)

    def _ask(self, method: str, url: str, where: str, headers: Mapping[str, str]) -> Answer:
        parts = urlsplit(url)
        origin = (parts.scheme, parts.netloc)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        while True:
            reused, connection, absolute = self._connection(origin, where)
            try:
                connection.request(method, url if absolute else path, headers=dict(headers))
                return Answer(self, origin, connection)
            except TimeoutError:
                connection.close()
                raise UnreachableError(f"{where}: no answer for {self.timeout_s:g} s; check address and network",
                                       transient=True) from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                connection.close()
                if not reused:  # a kept connection may have been closed by the server meanwhile
                    raise _unreachable(where, error) from None

    def _connection(self, origin: tuple[str, str], where: str) -> tuple[bool, http.client.HTTPConnection, bool]:
        """(whether it was used before, a connection, whether a proxy wants whole URLs)."""
        if self._pid != os.getpid():  # forked: the connections are the parent's
            self._end.detach()
            self.__init__(timeout_s=self.timeout_s)  # type: ignore[misc]
        with self._lock:
            kept = self._idle.get(origin, [])
            while kept:
                connection = kept.pop()
                if not _has_more(connection):
                    return True, connection, bool(getattr(connection, "taro_absolute", False))
                connection.close()
        scheme, netloc = origin
        parts = urlsplit(f"{scheme}://{netloc}")
        proxy = None if urllib.request.proxy_bypass(parts.hostname or "") else urllib.request.getproxies().get(scheme)
        try:
            target, port = parts.hostname or "", parts.port or (443 if scheme == "https" else 80)
            to = urlsplit(proxy if "://" in proxy else f"http://{proxy}") if proxy else None
            host, at = (to.hostname or "", to.port or 80) if to else (target, port)
        except ValueError:
            raise UnreachableError(f"{where}: expected an address with a port below 65536") from None
        if scheme == "http":
            connection = http.client.HTTPConnection(host, at, timeout=self.timeout_s)
            connection.taro_absolute = to is not None  # type: ignore[attr-defined]
            return False, connection, to is not None
        secure = http.client.HTTPSConnection(host, at, timeout=self.timeout_s, context=ssl.create_default_context())
        if to:
            secure.set_tunnel(target, port, _proxy_headers(to.username, to.password))
        return False, secure, False


def _redirected(url: str, target: str) -> str:
    """Where a redirect leads; "" where that is no address, or http after https."""
    try:
        found = urljoin(url, target)
        there = urlsplit(found)
    except ValueError:
        return ""
    allowed = {"https"} if urlsplit(url).scheme == "https" else {"http", "https"}
    return found if there.scheme in allowed and there.hostname else ""


def _has_more(connection: http.client.HTTPConnection) -> bool:
    """Whether a kept connection was closed by the server, or holds bytes that nobody asked for: they would be taken for
    the next answer."""
    if connection.sock is None:
        return False
    ready = select.poll()
    ready.register(connection.sock, select.POLLIN)
    return bool(ready.poll(0))


def _close_all(idle: dict[tuple[str, str], list[http.client.HTTPConnection]]) -> None:
    """Closes what is kept, when nobody has the client any more."""
    for kept in idle.values():
        for connection in kept:
            connection.close()


def _proxy_headers(user: str | None, password: str | None) -> dict[str, str]:
    return {"Proxy-Authorization": _basic(unquote(user), unquote(password or ""))} if user else {}


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _from_netrc(host: str) -> dict[str, str]:
    try:
        found = netrc.netrc(os.environ.get("NETRC") or Path("~/.netrc").expanduser()).hosts.get(host)
    except (OSError, netrc.NetrcParseError, RuntimeError, UnicodeDecodeError):
        return {}
    return {"Authorization": _basic(found[0], found[2])} if found else {}


def _unreachable(where: str, error: Exception) -> UnreachableError:
    """The error of a request that got no answer; only a certificate that is not trusted stays wrong."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return UnreachableError(f"{where}: the server's certificate is not trusted ({error.verify_message}); check the "
                                "address, or name your authority's file in SSL_CERT_FILE")
    return UnreachableError(f"{where}: not reachable ({type(error).__name__}); check address, port and network",
                            transient=True)


class HttpBucket:
    """Files below an http(s) URL as a `Bucket` that can be read."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S, waits_s: Sequence[float] = WAITS_S) -> None:
        self.place = check_url(url)
        self._client, self._waits_s = HttpClient(timeout_s=timeout_s), tuple(waits_s)

    def head(self, name: str) -> Head:
        """Size and version; asked by HEAD, and where the server has none by its first byte."""
        def ask() -> Head:
            with self._client.request("HEAD", self._url(name), where) as answer:
                if answer.status not in {405, 501} and not (answer.status == 200 and answer.length is None):
                    self._check(answer, where, 200)
                    return Head(min(answer.length or 0, MAX_SIZE), answer.header("ETag") or None)
            with self._client.request("GET", self._url(name), where, {"Range": "bytes=0-0"}) as answer:
                self._check(answer, where, 206)
                return Head(_total(answer, where), answer.header("ETag") or None)

        where = f"{self.place}/{name}"
        return retrying(ask, waits_s=self._waits_s)

    def chunks(self, name: str, start: int, stop: int, etag: str | None = None) -> Iterator[bytes]:
        """Bytes [start, stop); a server without ranges sends its files whole, so only from their beginning."""
        where = f"{self.place}/{name}"
        return resumed(lambda at: self._part(name, where, at, stop, etag), where, start, stop, waits_s=self._waits_s)

    def _part(self, name: str, where: str, start: int, stop: int, etag: str | None) -> Iterator[bytes]:
        with self._client.request("GET", self._url(name), where, {"Range": f"bytes={start}-{stop - 1}"}) as answer:
            self._check(answer, where, 200 if answer.status == 200 else 206)
            if answer.status == 200 and (start or (answer.length or 0) > stop):
                raise NoRangesError(f"{where}: the server sends whole files alone (no Range requests); use another "
                                    "server, such as nginx, caddy or `rclone serve http`")
            if answer.status == 206 and not answer.header("Content-Range").startswith(f"bytes {start}-{stop - 1}/"):
                raise CutOffError(f"{where}: other bytes came than those asked for; the object is shorter than it "
                                  "should be, or a proxy changes answers")
            if answer.length not in (None, stop - start):
                raise CutOffError(f"{where}: {answer.length:,} bytes are announced, {stop - start:,} were expected; "
                                  "the set was replaced or is not complete")
            check_etag(where, answer.header("ETag") or None, etag)
            yield from answer.pieces(where, stop - start)

    def list(self) -> Sequence[Listed]:
        """Web servers have no common listing."""
        raise NoListError(f"{self.place}: files behind an http(s) address cannot be listed; the set is read by its "
                          "manifest, and files that the manifest does not name are not seen")

    def put(self, name: str, path: Path, *, absent: bool) -> bool:
        """Web servers have no common upload."""
        raise RemoteError(f"{self.place}: an http(s) address can be read and not written; write to a folder, s3://, "
                          "gs://, az:// or hf://")

    def _url(self, name: str) -> str:
        return f"{self.place}/{quote(name)}"

    def _check(self, answer: Answer, where: str, wanted: int) -> None:
        if answer.status != wanted:
            raise status_error(where, answer.status, advice=ADVICE, retry_after_s=answer.retry_after_s)
        if answer.header("Content-Encoding") not in {"", "identity"}:
            raise ServerError(f"{where}: the server packs its answers (Content-Encoding) though it was asked not to; "
                              "switch that off for the set's files")


def _total(answer: Answer, where: str) -> int:
    """Bytes of the whole object, by the answer to a range of it."""
    total = read_count(answer.header("Content-Range").rpartition("/")[2])
    if total is None or total > MAX_SIZE:
        raise ServerError(f"{where}: the server does not say how long the file is")
    return total
