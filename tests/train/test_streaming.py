"""Training on a stream: the order is known without data, every query comes once, any number of ranks takes the same."""

from __future__ import annotations

import io
import re
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
import torch

from taro.core.errors import ConfigError, MissingPackageError, ShardError
from taro.shards.reader import open_shards
from taro.shards.store import Wanted
from taro.shards.store_local import LocalStore
from taro.train.ahead import SamplesAhead
from taro.train.config import ShardSource, TrainConfig
from taro.train.data import TrainingData, sample_name, select
from taro.train.loop import train
from tests.shards.helpers_sets import FINGERPRINT, add_variants, features, write_set
from tests.train.conftest import Tiny
from tests.train.test_data import numbers, rollouts
from tests.train.test_many_ranks import alone, assert_near, good, recipe, rows, taro

pytest.importorskip("webdataset")

SLICES = [[4, 0, 7], [1, 5], [2, 8, 9, 3], [6], [10, 11, 12]]
"""13 clips with 26 queries, of split train and val in turn"""
FEATURES = sum(one.nbytes for one in [features(0).main_SND])


class CountingStore(LocalStore):
    """A folder that counts the reads of shards by name and offset; `gate`: they wait while it is not set."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.reads: Counter[tuple[str, int]] = Counter()
        self.told: set[tuple[str, int]] = set()
        self.gate = threading.Event()
        self.gate.set()

    def open(self, name: str) -> BinaryIO:
        return cast(BinaryIO, _Counted(super().open(name), name, self))

    def prefetch(self, wanted: Iterable[Wanted]) -> None:
        self.told |= {(one.name, one.start) for one in wanted}

    def records(self, kind: str) -> Counter[tuple[str, int]]:
        """Reads of the shards of a kind."""
        return Counter({at: count for at, count in self.reads.items() if at[0].startswith(f"{kind}/")})


class _Counted:
    def __init__(self, file: BinaryIO, name: str, store: CountingStore) -> None:
        self._file, self._name, self._store = file, name, store

    def readinto(self, buffer: memoryview) -> int:
        if self._name.endswith(".tar"):
            assert self._store.gate.wait(30)
            self._store.reads[self._name, self._file.tell()] += 1
        return cast(io.BufferedReader, self._file).readinto(buffer)

    def __enter__(self) -> _Counted:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def until(true: Callable[[], bool]) -> None:
    """Waits for what another thread does, and a moment more, in which it may do too much."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)
    time.sleep(0.1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streamed") / "set"
    write_set(folder, SLICES)
    add_variants(folder)
    return folder


def data_of(*places: Path | CountingStore, prompts: int = 4, buffer: int | None = 8, draws: int | None = None,
            variants: bool = False, weights: tuple[float, ...] = (1.0, 1.0), **filters: Any) -> TrainingData:
    """The data of a run on the sets there; queries of both splits unless a filter says otherwise."""
    sets = []
    for at, (place, weight) in enumerate(zip(places, weights, strict=False)):
        source = ShardSource(path=str(getattr(place, "place", place)), name=f"set{at}", weight=weight, **filters)
        shard_set = open_shards(place).reading(FINGERPRINT.name, variants=variants)
        sets.append(select(source, shard_set))
    return TrainingData(sets, prompts=prompts, seed=3, draws=draws, buffer=buffer)


def names(data: TrainingData, steps: int, *, first: int = 0, world: int = 1) -> list[list[str]]:
    """Of each step the prompts, put together from all ranks', each of which reads a whole run."""
    every: list[list[list[str]]] = []
    for rank in range(world):
        mine = []
        for step in range(first, steps):
            mine.append([sample_name(one) for one in data.samples(step, rank=rank, world=world, steps=steps)[1]])
        every.append(mine)
    data.close()
    return [[every[at % world][step][at // world] for at in range(sum(len(one[step]) for one in every))]
            for step in range(steps - first)]


def test_the_order_is_known_without_data_and_every_query_comes_once(root: Path) -> None:
    data = data_of(root)
    steps = data.steps_per_epoch
    assert (steps, data.order.left_out(4)) == (6, 2)
    one = data.drawn[0]
    for epoch in (0, 1):
        told = [[f"{one.refs[index].key}/{one.refs[index].query.id}" for index in data.order.step(step, 4)[1]]
                for step in range(epoch * steps, (epoch + 1) * steps)]
        found = names(data, (epoch + 1) * steps, first=epoch * steps)
        assert found == told
        assert len({name for step in found for name in step}) == 24 == sum(map(len, found))
    assert names(data, 6) != names(data, 12, first=6)


@pytest.mark.parametrize("changes", [{}, {"draws": 17}, {"buffer": 1}, {"buffer": 100}, {"prompts": 3, "draws": 60}])
@pytest.mark.parametrize("sets", [1, 2])
def test_any_number_of_ranks_takes_the_same_and_a_run_goes_on_in_the_middle(
        root: Path, tmp_path: Path, sets: int, changes: dict[str, Any]) -> None:
    other = tmp_path / "other"
    write_set(other, [[0, 1, 20], [21]])
    data = data_of(*(root, other)[:sets], weights=(2.0, 1.0), **changes)
    steps = 2 * data.steps_per_epoch + 2
    whole = names(data, steps)
    for world in (2, 3):
        assert names(data, steps, world=world) == whole
    for first in (1, steps // 2, steps - 1):
        assert names(data, steps, first=first, world=2) == whole[first:]
    drawn = data.order.draws_of(steps - 1, changes.get("prompts", 4))
    for at, own, place in drawn:
        step, prompt = data.order.steps_of(at, own, changes.get("prompts", 4))
        assert step[place] == steps - 1 and drawn[prompt[place]] == (at, own, place)


def test_samples_are_those_of_the_index_with_filters_and_variants(root: Path) -> None:
    filters: dict[str, Any] = {"split": "val", "text": "event", "difficulty": (10.0, 110.0)}
    streamed, indexed = (data_of(root, buffer=buffer, prompts=2, variants=True, **filters) for buffer in (4, None))
    by_name = {sample_name(one): one for step in range(indexed.steps_per_epoch) for one in indexed.samples(step)[1]}
    for step in range(streamed.steps_per_epoch):
        for found in streamed.samples(step, steps=streamed.steps_per_epoch)[1]:
            wanted = by_name.pop(sample_name(found), None) or indexed.drawn[0].shard_set.sample(found.ref)
            assert (found.ref, found.clip, found.query) == (wanted.ref, wanted.clip, wanted.query)
            assert torch.equal(found.features.main_SND, wanted.features.main_SND)
            assert found.variants is not None and wanted.variants is not None
            assert torch.equal(found.variants.main_MND, wanted.variants.main_MND)
    streamed.close()
    assert streamed.steps_per_epoch == 5 and streamed.drawn[0].left_out == {"split": 13, "difficulty": 2}


def test_all_ranks_together_read_each_clip_once_an_epoch_and_a_resume_what_the_buffers_held(root: Path) -> None:
    for world in (1, 2, 4):
        store = CountingStore(root)
        data = data_of(store)
        store.reads.clear()  # of the queries
        names(data, data.steps_per_epoch, world=world)
        for kind in ("features", "paths"):
            reads = store.records(kind)
            # 4 lanes of 6 queries, and 2 left over: two of the three cuts are in the middle of no clip
            assert len(reads) >= 12 and sum(reads.values()) <= 13 + 3
            assert set(reads) <= store.told, "a remote store knows of a record before it is read"
    store = CountingStore(root)
    data = data_of(store)
    store.reads.clear()
    names(data, data.steps_per_epoch, first=data.steps_per_epoch - 1)
    assert sum(store.records("features").values()) == 4  # of the last step's four queries


@pytest.mark.parametrize(("buffer", "world"), [(8, 1), (8, 2), (40, 1)])
def test_the_buffers_hold_no_more_than_they_may(root: Path, buffer: int, world: int) -> None:
    data = data_of(root, buffer=buffer)
    mine, shared = buffer // world, list[bool]()
    for step in range(4):
        data.samples(step, rank=0, world=world, steps=100)
        reader = data._reader
        assert reader is not None
        until(lambda reader=reader: len(reader.held()) >= mine)  # type: ignore[misc]
        held = reader.held()
        tensors = {one.features.main_SND.data_ptr(): one.features.main_SND.nbytes for one in held}
        assert len(held) == mine and sum(tensors.values()) <= mine * FEATURES
        shared.append(len(tensors) < mine)
    assert any(shared), "queries of a clip that are held together share its features"
    data.close()
    assert reader is not None and reader.held() == []


@pytest.mark.parametrize("buffer", [None, 8])
def test_the_next_step_is_read_ahead_from_a_store_that_stands_still(root: Path, buffer: int | None) -> None:
    store = CountingStore(root)
    data = data_of(store, buffer=buffer)
    expected = names(data_of(root, buffer=buffer), 2)[1]
    store.reads.clear()
    ahead = SamplesAhead(data, 6)
    ahead.take(0)
    # by the index the 4 samples of the next step, by the stream 2 queries of each of 4 lanes besides
    most = 8 if buffer is None else 4 + 4 + buffer
    until(lambda: ahead._next is not None and ahead._next[1].done())
    assert 0 < sum(store.records("features").values()) <= most
    store.gate.clear()
    assert [sample_name(one) for one in ahead.take(1)[1]] == expected
    store.gate.set()
    ahead.close()
    alive = [one.name for one in threading.enumerate() if one.name.startswith(("samples", "lanes"))]
    assert alive == []


@pytest.mark.parametrize("place", ["features", "paths"])
def test_a_damaged_record_is_refused_as_the_indexed_reader_does(root: Path, tmp_path: Path, place: str) -> None:
    bad = Path(shutil.copytree(root, tmp_path / "bad"))
    shard = next((bad / place).rglob("*-000002.tar"))
    indexed, streamed = data_of(bad, buffer=None), data_of(bad)  # opened before: what is read while training
    data = bytearray(shard.read_bytes())
    data[data.rindex(b"safetensors" if place == "features" else b".json") + 1024] ^= 1
    shard.write_bytes(bytes(data))

    def met(data: TrainingData) -> tuple[int, str]:
        for step in range(data.steps_per_epoch):
            try:
                data.samples(step, steps=data.steps_per_epoch)
            except ShardError as error:
                data.close()
                return step, str(error)
        raise AssertionError("the damage was not met")

    first, said = met(streamed)
    assert met(streamed) == (first, said), "the step that meets it is a function of the settings"
    assert said == met(indexed)[1] and re.search(r"-000002\.tar: record v\d+-\w+ at byte [\d,]+: sha256", said)


def test_a_stream_is_refused_without_webdataset_before_a_folder_is_begun(
        make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    config = make_config(data={"reading": "stream"})
    with pytest.raises(MissingPackageError, match=r"pip install 'taro-vtg\[webdataset\]'"):
        train(config)
    assert not config.out.exists()


def test_a_resumed_run_equals_one_that_was_not_stopped(tiny: Tiny, tmp_path: Path) -> None:
    for out, amounts in (("whole", [5]), ("parts", [2, 5])):
        for at, amount in enumerate(amounts):
            config = tiny.config(tmp_path / out, length={"amount": amount}, data={"reading": "stream", "buffer": 4})
            report = train(config, resume=at > 0)
        assert report.steps == 5
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")
    assert rollouts(tmp_path / "parts") == rollouts(tmp_path / "whole")
    name = "export/model.safetensors"
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(ConfigError, match=r'data\.reading: "stream" -> "indexed"'):
        train(tiny.config(tmp_path / "whole", length={"amount": 6}, data={"buffer": 4}), resume=True)


def test_shards_cut_otherwise_are_other_data_to_a_stream(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_set(other, [[number for part in SLICES for number in part]])
    for buffer, same in ((None, True), (8, False)):
        assert (data_of(root, buffer=buffer).sha256 == data_of(other, buffer=buffer).sha256) is same


@pytest.mark.slow
def test_two_processes_train_on_a_stream_as_one_does(tiny: Tiny, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"length": {"amount": 2}, "data": {"reading": "stream", "buffer": 4}}
    alone(recipe(tiny, tmp_path, "one", **changes))
    good(taro(*recipe(tiny, tmp_path, "two", **changes), gpus=2))
    assert_near(rows(tmp_path / "two"), rows(tmp_path / "one"), 1e-9)
    first = "rollouts/step-000000.jsonl"
    assert (tmp_path / "two" / first).read_bytes() == (tmp_path / "one" / first).read_bytes()
