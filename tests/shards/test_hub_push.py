"""Pushes to a hub: the real huggingface_hub client against a server on loopback that speaks the hub's calls."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from taro.core.errors import ShardError
from taro.shards.remote.bucket import ChangedError, RefusedError, ServerError
from taro.shards.remote.hub import open_hub
from taro.shards.transfer.hub_target import HubTarget
from taro.shards.transfer.target import Outgoing
from tests.shards.helpers_hub import READER, SIGNATURE, WRITER, LoopbackHub, use_hub
from tests.shards.helpers_hub_kill import kill_once
from tests.shards.helpers_hub_server import answer, cut_after, serving

PLACE = "hf://datasets/team/set"
QUICK = (0.01, 0.01)
pytestmark = [pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # of the client's upload
              pytest.mark.filterwarnings("ignore:hf_xet.*is deprecated:DeprecationWarning")]  # of 1.5's
NAMES = ("paths/paths-000000.tar", "paths/paths-000000.json", "features/a/features-000000.tar",
         "features/a/features-000000.json", "README.md", "manifest.json")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """An empty hub, which the client asks with the writer's token, without Xet."""
    with serving() as one:
        use_hub(monkeypatch, one, WRITER)
        yield one


def files(root: Path, seed: int = 0, names: tuple[str, ...] = NAMES, size: int = 30_000) -> list[Outgoing]:
    """Files of a set as a push sends them: any bytes, since a target does not look at them."""
    found = []
    for name in names:
        data = (f"---\nlicense: other\n---\n{seed}" if name == "README.md" else f"[{seed}]").encode()
        if name.endswith(".tar"):
            data = hashlib.sha256(f"{seed} {name}".encode()).digest() * (size // 32)
        path = root / str(seed) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        found.append(Outgoing(name, path, len(data), hashlib.sha256(data).hexdigest()))
    return found


class Count:
    """What `moved` has been told."""

    def __init__(self) -> None:
        self.files = self.bytes = 0
        self.lock = threading.Lock()

    def __call__(self, files: int, moved: int) -> None:
        with self.lock:
            self.files, self.bytes = self.files + files, self.bytes + moved


def push(sent: list[Outgoing], remove: tuple[str, ...] = (), *, public: bool = False) -> str:
    """A push with all that it asks first; returns the commit."""
    target, count = HubTarget(PLACE, public=public, waits_s=QUICK, jobs=2), Count()
    target.have()
    target.send(sent, remove, count)
    assert (count.files, count.bytes) == (len(sent), sum(one.size for one in sent))
    assert target.revision is not None
    return target.revision


def tree(hub: LoopbackHub) -> dict[str, bytes]:
    """What the main branch holds."""
    return {name: hub.bytes_of(blob) for name, blob in hub.repos["team/set"].files.items()
            if name != ".gitattributes"}


def content(sent: list[Outgoing]) -> dict[str, bytes]:
    """What was sent."""
    return {one.name: one.path.read_bytes() for one in sent}


def test_a_push_makes_a_private_data_set_in_one_commit(hub: LoopbackHub, tmp_path: Path) -> None:
    sent = files(tmp_path)
    commit = push(sent)
    repo = hub.repos["team/set"]
    assert tree(hub) == content(sent)
    assert repo.private and commit == repo.refs["main"] and len(repo.trees) == 2
    assert hub.uploaded == sum(one.size for one in sent if one.name.endswith(".tar"))
    use_files = open_hub(f"{PLACE}@{commit}")
    assert b"".join(use_files.chunks(NAMES[0], 0, sent[0].size)) == sent[0].path.read_bytes()


def test_an_unchanged_set_moves_nothing(hub: LoopbackHub, tmp_path: Path) -> None:
    sent = files(tmp_path)
    commit = push(sent)
    hub.forget()
    target = HubTarget(PLACE, waits_s=QUICK)
    held = target.have()
    assert {one.name: held[one.name].size for one in sent} == {one.name: one.size for one in sent}
    assert [held[one.name].sha256 for one in sent] == [
        one.sha256 if one.name.endswith(".tar") else None for one in sent]
    assert push(sent) == commit
    assert hub.uploaded == 0 and not hub.count("commit|preupload|lfs|upload") and len(hub.repos["team/set"].trees) == 2


def test_only_what_changes_is_sent_and_what_goes_goes_with_it(hub: LoopbackHub, tmp_path: Path) -> None:
    sent = files(tmp_path)
    first = push(sent)
    other = files(tmp_path, 1, NAMES[2:])
    hub.forget()
    push(other, NAMES[:2])
    assert tree(hub) == content(other)
    assert hub.count("/commit/") == 1 and hub.uploaded == other[0].size
    assert b"".join(open_hub(f"{PLACE}@{first}").chunks(NAMES[0], 0, sent[0].size)) == sent[0].path.read_bytes()


def test_public_is_asked_for(hub: LoopbackHub, tmp_path: Path) -> None:
    push(files(tmp_path), public=True)
    assert not hub.repos["team/set"].private
    with pytest.raises(RefusedError, match="--public"):
        HubTarget(PLACE).have()
    push(files(tmp_path, 1), public=True)


def test_a_large_set_takes_several_commits_and_never_reads_as_whole_between_them(
        hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taro.shards.transfer.hub_target.COMMIT_FILES", 2)
    names = (*(f"paths/paths-{n:06d}.{ext}" for n in range(3) for ext in ("tar", "json")), *NAMES[-2:])
    sent = files(tmp_path, 0, names)
    push(sent)
    assert tree(hub) == content(sent) and hub.commits_seen == [2, 2, 2, 2]
    again = files(tmp_path, 1, names)
    hub.commits_seen.clear()
    push(again)
    assert tree(hub) == content(again) and hub.commits_seen == [3, 2, 2, 2]
    repo = hub.repos["team/set"]
    whole = [set(names) <= set(one) for one in repo.trees.values()]
    assert whole == [False] * 4 + [True] + [False] * 3 + [True]
    assert ["manifest.json" in one for one in repo.trees.values()] == whole


def test_small_files_of_many_bytes_are_shared_out(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                  ) -> None:
    monkeypatch.setattr("taro.shards.transfer.hub_target.COMMIT_BYTES", 5)
    sent = files(tmp_path, 0, tuple(f"paths/paths-{n:06d}.json" for n in range(4)) + NAMES[-1:])
    push(sent)
    assert hub.commits_seen == [1, 1, 1, 2]


def test_somebody_else_commits_meanwhile(hub: LoopbackHub, tmp_path: Path) -> None:
    sent = files(tmp_path)
    push(sent)
    target = HubTarget(PLACE, waits_s=QUICK)
    target.have()
    hub.add_commit(hub.repos["team/set"], {"manifest.json": b"theirs"})
    with pytest.raises(ChangedError, match="push again"):
        target.send(files(tmp_path, 1), (), Count())
    assert tree(hub)["manifest.json"] == b"theirs"
    assert tree(hub)[NAMES[0]] == sent[0].path.read_bytes()


def test_a_lost_answer_to_a_commit_is_no_failure(hub: LoopbackHub, tmp_path: Path) -> None:
    sent = files(tmp_path)
    hub.fault("POST .*/commit/", cut_after(3))
    assert push(sent) == hub.repos["team/set"].refs["main"]
    assert tree(hub) == content(sent) and len(hub.repos["team/set"].trees) == 2


@pytest.mark.parametrize("call", ["revision", "/tree/", "repos/create", "preupload", "batch", "/upload/", "/commit/"])
def test_a_failing_hub_is_asked_again(hub: LoopbackHub, tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch,
                                      caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    caplog.set_level(logging.INFO)
    sent = files(tmp_path)
    hub.fault(call, answer(503))
    push(sent)
    assert tree(hub) == content(sent)
    assert not [word for word in (SIGNATURE, WRITER) if word in caplog.text]


def test_who_may_not(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for token in (READER, None):
        use_hub(monkeypatch, hub, token)
        with pytest.raises(RefusedError, match="HF_TOKEN to a token that may write"):
            push(files(tmp_path))
    hub.add_repo("team/set", {})
    use_hub(monkeypatch, hub, READER)
    with pytest.raises(RefusedError, match="HF_TOKEN to a token that may write"):
        push(files(tmp_path))
    assert not tree(hub)
    with pytest.raises(ShardError, match="a commit stays as it is"):
        HubTarget(f"{PLACE}@{'0' * 40}")
    with pytest.raises(ShardError, match="a commit stays as it is"):
        HubTarget("hf://buckets/team/set")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_changed_is_not_sent(hub: LoopbackHub, tmp_path: Path, name: str) -> None:
    sent = files(tmp_path)
    path = tmp_path / "0" / name
    path.write_bytes(b"x" + path.read_bytes()[1:])
    with pytest.raises(ShardError, match="its sha256 is not the manifest's"):
        push(sent)
    assert not tree(hub)


def test_what_arrived_is_compared(hub: LoopbackHub, tmp_path: Path) -> None:
    target, sent = HubTarget(PLACE, waits_s=QUICK), files(tmp_path)
    target.have()

    def other(handler: object) -> bool:
        """The hub keeps other bytes than those of the commit."""
        commit = hub.repos["team/set"].commit

        def wrong(held: dict[str, object], branch: str = "main") -> str:
            hub.repos["team/set"].commit = commit  # type: ignore[method-assign]
            return commit({**held, NAMES[0]: hub.blob(NAMES[0], b"other")}, branch)  # type: ignore[dict-item]

        hub.repos["team/set"].commit = wrong  # type: ignore[method-assign, assignment]
        return False

    hub.fault("/commit/", other)
    with pytest.raises(ServerError, match="other bytes than were sent"):
        target.send(sent, (), Count())


def test_the_progress_bars_of_the_client_are_as_before(hub: LoopbackHub, tmp_path: Path,
                                                       capfd: pytest.CaptureFixture[str]) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled

    before = are_progress_bars_disabled()
    push(files(tmp_path))
    assert are_progress_bars_disabled() == before and capfd.readouterr() == ("", "")
    assert not constants.HF_HUB_OFFLINE


def test_xet_carries_large_files(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_xet(hub, tmp_path, monkeypatch)
    sent = files(tmp_path)
    hub.known = {one.sha256: one.path for one in sent}
    commit = push(sent)
    assert tree(hub) == content(sent) and hub.uploaded == 0 and hub.count("xet-write-token")
    assert push(sent) == commit


def test_files_are_put_into_a_bucket(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_xet(hub, tmp_path, monkeypatch)
    hub.add_bucket("team/work", {})
    bucket, [sent, other] = open_hub("hf://buckets/team/work/day"), [files(tmp_path, n, NAMES[:1])[0] for n in (0, 1)]
    assert bucket.put(NAMES[0], sent.path, absent=True)
    assert b"".join(bucket.chunks(NAMES[0], 0, sent.size)) == sent.path.read_bytes()
    assert not bucket.put(NAMES[0], other.path, absent=True)
    assert bucket.put(NAMES[0], other.path, absent=False)
    assert b"".join(bucket.chunks(NAMES[0], 0, sent.size)) == other.path.read_bytes()
    assert [one.name for one in bucket.list()] == [NAMES[0]]
    use_hub(monkeypatch, hub, READER)
    with pytest.raises(RefusedError, match="may write"):
        bucket.put(NAMES[1], other.path, absent=True)
    with pytest.raises(ShardError, match="written in commits"):
        hub.add_repo("team/set", {})
        open_hub(PLACE).put(NAMES[0], sent.path, absent=True)


def test_a_killed_push_recovers(hub: LoopbackHub, tmp_path: Path) -> None:
    assert kill_once(hub, tmp_path, 3).endswith("killed")


def with_xet(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the client use Xet, whose servers are a folder."""
    hub.xet = tmp_path / "xet"
    hub.xet.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "xet-cache"))
