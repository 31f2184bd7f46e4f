"""Whole sets to and from a hub on loopback: pushed, pulled and verified by the real client, killed in between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from taro.shards.transfer.pull import pull
from taro.shards.transfer.push import Choices, push
from taro.shards.verify import verify
from tests.shards.helpers_hub import WRITER, LoopbackHub, use_hub
from tests.shards.helpers_hub_kill import kill_once
from tests.shards.helpers_hub_server import serving
from tests.shards.helpers_sets import write_set

PLACE = "hf://datasets/team/set"
MAY = Choices(i_may_share=True)
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client's upload


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """An empty hub, which the client asks with the writer's token."""
    with serving() as one:
        use_hub(monkeypatch, one, WRITER)
        yield one


def test_a_set_goes_to_a_hub_and_comes_back(hub: LoopbackHub, tmp_path: Path) -> None:
    write_set(tmp_path / "set", [[0, 1], [2]], clip=True)
    done = push(tmp_path / "set", PLACE, MAY)
    assert done.revision == hub.repos["team/set"].refs["main"] and hub.repos["team/set"].private
    hub.forget()
    again = push(tmp_path / "set", PLACE, MAY)
    assert (again.moved, again.revision, hub.uploaded) == ((), done.revision, 0)
    came = pull(f"{PLACE}@{done.revision}", tmp_path / "copy")
    assert came.moved_bytes > 0 and not verify(tmp_path / "copy").problems
    for path in (tmp_path / "set").rglob("*.tar"):
        assert (tmp_path / "copy" / path.relative_to(tmp_path / "set")).read_bytes() == path.read_bytes()


def test_killed_pushes_recover(hub: LoopbackHub, tmp_path: Path) -> None:
    assert kill_once(hub, tmp_path, 3).endswith("killed")
