"""Sets on a hub: the real huggingface_hub client against a server on loopback that speaks the hub's calls."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from taro.core.errors import ShardError
from taro.shards.remote.bucket import (
    ChangedError,
    CutOffError,
    RefusedError,
    RemoteError,
    ServerError,
    TooManyRequestsError,
    UnreachableError,
)
from taro.shards.remote.hub import HubFiles, NoDatasetError, open_hub, parse_hub
from taro.shards.store import MissingFileError
from tests.shards.helpers_hub import READER, SIGNATURE, WRITER, LoopbackHub, use_hub
from tests.shards.helpers_hub_server import answer, cut_after, serving

TAR = bytes(range(256)) * 9000
FILES = {"manifest.json": b"{}", "paths/paths-000000.tar": TAR, "paths/paths-000000.json": b"[1]" * 300}
QUICK = (0.01, 0.01)
PLACE = "hf://datasets/team/set"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """A hub with one private data set, which the client asks with the reader's token."""
    with serving() as one:
        one.add_repo("team/set", FILES)
        use_hub(monkeypatch, one)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield one
        assert not (tmp_path / "cache").exists()


def whole(files: HubFiles, name: str) -> bytes:
    """All bytes of a file."""
    return b"".join(files.chunks(name, 0, files.head(name).size))


def raises(kind: type[ShardError], *words: str, place: str = PLACE, name: str = "paths/paths-000000.tar") -> None:
    """Reading a file of a place raises exactly this kind of error, with these words and without a secret."""
    with pytest.raises(ShardError) as caught:
        whole(open_hub(place, waits_s=QUICK), name)
    said = str(caught.value)
    assert type(caught.value) is kind, said
    assert said.startswith("hf://datasets/team/") and all(word in said for word in words), said
    assert not {SIGNATURE, READER, WRITER, "127.0.0.1"} & {word for word in (SIGNATURE, READER, WRITER, "127.0.0.1")
                                                          if word in said}
    assert caught.value.__suppress_context__ or caught.value.__context__ is None  # a traceback would quote addresses


def test_files_and_ranges_are_read_with_few_requests(hub: LoopbackHub) -> None:
    files = open_hub(PLACE)
    assert {name: whole(files, name) for name in FILES} == FILES
    assert [(one.name, one.size) for one in files.list() if one.name in FILES] == sorted(
        (name, len(data)) for name, data in FILES.items())
    assert hub.count("revision/main") == hub.count("/tree/") == 1
    hub.forget()
    for start in range(0, 100_000, 10_000):
        assert b"".join(files.chunks("paths/paths-000000.tar", start, start + 999)) == TAR[start:start + 999]
    assert hub.calls == ["GET /content/" + files.head("paths/paths-000000.tar").etag] * 10
    assert hub.served == 9990


def test_a_revision_is_resolved_once_and_stays(hub: LoopbackHub) -> None:
    repo = hub.repos["team/set"]
    first = repo.refs["main"]
    repo.refs |= {"v1": first, "refs/pr/1": first}
    files = open_hub(PLACE)
    hub.add_commit(repo, {"paths/paths-000000.tar": b"new"})
    assert whole(files, "paths/paths-000000.tar") == TAR
    assert files.place == f"{PLACE}@{first}"
    assert whole(open_hub(PLACE), "paths/paths-000000.tar") == b"new"
    for revision in ("v1", "refs/pr/1", "refs%2Fpr%2F1", first):
        assert open_hub(f"{PLACE}@{revision}").place == files.place
    raises(RemoteError, "no such revision", place=f"{PLACE}@v2")


def test_a_listing_of_many_pages_and_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(page=3) as hub:
        use_hub(monkeypatch, hub)
        hub.add_repo("team/sets", {f"{one}/{name}": data for one in ("a", "b", "ab") for name, data in FILES.items()})
        files = open_hub("hf://datasets/team/sets/a/")
        assert [one.name for one in files.list()] == sorted(FILES)
        assert hub.count("/tree/") > 1
        assert whole(files, "paths/paths-000000.tar") == TAR
        assert files.place.endswith("/a")


def test_a_bucket_is_read(hub: LoopbackHub) -> None:
    hub.add_bucket("team/work", {f"day/{name}": data for name, data in FILES.items()})
    files = open_hub("hf://buckets/team/work/day")
    assert {name: whole(files, name) for name in FILES} == FILES
    assert [one.name for one in files.list()] == sorted(FILES)
    assert files.place == "hf://buckets/team/work/day"
    with pytest.raises(MissingFileError):
        files.head("paths/paths-000001.tar")
    files = open_hub("hf://buckets/team/work/day")
    files.list()
    hub.add_bucket("team/work", {"day/paths/paths-000000.tar": b"new"})
    with pytest.raises(ChangedError, match="open the set again"):
        whole(files, "paths/paths-000000.tar")
    with pytest.raises(RefusedError, match="no such data set or bucket"):
        open_hub("hf://buckets/team/other").list()


def test_tokens_open_and_refuse(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, hub, None)
    raises(NoDatasetError, "hf auth login", "HF_TOKEN")
    use_hub(monkeypatch, hub, "hf_wrong")
    raises(RefusedError, "401", "HF_TOKEN")
    use_hub(monkeypatch, hub)
    raises(NoDatasetError, "no such data set", place="hf://datasets/team/other")
    hub.repos["team/set"].gated = True
    raises(RefusedError, "ask for access")
    hub.repos["team/set"].gated, hub.repos["team/set"].private = False, False
    use_hub(monkeypatch, hub, None)
    assert whole(open_hub(PLACE), "paths/paths-000000.tar") == TAR


def test_a_file_that_is_not_there(hub: LoopbackHub) -> None:
    raises(MissingFileError, "paths-000001.tar", name="paths/paths-000001.tar")
    hub.fault("resolve", answer(404, {"X-Error-Code": "EntryNotFound"}))
    raises(MissingFileError, "paths-000000.tar")


def test_an_address_that_has_expired_is_asked_for_again(hub: LoopbackHub) -> None:
    files = open_hub(PLACE, waits_s=())
    assert whole(files, "paths/paths-000000.tar") == TAR
    hub.forget()
    hub.expired = True
    assert whole(files, "paths/paths-000000.tar") == TAR
    assert [call.split("/")[1] for call in hub.calls] == ["content", "datasets", "content"]


def test_a_cut_connection_goes_on_where_it_broke(hub: LoopbackHub) -> None:
    hub.fault("content", cut_after(1_000_000), times=2)
    assert whole(open_hub(PLACE, waits_s=QUICK), "paths/paths-000000.tar") == TAR
    assert hub.count("content") == 3 and hub.served == len(TAR) + len(TAR) - 1_000_000 + len(TAR) - 2_000_000
    hub.fault("content", cut_after(10), times=9)
    raises(UnreachableError, "asked 3 times", "HF_ENDPOINT")


@pytest.mark.parametrize("call", ["revision", "tree", "resolve", "content"])
def test_too_many_requests_and_a_failing_server(hub: LoopbackHub, call: str) -> None:
    for fault in (answer(429, {"Retry-After": "0"}), answer(429, {"RateLimit": '"api";r=0;t=0'}), answer(503)):
        hub.fault(call, fault)
    assert whole(open_hub(PLACE, waits_s=(0.01,) * 3), "paths/paths-000000.tar") == TAR
    hub.fault(call, answer(429, {"RateLimit": '"api"; r=0; t=290'}))
    raises(TooManyRequestsError, "429", "fewer processes")
    hub.fault(call, answer(502), times=3)
    raises(ServerError, "502", "asked 3 times")


def test_what_has_changed_is_said(hub: LoopbackHub) -> None:
    files = open_hub(PLACE, waits_s=QUICK)
    with pytest.raises(ChangedError, match="open the set again"):
        files.chunks("paths/paths-000000.tar", 0, 10, etag="0" * 64)
    sha256 = str(files.head("paths/paths-000000.tar").etag)
    assert b"".join(files.chunks("paths/paths-000000.tar", 0, 10, etag=sha256)) == TAR[:10]
    hub.objects[sha256] = TAR + b"more"
    raises(ChangedError, "open the set again")


def test_a_server_that_ignores_ranges(hub: LoopbackHub) -> None:
    files = open_hub(PLACE, waits_s=QUICK)
    hub.fault("content", answer(200, body=TAR), times=3)
    assert whole(files, "paths/paths-000000.tar") == TAR
    with pytest.raises(ServerError, match="a range was asked for"):
        list(files.chunks("paths/paths-000000.tar", 5, 10))
    hub.fault("resolve", answer(200, body=TAR))
    with pytest.raises(CutOffError, match="more bytes"):
        list(open_hub(PLACE).chunks("paths/paths-000000.tar", 0, 10))


@pytest.mark.parametrize("body", [
    b"<html>log in</html>", b"[", b"{}", b'{"type": "file"}', b"[1]",
    b'[{"type": "file", "path": 1, "size": 1, "oid": ""}]', b'[{"type": "file", "path": "a", "size": -1, "oid": ""}]',
    b'[{"type": "file", "path": "a", "size": 1e9, "oid": ""}]',
    b'[{"type": "file", "path": "a", "size": true, "oid": ""}]', b'[{"type": "file", "path": "a", "size": 1}]',
    b'[{"type": "file", "path": "' + b"a" * 2000 + b'", "size": 1, "oid": ""}]',
    b'[{"type": "file", "path": "a", "size": 1, "oid": "' + b"a" * 2000 + b'"}]', b"[" * 100_000, b"\xff"])
def test_answers_that_no_hub_gives(hub: LoopbackHub, body: bytes) -> None:
    hub.fault("/tree/", answer(200, body=body))
    raises(ServerError, "HF_ENDPOINT")
    hub.fault("/revision/", answer(200, body=body))
    raises(ServerError, "HF_ENDPOINT")


def test_an_answer_without_end(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taro.shards.remote.hub.MAX_PAGE_BYTES", 10_000)
    hub.fault("/tree/", answer(200, body=b" " * 20_000))
    raises(ServerError, "more than 10,000 bytes")
    monkeypatch.setattr("taro.shards.remote.hub.MAX_PAGES", 3)
    link = {"Link": '<http://elsewhere.invalid/x?cursor=1>; rel="next"'}
    hub.fault("/tree/", answer(200, link, b"[]"), times=3)
    raises(ShardError, "more than")
    assert hub.count("/tree/") == 4


def test_no_hub(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    raises(UnreachableError, "HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    raises(UnreachableError, "asked 3 times", "HF_ENDPOINT")


def test_another_process_gets_no_secret(hub: LoopbackHub) -> None:
    files = open_hub(PLACE)
    assert whole(files, "paths/paths-000000.tar") == TAR
    data = pickle.dumps(files)
    assert SIGNATURE.encode() not in data and READER.encode() not in data
    hub.forget()
    assert whole(pickle.loads(data), "paths/paths-000000.tar") == TAR  # noqa: S301
    assert hub.count("resolve") == 1 and hub.count("api") == 0


@pytest.mark.parametrize("place", [
    "hf://datasets/name", "hf://models/team/set", "hf://team/set", "hf://datasets/../set", "hf://datasets/team/..",
    "hf://datasets/team/set@", "hf://datasets/team/set/a/../b", "hf://buckets/team/set@main", "hf://datasets/team/set?x",
    "hf://datasets/te am/set", "hf://datasets/team/-set\n"])
def test_places_that_are_none(place: str) -> None:
    with pytest.raises(ShardError, match="expected hf://datasets/OWNER/NAME"):
        parse_hub(place)
