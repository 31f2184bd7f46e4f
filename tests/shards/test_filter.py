"""A part of a set is a set: it verifies, holds what was asked for and nothing else, and loses no row."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from taro.cli.app import app
from taro.core.errors import ConfigError, ShardError
from taro.shards.format import shard_path
from taro.shards.manifest import read_skipped
from taro.shards.ops.diff import diff
from taro.shards.ops.filter import Selection, filter_set
from taro.shards.ops.split import split_by_fraction, split_by_split
from taro.shards.reader import open_shards
from taro.shards.verify import verify
from tests.shards.helpers_sets import SHEET, features, record, write_set


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_set(tmp_path / "set", [[1, 2], [3]], clip=True)
    return tmp_path / "set"


@pytest.mark.parametrize(("selection", "kept"), [
    (Selection(split="train"), {"1.0", "2.0", "3.0"}),
    (Selection(difficulty=(20.0, 30.0)), {"2.1", "3.1"}),
    (Selection(queries=frozenset({"1.1", "3.0"})), {"1.1", "3.0"}),
    (Selection(keys=frozenset({record(2).key})), {"2.0", "2.1"}),
    (Selection(split="val", keys=frozenset({record(1).key, record(2).key}), difficulty=(0, 10)), {"1.1"}),
])
def test_what_is_asked_for_stays_and_no_row_is_lost(
    source: Path, tmp_path: Path, selection: Selection, kept: set[str]
) -> None:
    made = filter_set(open_shards(source), tmp_path / "out", selection)
    found = open_shards(tmp_path / "out")
    assert {ref.query.id for ref in found.queries()} == kept and verify(tmp_path / "out").problems == []
    assert made.inputs == 7 and (found.manifest.counts.inputs, found.manifest.counts.queries) == (7, len(kept))
    rows = read_skipped(tmp_path / "out")
    misses = {"0"} if selection == Selection(split="train") else set()  # the filters are asked of misses too
    every = {"0", *(f"{number}.{index}" for number in (1, 2, 3) for index in (0, 1))}
    assert {row["row_id"] for row in rows if row["stage"] == "filter"} == every - kept - misses
    assert {row["row_id"] for row in rows if row["reason"] == "missing"} == misses
    for key in found.keys:
        number = int(found.clip(key).video.sha256, 16)
        assert found.clip(key).captions == record(number).captions and found.thumbnail(key) == SHEET
        assert torch.equal(found.features(key).main_SND, features(number).main_SND)
        assert found.clip_features(key).eq(number).all()
    assert found.manifest.config["derived"][0]["source"]["queries"] == 6


def test_equal_sources_give_equal_bytes_in_slices_of_the_size_asked_for(source: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        filter_set(open_shards(source), tmp_path / name, Selection(split="train"), slice_bytes=1)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    entries = [entry for entry in open_shards(tmp_path / "a").manifest.shards if entry.kind == "paths"]
    assert [entry.records for entry in entries] == [1, 1, 1] and verify(tmp_path / "a").ok


def test_a_split_by_split_names_its_parts(source: Path, tmp_path: Path) -> None:
    made = split_by_split(open_shards(source), tmp_path / "out")
    assert {name: (one.clips, one.queries, one.inputs) for name, one in made.items()} == {
        "train": (3, 3, 7), "val": (3, 3, 7)}
    for name in made:
        assert {ref.query.split for ref in open_shards(tmp_path / "out" / name).queries()} == {name}
        assert verify(tmp_path / "out" / name).ok
    assert not list(tmp_path.glob(".*"))


def test_a_split_by_fraction_cuts_between_videos(tmp_path: Path) -> None:
    write_set(tmp_path / "set", [list(range(1, 7)), list(range(7, 11))])
    drawn = set()
    for seed in range(4):
        made = split_by_fraction(open_shards(tmp_path / "set"), tmp_path / f"out{seed}", {"train": 0.7, "val": 0.3},
                                 seed=seed)
        keys = {name: set(open_shards(tmp_path / f"out{seed}" / name).keys) for name in made}
        assert (len(keys["train"]), len(keys["val"])) == (7, 3) and not keys["train"] & keys["val"]
        drawn.add(frozenset(keys["val"]))
        assert verify(tmp_path / f"out{seed}" / "val").ok
    assert len(drawn) > 1
    again = split_by_fraction(open_shards(tmp_path / "set"), tmp_path / "again", {"train": 0.7, "val": 0.3}, seed=3)
    assert files(tmp_path / "again") == files(tmp_path / "out3") and again["val"].clips == 3


@pytest.mark.parametrize("fractions", [
    {"a": 1.0}, {"a": 0.5, "b": 0.6}, {"a": 1.5, "b": -0.5}, {"a": 0.99, "b": 0.01}, {"a": float("nan"), "b": 0.5}])
def test_fractions_that_do_not_cut_are_refused(source: Path, tmp_path: Path, fractions: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="fractions"):
        split_by_fraction(open_shards(source), tmp_path / "out", fractions)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".", "a.", "con\u202e", "x" * 101])
def test_a_split_that_cannot_name_a_folder_is_refused(source: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ShardError, match="cannot name a folder"):
        split_by_fraction(open_shards(source), tmp_path / "out", {name: 0.5, "b": 0.5})


def test_what_cannot_be_done_is_said_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    opened = open_shards(source)
    before = files(source)
    for selection, said in [(Selection(split="none"), "no clip is left"),
                            (Selection(keys=frozenset({"x"})), "no key x"),
                            (Selection(queries=frozenset({"9.9"})), "no query 9.9")]:  # fmt: skip
        with pytest.raises(ShardError, match=said):
            filter_set(opened, tmp_path / "out", selection)
    with pytest.raises(ConfigError, match="nothing to filter by"):
        filter_set(opened, tmp_path / "out", Selection())
    with pytest.raises(ShardError, match="inside the set"):
        filter_set(opened, source / "part", Selection(split="train"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    with pytest.raises(ShardError, match="exists already"):
        filter_set(opened, tmp_path / "full", Selection(split="train"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "set"] and files(source) == before


def test_a_damaged_record_stops_the_copy_and_nothing_is_seen(source: Path, tmp_path: Path) -> None:
    shard = source / shard_path("clip/clip-tiny-00000000", 1)
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ShardError, match="sha256"):
        filter_set(open_shards(source), tmp_path / "out", Selection(split="train"))
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_what_a_killed_job_left_is_cleared_and_a_living_one_is_respected(source: Path, tmp_path: Path) -> None:
    aside = tmp_path / ".out.making"
    (aside / "paths").mkdir(parents=True)
    (aside / "paths" / "paths-000007.tar").write_bytes(b"half")
    handle = os.open(aside, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(ShardError, match="another process"):
        filter_set(open_shards(source), tmp_path / "out", Selection(split="train"))
    assert (aside / "paths" / "paths-000007.tar").exists()
    os.close(handle)
    filter_set(open_shards(source), tmp_path / "out", Selection(split="train"))
    assert verify(tmp_path / "out").ok and not aside.exists()


def test_the_commands(source: Path, tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("1.0\n\n2.1\n")
    result = CliRunner().invoke(app, ["shards", "filter", str(source), str(tmp_path / "f"), "--query",
                                      f"@{tmp_path / 'ids'}", "--query", "3.1", "--difficulty", "20:"])  # fmt: skip
    assert result.exit_code == 0 and "7 rows = 2 queries + 5 skipped, 2 clips" in result.output, result.output
    cut = CliRunner().invoke(app, ["shards", "split", str(source), str(tmp_path / "s"), "--by", "fraction",
                                   "--fractions", "train=0.6,val=0.4"])  # fmt: skip
    assert cut.exit_code == 0 and "val" in cut.output, cut.output
    named = CliRunner().invoke(app, ["shards", "split", str(source), str(tmp_path / "n"), "--by", "split"])
    assert named.exit_code == 0 and not diff(open_shards(tmp_path / "n" / "val"), open_shards(source)).clips_only_b
    step = open_shards(tmp_path / "f").manifest.config["derived"][0]
    assert (step["by"], step["difficulty"], step["queries"]) == ("filter", [20.0, None], 3)
    for words in (*(["filter", str(source), str(tmp_path / "x"), "--difficulty", wrong] for wrong in (
                      "high", "1_0:20", "nan:", ":1e999", "30:20", "\uff11:20", "20")),
                  *(["split", str(source), str(tmp_path / "x"), "--by", "fraction", "--fractions", wrong] for wrong in (
                      "train=0.5,val=0.5,train=0.5", "train=0_5,val=0.5", "train=nan,val=1")),
                  ["split", str(source), str(tmp_path / "x"), "--by", "fraction", "--fractions", "train:1"]):
        wrong = CliRunner().invoke(app, ["shards", *words])
        assert wrong.exit_code == 1 and "expected" in wrong.output, wrong.output
