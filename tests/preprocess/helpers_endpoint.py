"""An OpenAI-compatible endpoint on loopback that sees: it decodes the frames that it is sent, and misbehaves on demand.

Its answer is a function of the frames alone: colours of plain ones, in the order of their times, else a digest of what
it saw. `faults` are used up one a question, in the order in which questions are seen first; `always` takes every one.
"""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

COLOURS = {"red": (255, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}
KEY = "sk-test-SECRET-0123456789"

Fault = Callable[["Asked"], None]


@dataclass
class Server:
    """The endpoint, and what happened. `seen`: how often each question came; `answered`: how often it was answered
    well; `tokens`: what it tells of each answer, None for nothing."""

    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    always: Callable[[str], Fault | None] = lambda question: None
    says: Callable[[str], str] = lambda text: text
    tokens: tuple[int, int] | None = (100, 10)
    seen: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    asked_for: dict[str, Fault] = field(default_factory=dict)
    under_way: int = 0
    most_under_way: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)


class Asked(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server_: Server

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server, question = self.server_, hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()
        self.body, self.question = body, question
        with server.lock:
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            server.bodies.append(body)
            server.seen[question] += 1
            if server.seen[question] == 1 and not is_probe(body) and server.faults:
                server.asked_for[question] = server.faults.pop(0)
            fault = server.always(question) or (server.asked_for.pop(question, None))
        try:
            (fault or well)(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with server.lock:
                server.under_way -= 1

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """An answer, whatever it is."""
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)),
                            **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def is_probe(body: dict[str, Any]) -> bool:
    """Whether this is the question about four plain frames."""
    return "plain colour" in body["messages"][0]["content"][-1]["text"]


def pictures(body: dict[str, Any]) -> list[tuple[float, np.ndarray]]:
    """(time, frame) of each picture of a message: each stands behind its time."""
    parts, found = body["messages"][0]["content"], []
    for before, part in itertools.pairwise(parts):
        if part["type"] == "image_url":
            data = base64.b64decode(part["image_url"]["url"].removeprefix("data:image/jpeg;base64,"), validate=True)
            found.append((float(re.fullmatch(r"(\d+\.\d)s", before["text"])[1]),  # type: ignore[index]
                          np.asarray(Image.open(io.BytesIO(data)))))
    return found


def seen_text(body: dict[str, Any]) -> str:
    """What a server that sees says."""
    frames = sorted(pictures(body), key=lambda one: one[0])
    if is_probe(body):
        means = [frame.reshape(-1, 3).mean(0) for _, frame in frames]
        near = [min(COLOURS, key=lambda name: float(np.abs(mean - COLOURS[name]).sum())) for mean in means]
        return ", ".join(f"{at:.1f}s {name}" for (at, _), name in zip(frames, near, strict=True))
    digest = hashlib.sha256(b"".join(frame.tobytes() for _, frame in frames)).hexdigest()[:12]
    return f"{len(frames)} frames from {frames[0][0]}s to {frames[-1][0]}s, {digest}"


def completion(text: str | None, tokens: tuple[int, int] | None, **choice: Any) -> bytes:
    """A well formed answer."""
    answer: dict[str, Any] = {"id": "x", "object": "chat.completion", "created": 1, "model": "served-7b", "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}, **choice}]}
    if tokens is not None:
        answer["usage"] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    return json.dumps(answer).encode()


def well(asked: Asked) -> None:
    """The right answer; counted before it is sent."""
    server, probe = asked.server_, is_probe(asked.body)
    text = seen_text(asked.body)
    if not probe:
        with server.lock:
            server.answered[asked.question] += 1
    asked.send(200, completion(text if probe else server.says(text), server.tokens))


def status(code: int, message: str = "no", error_code: str | None = None, **headers: str) -> Fault:
    """An error in OpenAI's form."""
    body = json.dumps({"error": {"message": message, "type": "x", "code": error_code}}).encode()
    return lambda asked: asked.send(code, body, {name.replace("_", "-"): value for name, value in headers.items()})


def says(body: bytes) -> Fault:
    """Status 200 with any body."""
    return lambda asked: asked.send(200, body)


def cut(asked: Asked) -> None:
    """Half of an answer, then the connection is cut."""
    body = completion("half of a sentence", (1, 1))
    asked.send_response(200)
    asked.send_header("Content-Length", str(len(body)))
    asked.end_headers()
    asked.wfile.write(body[: len(body) // 2])
    asked.wfile.flush()
    asked.connection.shutdown(socket.SHUT_RDWR)
    asked.close_connection = True


def gone(asked: Asked) -> None:
    """The connection is closed without an answer."""
    asked.connection.shutdown(socket.SHUT_RDWR)
    asked.close_connection = True


def silent(asked: Asked) -> None:
    """No answer until the server closes."""
    asked.server_.closing.wait(60)
    asked.close_connection = True


def huge(asked: Asked) -> None:
    """A body without end, until whoever reads it has enough."""
    asked.send_response(200)
    asked.send_header("Transfer-Encoding", "chunked")
    asked.end_headers()
    asked.close_connection = True
    chunk = b"10000\r\n" + b" " * 2**16 + b"\r\n"
    for _ in range(1000):
        asked.wfile.write(chunk)


@contextmanager
def endpoint() -> Iterator[Server]:
    """A server, for the block."""
    server = Server()
    handler = type("Handler", (Asked,), {"server_": server})
    web = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    web.daemon_threads, web.block_on_close = True, False
    server.url = f"http://127.0.0.1:{web.server_address[1]}/v1"
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        web.shutdown()
        web.server_close()
        thread.join()
