"""A web server that misbehaves: each way of it is got over by asking again, or ends in one message."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taro.core.errors import ShardError
from taro.shards.remote.bucket import (
    ChangedError,
    CutOffError,
    NoListError,
    NoRangesError,
    RefusedError,
    RemoteError,
    ServerError,
    TooManyRequestsError,
    UnreachableError,
)
from taro.shards.remote.http import HttpBucket, HttpClient
from taro.shards.store import MissingFileError
from tests.shards.helpers_http import Fault, Request, Web, answer, cut, serving

SIZE = 3_000_000
QUICK = (0.01, 0.01, 0.01, 0.01, 0.01)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of SIZE bytes in a folder."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "set").mkdir()
    (folder / "set" / "x.tar").write_bytes(os.urandom(SIZE))
    return folder


@pytest.fixture
def web(data: Path) -> Iterator[Web]:
    """A server of it."""
    with serving(data) as served:
        yield served


def read(web: Web, *, start: int = 0, stop: int = SIZE, etag: str | None = None, timeout_s: float = 60.0) -> bytes:
    """A range through a bucket."""
    return b"".join(HttpBucket(f"{web.url}/set", timeout_s=timeout_s, waits_s=QUICK).chunks("x.tar", start, stop, etag))


def hang(request: Request) -> bool:
    """No answer."""
    time.sleep(1.2)
    request.close_connection = True
    return True


def garbage(request: Request) -> bool:
    """What is no HTTP."""
    request.wfile.write(b"220 smtp.example.org\r\n" * 3)
    request.close_connection = True
    return True


def drip_headers(request: Request) -> bool:
    """A byte now and then, so that no single wait is long."""
    for _ in range(100):
        request.wfile.write(b"H")
        time.sleep(0.02)
    request.close_connection = True
    return True


def drip_body(request: Request) -> bool:
    """The same after the headers."""
    request.send_response(206)
    request.send_header("Content-Length", "1000")
    request.send_header("Content-Range", "bytes 0-999/1000")
    request.end_headers()
    for _ in range(50):
        request.wfile.write(b"x")
        time.sleep(0.02)
    request.close_connection = True
    return True


def more_than_announced(request: Request) -> bool:
    """Bytes after the end of the answer, on a connection that stays open."""
    request.serve()
    request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad")
    return True


def without_length(request: Request) -> bool:
    """More than was asked for, to the end of the connection."""
    request.send_response(206)
    request.send_header("Content-Range", f"bytes 0-{SIZE - 1}/{SIZE}")
    request.end_headers()
    request.wfile.write(b"x" * (SIZE + 1))
    request.close_connection = True
    return True


@pytest.mark.parametrize("faults", [
    [answer(500)], [answer(503, {"Retry-After": "0"}), answer(502), answer(504)], [answer(429), answer(408)],
    [hang], [garbage, garbage], [cut(0), cut(0)], [cut(1000)], [cut(1_500_000)] * 9, [answer(500)] * 5,
    [answer(429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})]],
    ids=["500", "503", "429", "hang", "garbage", "cut", "cut-1000", "cut-nine-times", "five", "retry-after-a-date"])
def test_what_passes_is_asked_again(data: Path, web: Web, faults: list[Fault]) -> None:
    web.faults = list(faults)
    whole = (data / "set" / "x.tar").read_bytes()
    assert read(web, start=100, timeout_s=1.0 if hang in faults else 60.0) == whole[100:]
    assert web.faults == [] or len(faults) == 9


def test_a_read_that_was_cut_goes_on_where_it_was(data: Path, web: Web) -> None:
    web.faults = [cut(1_200_000), cut(300_000), cut(7)]
    assert read(web) == (data / "set" / "x.tar").read_bytes()
    assert web.fetched("x.tar") == [f"bytes={start}-{SIZE - 1}" for start in (0, 1_200_000, 1_500_000, 1_500_007)]
    assert web.sent == SIZE, "no byte was sent twice"


def test_retry_after_is_waited_for(web: Web) -> None:
    asked: list[float] = []

    def noted(request: Request) -> bool:
        asked.append(time.monotonic())
        return False

    web.faults = [noted, answer(429, {"Retry-After": "1"})]
    read(web)
    assert len(asked) == 2 and asked[1] - asked[0] >= 1
    web.faults, web.asked = [answer(429, {"Retry-After": "3600"})], []
    with pytest.raises(TooManyRequestsError, match="too many requests"):
        read(web)
    assert len(web.asked) == 1, "an hour is not waited for"


@pytest.mark.parametrize(("fault", "error", "says", "requests"), [
    (answer(401), RefusedError, r"refused \(status 401\).*netrc", 1),
    (answer(403), RefusedError, r"refused \(status 403\)", 1),
    (answer(404), MissingFileError, "not found", 1),
    (answer(410), MissingFileError, "not found", 1),
    (answer(416), CutOffError, "shorter than it should be", 1),
    (answer(418), ServerError, "expected an object, got status 418", 1),
    (answer(429), TooManyRequestsError, "too many requests .*asked 6 times", 6),
    (answer(500), ServerError, r"the server failed \(status 500\).*asked 6 times", 6),
    (cut(10), CutOffError, "60 of 3,000,000 bytes came.*asked 6 times", 6),
    (hang, UnreachableError, "no answer for 0.3 s.*asked 6 times", 6),
    (garbage, UnreachableError, "not reachable", 6),
    (answer(302, {"Location": "/set/x.tar"}), UnreachableError, "more than 10 redirects", 11),
    (answer(302, {"Location": "file:///etc/passwd"}), UnreachableError, "is no http", 1),
    (answer(302, {"Location": "//[::1"}), UnreachableError, "is no http", 1),
    (answer(206, {"Content-Range": "bytes 7-9/10"}, b"abc"), CutOffError, "other bytes came", 1),
    (answer(206, {"Content-Range": f"bytes 0-{SIZE - 1}/{SIZE}"}, b"abc"), CutOffError, "3 bytes are announced", 1),
    (answer(206, {"Content-Encoding": "gzip"}, b"abc"), ServerError, "packs its answers", 1),
    (answer(200, {"Content-Encoding": "gzip"}, b"abc"), ServerError, "packs its answers", 1),
    (without_length, CutOffError, "more bytes came than the 3,000,000", 1),
])
def test_what_stays_wrong_is_one_message(web: Web, fault: Fault, error: type[ShardError], says: str,
                                         requests: int) -> None:
    web.faults = [fault] * 20
    with pytest.raises(error, match=says) as raised:
        read(web, timeout_s=0.3 if fault is hang else 60.0)
    until = time.monotonic() + 60
    while len(web.fetched("x.tar")) < requests and time.monotonic() < until:  # a busy server hears of the last one late
        time.sleep(0.01)
    assert len(web.fetched("x.tar")) == requests
    assert str(raised.value).startswith(f"{web.url}/set/x.tar: ") and raised.value.__cause__ is None


def test_bytes_after_the_end_do_not_become_the_next_answer(data: Path, web: Web) -> None:
    bucket, whole = HttpBucket(f"{web.url}/set", waits_s=QUICK), (data / "set" / "x.tar").read_bytes()
    written = threading.Event()

    def more(request: Request) -> bool:
        more_than_announced(request)
        written.set()
        return True

    web.faults = [more]
    for start in (0, 10, 20):
        assert b"".join(bucket.chunks("x.tar", start, start + 1000)) == whole[start : start + 1000]
        assert written.wait(60)


@pytest.mark.parametrize(("fault", "says"), [(drip_headers, "not reachable|no answer"),
                                             (drip_body, "slower than|no answer")])
def test_a_server_that_drips_is_given_up(web: Web, fault: Fault, says: str) -> None:
    web.faults = [fault]
    with pytest.raises(RemoteError, match=says):
        b"".join(HttpBucket(f"{web.url}/set", timeout_s=0.3, waits_s=()).chunks("x.tar", 0, 1000))


def test_another_version_of_an_object_is_noticed(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.tar"
    file.write_bytes(b"a" * 100)
    with serving(tmp_path) as web:
        bucket = HttpBucket(web.url, waits_s=QUICK)
        head = bucket.head("x.tar")
        assert head.size == 100 and head.etag
        assert b"".join(bucket.chunks("x.tar", 0, 100, head.etag)) == b"a" * 100
        file.write_bytes(b"b" * 100)
        os.utime(file, ns=(1, 1))
        with pytest.raises(ChangedError, match="changed since it was first read"):
            b"".join(bucket.chunks("x.tar", 0, 100, head.etag))


def test_a_name_of_a_version_that_a_proxy_weakened_is_the_same(data: Path, web: Web) -> None:
    bucket, whole = HttpBucket(f"{web.url}/set", waits_s=QUICK), (data / "set" / "x.tar").read_bytes()
    etag = bucket.head("x.tar").etag
    assert etag is not None and b"".join(bucket.chunks("x.tar", 0, SIZE, f"W/{etag}")) == whole
    with pytest.raises(ChangedError):
        b"".join(bucket.chunks("x.tar", 0, SIZE, 'W/"another"'))


def test_a_server_without_ranges_sends_from_the_beginning_alone(data: Path) -> None:
    with serving(data, ranges=False) as web:
        assert read(web) == (data / "set" / "x.tar").read_bytes()
        for start, stop in ((5, SIZE), (0, 10)):
            with pytest.raises(NoRangesError, match="whole files alone"):
                read(web, start=start, stop=stop)


def test_the_size_is_found_without_head(data: Path, web: Web) -> None:
    bucket = HttpBucket(f"{web.url}/set", waits_s=QUICK)
    web.faults = [answer(405, method="HEAD"), answer(501, method="HEAD")]
    assert [bucket.head("x.tar").size for _ in range(3)] == [SIZE] * 3
    with pytest.raises(MissingFileError):
        bucket.head("y.tar")
    with pytest.raises(NoListError, match="cannot be listed"):
        bucket.list()
    with pytest.raises(RemoteError, match="can be read and not written"):
        bucket.put("y.tar", data / "set" / "x.tar", absent=True)


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UnreachableError, match=r"not reachable \(ConnectionRefusedError\).*asked 2 times"):
        HttpBucket(f"http://127.0.0.1:{port}/set", waits_s=(0.01,)).head("x.tar")
    with pytest.raises(UnreachableError, match="a port below 65536"):
        HttpBucket("http://127.0.0.1:99999/set", waits_s=()).head("x.tar")


def test_a_redirect_carries_no_password_to_another_host(data: Path, web: Web) -> None:
    seen: list[tuple[str, str | None]] = []

    def noted(request: Request) -> bool:
        seen.append((request.path, request.headers.get("Authorization")))
        return False

    with serving(data) as other:
        target = f"http://localhost:{other.url.rpartition(':')[2]}/set/x.tar?signature=abc"
        web.faults, other.faults = [noted, answer(302, {"Location": target})], [noted]
        with HttpClient().request("GET", f"{web.url}/set/x.tar", "x", {"Authorization": "Bearer secret"}) as found:
            assert found.status == 200 and sum(map(len, found.pieces("x", SIZE))) == SIZE
    assert seen == [("/set/x.tar", "Bearer secret"), ("/set/x.tar?signature=abc", None)]


def test_a_password_is_read_from_netrc(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    seen: list[str | None] = []

    def noted(request: Request) -> bool:
        seen.append(request.headers.get("Authorization"))
        return False

    web.faults = [noted]
    HttpBucket(f"{web.url}/set").head("x.tar")
    assert seen == ["Basic c29tZW9uZTpzZWNyZXQ="]
