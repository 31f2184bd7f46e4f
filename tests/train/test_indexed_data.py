"""What a run is trained on is the same with an index as without, and the digest of a large set needs no sidecars."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from taro.shards.index_build import add_index
from taro.shards.reader import open_shards
from taro.shards.store_local import LocalStore
from taro.train import data
from taro.train.config import ShardSource
from taro.train.data import TrainingData, select
from tests.shards.helpers_sets import record, write_set

pytest.importorskip("pyarrow")


@pytest.fixture
def both(tmp_path: Path) -> list[Path]:
    write_set(tmp_path / "plain", [[5, 3], [], [4, 1], [2]])
    shutil.copytree(tmp_path / "plain", tmp_path / "indexed")
    add_index(str(tmp_path / "indexed"))
    return [tmp_path / "plain", tmp_path / "indexed"]


@pytest.mark.parametrize("filters", [
    {}, {"split": "val"}, {"split": None, "difficulty": (20, 40), "text": "1 EV"}, {"split": None, "text": "[02]"},
    {"split": None, "queries": ["1.0", "3.1"], "keys": [record(1).key, record(2).key]},
    {"split": None, "gaussian": {"mean": 30.0, "std": 9.0, "queries": 2}}])
def test_an_index_changes_nothing(both: list[Path], filters: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    sets = [select(ShardSource(path="set", name="set", **filters), open_shards(path)) for path in both]
    plain, indexed = sets
    assert list(plain.refs) == list(indexed.refs) and plain.left_out == indexed.left_out and plain.held == indexed.held
    assert plain.sha256 == indexed.sha256 and plain.shards == indexed.shards
    told = []
    for one in sets:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = TrainingData([one], prompts=1, seed=3)
            for source in ("online", "random", "overlap"):
                found.warn_missing_captions(source)
        steps = [found.samples(step) for step in range(3)]
        read = [(epoch, [(sample.clip, sample.query) for sample in samples]) for epoch, samples in steps]
        told.append((caplog.messages, found.summary(), found.sha256, read))
    assert told[0] == told[1] and len(told[0][0]) == 1, "no query has a path of overlap"


def test_a_large_set_is_told_apart_without_its_sidecars(both: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    small = select(ShardSource(path="set"), open_shards(both[1])).sha256
    monkeypatch.setattr(data, "DIGESTED_RECORDS", 9)
    found = select(ShardSource(path="set"), open_shards(both[1]))
    names: list[str] = []
    plain_open = LocalStore.open

    def watched(self: LocalStore, name: str) -> Any:
        names.append(name)
        return plain_open(self, name)

    monkeypatch.setattr(LocalStore, "open", watched)
    large = found.sha256
    assert names == [] and large != small and large == select(ShardSource(path="set"), open_shards(both[1])).sha256
    assert select(ShardSource(path="set", split="val"), open_shards(both[1])).sha256 != large
    manifest = found.shard_set.manifest
    shards = [one if one.kind == "paths" or one.index != 2 else one.model_copy(update={"sha256": "0" * 64})
              for one in manifest.shards]
    found.shard_set.manifest = manifest.model_copy(update={"shards": shards})
    assert found.sha256 != large, "other features are other data"
    assert select(ShardSource(path="set"), open_shards(both[0])).sha256 == small, "without an index, as before"
