"""Statistics and samples of a set are those that a hand can count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from taro.cli.app import app
from taro.grounding.records import ClipSpan, QueryRecord
from taro.shards.format import shard_path
from taro.shards.manifest import build_manifest, write_manifest
from taro.shards.ops.stats import sample, stats
from taro.shards.reader import open_shards
from taro.shards.view import view
from taro.shards.writer import SliceWriter
from tests.shards.helpers_sets import FINGERPRINT, record, write_set


def test_a_set_is_counted(tmp_path: Path) -> None:
    write_set(tmp_path, [[1, 2], [3]])
    found = stats(open_shards(tmp_path))
    # record(): 4 s clips, two queries each: [0, 1] in train and [0.5, 1.5] in val with difficulty 10 * number.
    assert (found.clips, found.queries, found.windows, found.captions) == (3, 6, 6, 9)
    assert found.splits == {"train": 3, "val": 3} and found.windows_per_query == {1: 6}
    assert (found.clip_s.total, found.clip_s.median) == (12.0, 4.0)
    assert found.window_s["1-2"] == 6 and sum(found.window_s.values()) == 6
    assert found.window_centre == [0, 3, 3, 0, 0, 0, 0, 0, 0, 0], "middles at 0.5 s and 1 s of 4 s"
    assert found.window_share == [0, 0, 6, 0, 0, 0, 0, 0, 0, 0], "1 s of 4 s"
    assert (found.captions_per_clip, found.queries_per_clip) == ({3: 3}, {2: 3})
    assert found.paths == {"random": {"paths": 12, "queries_without": 0}, "overlap": {"paths": 0, "queries_without": 6}}
    assert (found.with_difficulty, found.difficulty.mean) == (3, 20.0)
    assert found.skipped == {"plan: missing": 1} and found.inputs == found.queries + found.skipped_rows == 7
    assert found.bytes["paths"] == sum((tmp_path / shard_path("paths", index)).stat().st_size for index in (0, 1))


def test_windows_at_the_ends_and_outside_fall_into_a_bin(tmp_path: Path) -> None:
    windows = [(0.0, 0.0), (3.0, 3.5), (0.0, 4.0), (-1.0, 200.0), (3.0, 2.0)]
    one = record(1).model_copy(update={"queries": [QueryRecord(id="a", text="a", windows_s=windows)]})
    with SliceWriter(tmp_path, 0, kinds=["paths"]) as writer:
        writer.add_clip(one, None, {}, {})
        writer.commit()
    write_manifest(tmp_path, build_manifest(tmp_path, inputs=1, skipped=0, captions=3))
    found = stats(open_shards(tmp_path))
    assert found.windows_per_query == {5: 1} and found.window_s["0-1"] == 3 and found.window_s["120-"] == 1
    assert sum(found.window_centre) == sum(found.window_share) == sum(found.window_s.values()) == 5
    assert found.window_share[0] == 2 and found.window_share[9] == 2, "4 of 4 s, and 201 of 4 s, in the last tenth"


def test_a_sample_is_drawn_by_its_seed_without_repeat(tmp_path: Path) -> None:
    write_set(tmp_path, [[1, 2], [3]])
    shard_set = open_shards(tmp_path)
    drawn = [tuple(one.query.id for one in sample(shard_set, 2, seed=seed)) for seed in range(8)]
    assert drawn == [tuple(one.query.id for one in sample(shard_set, 2, seed=seed)) for seed in range(8)]
    assert len(set(drawn)) > 1 and all(len(set(ids)) == 2 for ids in drawn)
    everything = {one.query.id for one in sample(shard_set, 99)}
    assert everything == {f"{number}.{index}" for number in (1, 2, 3) for index in (0, 1)}


def test_the_commands_print_text_and_json(tmp_path: Path) -> None:
    write_set(tmp_path, [[1, 2]])
    result = CliRunner().invoke(app, ["shards", "stats", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "rows: 5 = 4 queries + 1 skipped" in result.output and "plan: missing: 1" in result.output
    assert "1-2       4 " + "#" * 40 in result.output
    found = json.loads(CliRunner().invoke(app, ["shards", "stats", str(tmp_path), "--json"]).output)
    assert found["splits"] == {"train": 2, "val": 2}
    shown = CliRunner().invoke(app, ["shards", "sample", str(tmp_path), "--limit", "4"])
    assert shown.exit_code == 0
    for part in ("query 2.1 (val): the 1 event", "windows: 0.50s to 1.50s; difficulty 20", "event 2 of 2",
                 "paths, random: 2, such as [0]", f"features/{FINGERPRINT.name} .safetensors"):  # fmt: skip
        assert part in shown.output, shown.output
    rows = CliRunner().invoke(app, ["shards", "sample", str(tmp_path), "--limit", "1", "--json"]).output.splitlines()
    assert len(rows) == 1 and json.loads(rows[0])["duration_s"] == 4.0


def test_a_hostile_text_cannot_move_the_cursor(tmp_path: Path) -> None:
    one = record(1)
    query = one.queries[0].model_copy(update={"text": "\u001b[2Jgone \u202e", "split": "\u001b"})
    with SliceWriter(tmp_path, 0, kinds=["paths"]) as writer:
        writer.add_clip(one.model_copy(update={"queries": [query]}), None, {}, {})
        writer.commit()
    write_manifest(tmp_path, build_manifest(tmp_path, inputs=1, skipped=0, captions=3))
    for words in (["sample"], ["stats"]):
        result = CliRunner().invoke(app, ["shards", *words, str(tmp_path)])
        assert result.exit_code == 0 and "\u001b" not in result.output and "\u202e" not in result.output


@pytest.mark.parametrize("duration_s", [5e-324, 1e-300, 1e-9])
def test_the_shortest_clip_that_a_float_can_hold_is_counted_and_drawn(tmp_path: Path, duration_s: float) -> None:
    windows = [(0.0, duration_s), (0.0, 1e6), (-1.0, 0.0)]
    one = record(1).model_copy(update={
        "clip": ClipSpan(start_s=0.0, end_s=duration_s), "captions": [],
        "queries": [QueryRecord(id="a", text="a", windows_s=windows)]})  # fmt: skip
    with SliceWriter(tmp_path, 0, kinds=["paths"]) as writer:
        writer.add_clip(one, None, {}, {})
        writer.commit()
    write_manifest(tmp_path, build_manifest(tmp_path, inputs=1, skipped=0, captions=0))
    found = stats(open_shards(tmp_path))
    assert found.window_share == [0] * 9 + [3]
    assert sum(found.window_centre) == 3 and found.window_centre[-1] == 1
    assert view(tmp_path, tmp_path.with_name("pages")).queries == 1
