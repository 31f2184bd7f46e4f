"""A web server on loopback that serves a folder by ranges, counts what it is asked for, and misbehaves on demand.

A fault is a function of a request: it answers in its own way and returns True, or returns False to have the file
served. `answer` and `cut` make the common ones; each of `Web.faults` is used for the first request that it takes."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

__all__ = ["Fault", "Request", "Web", "answer", "cut", "serving"]

Fault = Callable[["Request"], bool]


@dataclass
class Web:
    """A folder that is served, and what happened. `asked`: (method, path, Range) of each request; `sent`: bytes of
    bodies; `rate`: bytes a second of all answers together, None for as fast as it goes."""

    folder: Path
    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    sent: int = 0
    rate: float | None = None
    ranges: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)
    free_at: float = 0.0

    def fetched(self, ending: str) -> list[str]:
        """The Range of each GET of a file whose name ends so."""
        return [wanted for method, path, wanted in self.asked if method == "GET" and path.endswith(ending)]

    def pass_through(self, count: int) -> None:
        """Waits until the link has carried so many bytes more."""
        if self.rate is not None:
            with self.lock:
                self.free_at = max(self.free_at, time.monotonic()) + count / self.rate
                until = self.free_at
            time.sleep(max(until - time.monotonic(), 0))


class Request(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    web: Web

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        """As GET, without a body."""
        self.do_GET()

    def do_GET(self) -> None:
        """A fault, or the file."""
        with self.web.lock:
            self.web.asked.append((self.command, self.path, self.headers.get("Range") or ""))
            faults = list(self.web.faults)
        for fault in faults:
            if fault(self):
                with self.web.lock, contextlib.suppress(ValueError):
                    self.web.faults.remove(fault)
                return
        self.serve()

    def serve(self) -> None:
        """The file, or the range of it that is asked for."""
        path = self.web.folder / self.path.partition("?")[0].lstrip("/")
        if not path.is_file():
            self.answer(404)
            return
        size, wanted = path.stat().st_size, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        start, stop = (int(wanted[1]), min(int(wanted[2]) + 1, size)) if wanted and self.web.ranges else (0, size)
        if start >= size > 0:
            self.answer(416, {"Content-Range": f"bytes */{size}"})
            return
        facts = path.stat()
        etag = hashlib.sha256(f"{facts.st_mtime_ns} {size}".encode()).hexdigest()[:16]
        partial = bool(wanted and self.web.ranges)
        self.send_response(206 if partial else 200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", f'"{etag}"')
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        if self.command != "HEAD":
            with path.open("rb") as file:
                file.seek(start)
                self.send_all(file.read, stop - start)

    def send_all(self, read: Callable[[int], bytes], count: int) -> None:
        """Sends a body of so many bytes, as fast as the link is."""
        with contextlib.suppress(ConnectionError):
            while count and (piece := read(min(count, 2**18))):
                self.web.pass_through(len(piece))
                self.wfile.write(piece)
                self.web.sent += len(piece)
                count -= len(piece)

    def answer(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        """A whole answer; a header of `headers` replaces ours."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.close_connection = True


def answer(status: int, headers: Mapping[str, str] | None = None, body: bytes = b"", *, of: str = "",
           method: str = "GET") -> Fault:
    """A fault: this answer to a request for a file whose name ends with `of`."""
    def fault(request: Request) -> bool:
        if request.command != method or not request.path.endswith(of):
            return False
        request.answer(status, headers, body)
        return True

    return fault


def cut(after: int, *, of: str = "") -> Fault:
    """A fault: the connection breaks after so many bytes of the body, which is announced whole."""
    def fault(request: Request) -> bool:
        if request.command != "GET" or not request.path.endswith(of):
            return False
        whole, wfile = request.wfile.write, request.wfile
        left = [after]

        def send_all(read: Callable[[int], bytes], count: int) -> None:
            piece = read(min(left[0], count))
            whole(piece)
            wfile.flush()
            request.web.sent += len(piece)
            request.close_connection = True

        request.send_all = send_all  # type: ignore[method-assign]
        request.serve()
        return True

    return fault


@contextlib.contextmanager
def serving(folder: Path, *, rate: float | None = None, ranges: bool = True) -> Iterator[Web]:
    """A server of a folder on a free port of loopback; `rate`: bytes a second."""
    web = Web(folder, rate=rate, ranges=ranges)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Request,), {"web": web}))
    server.daemon_threads = True
    web.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
