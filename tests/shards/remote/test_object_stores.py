"""Addresses, endpoints and credentials of object stores: what is asked for is what was named, and what is missing is
said at once."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from taro.core.errors import ConfigError, ShardError
from taro.shards.remote.bucket import RefusedError, RemoteError
from taro.shards.remote.objects import ObjectBucket
from tests.shards.helpers_http import answer, serving

QUICK = (0.01,) * 5
FIRST = ("AWS_", "GOOGLE_", "AZURE_", "AZURITE_", "GCE_")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without credentials or endpoints of any store."""
    for name in [name for name in os.environ if name.startswith(FIRST)]:
        monkeypatch.delenv(name)


@contextlib.contextmanager
def mute() -> Iterator[tuple[str, list[socket.socket]]]:
    """(HOST:PORT, connections) of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(server.accept()[0])

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}", taken
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for one in taken:
                one.close()


@pytest.mark.parametrize("place", ["s3://b//a", "s3://b/a//b", "gs://b/a/../b", "az://b/./a", "s3://b/.."])
def test_a_folder_that_a_store_cannot_name_is_refused(place: str) -> None:
    with pytest.raises(ShardError, match=r"single slashes and no `\.` or `\.\.`"):
        ObjectBucket(place)


def test_a_folder_is_named_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `%20` in a name is no blank."""
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    with serving(tmp_path) as web:
        monkeypatch.setenv("AWS_ENDPOINT_URL", web.url)
        for folder in ("my set", "pc%20t", "a+b", "\u00fcn\u00ef"):
            with pytest.raises(ShardError, match="not found"):
                ObjectBucket(f"s3://bucket/{folder}", waits_s=()).head("x.tar")
            assert web.asked[-1][:2] == ("HEAD", f"/bucket/{quote(folder)}/x.tar")


@pytest.mark.parametrize(("place", "metadata"), [
    ("s3://b/a", {"AWS_METADATA_ENDPOINT": "http://{}"}),
    ("gs://b/a", {"GCE_METADATA_HOST": "{}", "GCE_METADATA_IP": "{}"}),
    ("az://b/a", {"AZURE_STORAGE_ACCOUNT_NAME": "someone", "IDENTITY_ENDPOINT": "http://{}"})])
def test_missing_credentials_are_asked_for_once(place: str, metadata: dict[str, str],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere than on a cloud's machine its service of credentials is silent: six attempts would take minutes."""
    with mute() as (address, taken):
        for name, value in metadata.items():
            monkeypatch.setenv(name, value.format(address))
        with pytest.raises(RefusedError, match=r"no credentials: the environment has none.* Set ") as raised:
            ObjectBucket(place, timeout_s=0.3, waits_s=QUICK).head("x.tar")
        assert "asked" not in str(raised.value) and len(taken) <= 2


def test_a_service_of_credentials_that_is_busy_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path) as web:
        web.faults = [answer(503, {"Connection": "close"})] * 200
        for name in ("GCE_METADATA_HOST", "GCE_METADATA_IP"):
            monkeypatch.setenv(name, web.url.removeprefix("http://"))
        with pytest.raises(RemoteError, match=r"status 503.*asked 6 times"):
            ObjectBucket("gs://b/a", waits_s=QUICK).head("x.tar")


@pytest.mark.parametrize(("place", "variables"), [
    ("az://b/a", {}),
    ("az://b/a", {"AZURE_STORAGE_ACCOUNT_NAME": "someone", "AZURE_STORAGE_ACCOUNT_KEY": "no base64: sesame"}),
    ("gs://b/a", {"GOOGLE_APPLICATION_CREDENTIALS": "/no/such/file.json"}),
    ("s3://b/a", {"AWS_ACCESS_KEY_ID": "sesame"}),
    ("s3://b/a", {"AWS_SKIP_SIGNATURE": "perhaps"})])
def test_settings_that_are_wrong_are_not_tried_again(place: str, variables: dict[str, str],
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RemoteError, match=r"obstore cannot open such a place.* Set ") as raised:
        ObjectBucket(place, waits_s=QUICK).list()
    assert "asked" not in str(raised.value) and "sesame" not in str(raised.value)


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "GOOGLE_BASE_URL", "AZURE_ENDPOINT"])
def test_an_endpoint_is_an_address(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """obstore's own answer to some is the end of a thread of Rust."""
    monkeypatch.setenv(name, "someone:sesame@localhost:9000")
    with pytest.raises(ConfigError, match=f"{name}: expected an address that begins with http://") as raised:
        ObjectBucket("s3://b/a").head("x.tar")
    assert "sesame" not in str(raised.value)


def test_a_fault_inside_obstore_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AWS_ENDPOINT_URL": "http://[", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RemoteError, match=r"fault of its own|cannot open|not reachable"):
        ObjectBucket("s3://b/a", waits_s=()).head("x.tar")
