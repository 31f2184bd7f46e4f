"""The queries of a set: read in one pass, parsed once, asked for by the names that exist."""

from __future__ import annotations

import copy
import hashlib
import io
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import pytest

import taro.shards.members as members
from taro.core.errors import ConfigError, ShardError
from taro.grounding.records import ClipRecord
from taro.shards.format import BLOCK, shard_path
from taro.shards.manifest import read_manifest, write_manifest, write_skipped
from taro.shards.ops.filter import Selection, filter_set
from taro.shards.ops.split import split_by_fraction
from taro.shards.reader import ShardSet, open_shards
from taro.shards.store_local import LocalStore
from taro.train.evaluate import Questions, missing_predictions
from tests.shards.helpers_sets import FINGERPRINT, record, write_set


class Watched(LocalStore):
    """A folder that counts: the files that were opened, and where bytes were read from them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.opened: list[str] = []
        self.reads: list[tuple[str, int, int]] = []

    def open(self, name: str) -> BinaryIO:
        self.opened.append(name)
        return _Reads(self, name, super().open(name))


class _Reads(io.BufferedReader):
    """An open file that tells its store what is read."""

    def __init__(self, store: Watched, name: str, file: BinaryIO) -> None:
        super().__init__(file.detach())  # type: ignore[attr-defined]
        self._store, self._name = store, name

    def read(self, size: int | None = -1) -> bytes:
        at, data = self.tell(), super().read(size)
        self._store.reads.append((self._name, at, len(data)))
        return data


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where every KEY.json that is parsed lies."""
    found: list[str] = []
    real = members.parse_clip

    def counted(data: bytes, where: str) -> ClipRecord:
        found.append(where)
        return real(data, where)

    monkeypatch.setattr(members, "parse_clip", counted)
    return found


@pytest.mark.parametrize("slices", [[[1, 2, 3, 4, 5]], [[5, 3], [], [4, 1], [2]]])
def test_the_queries_are_one_pass_over_the_paths_shards(
    tmp_path: Path, slices: list[list[int]], parsed: list[str]
) -> None:
    write_set(tmp_path, slices)
    store = Watched(tmp_path)
    found = ShardSet(store)
    store.opened.clear()
    store.reads.clear()
    refs = found.queries()
    full = [index for index, numbers in enumerate(slices) if numbers]
    assert store.opened == [shard_path("paths", index) for index in full], "each shard is opened once"
    assert [read[:2] for read in store.reads] == sorted(read[:2] for read in store.reads), "from beginning to end"
    listed = [one for key in found.keys if (one := found.listed("paths", key)) is not None]
    json_bytes = sum(member.size + BLOCK for one in listed for member in one.members if member.ext == "json")
    assert sum(size for _, _, size in store.reads) == json_bytes, "no contact sheet is read"
    assert len(parsed) == 5
    assert [(ref.key, ref.query) for ref in refs] == [(key, query) for key in found.keys
                                                      for query in found.clip(key).queries]


def test_what_shares_an_open_set_shares_its_queries(tmp_path: Path, parsed: list[str]) -> None:
    write_set(tmp_path, [[1, 2], [3]])
    store = Watched(tmp_path)
    found = ShardSet(store)
    copies = [found.reading(FINGERPRINT.name), copy.copy(found), found.reading(FINGERPRINT.name).reading("")]
    store.opened.clear()
    refs = copies[0].queries()  # before any other has them
    for one in (found, *copies):
        assert one.queries() == refs and one.queries(split="val") == [ref for ref in refs if ref.query.split == "val"]
        assert one.splits == ["train", "val"] and one.captioned == frozenset(one.keys)
    assert len(parsed) == 3 and len(store.opened) == 2
    sent = pickle.loads(pickle.dumps(found))  # noqa: S301
    assert sent.queries() == refs and len(parsed) == 3, "what is known travels to a worker"


def test_a_pass_that_failed_is_not_kept(tmp_path: Path) -> None:
    write_set(tmp_path, [[1], [2]])
    found, shard = open_shards(tmp_path), tmp_path / shard_path("paths", 1)
    whole = shard.read_bytes()
    at = found.listed("paths", record(2).key).members[-1].offset  # type: ignore[union-attr]
    for damaged, said in ((whole[:at] + b"[" + whole[at + 1 :], "sha256 of"), (whole[: at + 9], "it is truncated"),
                          (whole[: at - BLOCK] + bytes(BLOCK) + whole[at:], "not the header")):
        shard.write_bytes(damaged)
        with pytest.raises(ShardError, match=rf"paths-000001\.tar: record {record(2).key} at byte {at:,}.*{said}"):
            found.queries()
    shard.write_bytes(whole)
    assert len(found.queries()) == 4 and len(found.queries()) == 4


def test_a_derived_set_reads_each_clip_a_bounded_number_of_times(tmp_path: Path, parsed: list[str]) -> None:
    write_set(tmp_path / "set", [[1, 2], [3, 4]])
    filter_set(open_shards(tmp_path / "set"), tmp_path / "few", Selection(queries=frozenset({"1.0", "3.1"})))
    assert max(map(parsed.count, parsed)) <= 3
    parsed.clear()
    split_by_fraction(open_shards(tmp_path / "set"), tmp_path / "parts", {"a": 0.5, "b": 0.5})
    assert max(map(parsed.count, parsed)) <= 4, "once for the videos, and for each part and its check"


SPLITS = ["Val", "val ", "validation", "", "trian", "\u202eval", "x" * 5_000]


@pytest.mark.parametrize("split", SPLITS)
def test_a_misspelt_split_is_an_error_that_names_the_splits(tmp_path: Path, split: str) -> None:
    write_set(tmp_path, [[1, 2]])
    found: Any = open_shards(tmp_path)
    for ask in (lambda: found.queries(split=split), lambda: found.queries(split, ids=["1.0"]),
                lambda: Questions(split).of(found), lambda: Questions(split, limit=1).are_all(found)):
        with pytest.raises(ConfigError, match=r"no query of split '.*; the set has train, val$") as error:
            ask()
        assert len(str(error.value)) < 1_000
    assert found.queries(split="train", ids=["1.1"]) == [], "the split exists; nothing in it has that id"
    assert len(found.queries(split=None)) == 4


def test_a_set_without_a_query_says_so(tmp_path: Path) -> None:
    write_set(tmp_path, [[]], skipped=0)
    found = open_shards(tmp_path)
    assert found.queries() == [] and found.splits == []
    with pytest.raises(ConfigError, match="no query of split 'train'; the set has no query at all"):
        found.queries(split="train")


def test_a_split_whose_clips_are_all_missed_is_a_split(tmp_path: Path) -> None:
    """Its scores are those of misses; the same rows dropped by the linter are no queries, and no split."""
    write_set(tmp_path, [[1]], skipped=2)
    for stage, is_split in (("decode", True), ("caption", True), ("annotations", False), ("windows", False)):
        rows = [{"row_id": f"m{n}", "line": n, "video": "gone.mp4", "key": "", "stage": stage, "reason": "missing",
                 "detail": "", "transient": False, "split": "test", "query": "q", "windows_s": [(0.0, 1.0)],
                 "duration_s": None, "difficulty": None} for n in range(2)]
        write_skipped(tmp_path, rows)
        held = read_manifest(LocalStore(tmp_path))
        digest = hashlib.sha256((tmp_path / "skipped.parquet").read_bytes()).hexdigest()
        write_manifest(tmp_path, held.model_copy(update={"skipped_sha256": digest}))
        found = open_shards(tmp_path)
        assert found.splits == ["train", "val"]
        if is_split:
            assert found.queries(split="test") == [] == Questions("test").of(found)
            assert len(missing_predictions(found, "test")) == 2
        else:
            with pytest.raises(ConfigError, match="the set has train, val"):
                found.queries(split="test")
