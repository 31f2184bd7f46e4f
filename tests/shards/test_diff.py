"""A difference is named, each kind of it; how a set is cut into slices is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from taro.cli.app import app
from taro.grounding.records import ClipRecord
from taro.shards.manifest import build_manifest, write_manifest
from taro.shards.ops.diff import SetDiff, diff
from taro.shards.reader import open_shards
from taro.shards.writer import SliceWriter
from tests.shards.helpers_sets import FINGERPRINT, SHEET, features, fingerprint, record, write_set


def compare(a: Path, b: Path) -> SetDiff:
    return diff(open_shards(a), open_shards(b))


def write_one(root: Path, clip: ClipRecord, sheet: bytes, number: int) -> None:
    """A set of one clip with the features of clip `number`."""
    with SliceWriter(root, 0, kinds=["paths", f"features/{FINGERPRINT.name}"]) as writer:
        writer.add_clip(clip, sheet, {FINGERPRINT.name: features(number)}, {})
        writer.commit()
    write_manifest(root, build_manifest(root, inputs=len(clip.queries), skipped=0, captions=len(clip.captions),
                                        encoders=[FINGERPRINT]))  # fmt: skip


def test_slices_are_no_difference_and_both_ways_agree(tmp_path: Path) -> None:
    write_set(tmp_path / "a", [[1, 2], [3]])
    write_set(tmp_path / "b", [[3], [1], [2]], skipped=4)
    found = compare(tmp_path / "a", tmp_path / "b")
    assert found.ok and found.same == 3 and found.lines() == ["3 clips are the same in both; nothing differs"]


def test_what_only_one_has_is_named(tmp_path: Path) -> None:
    write_set(tmp_path / "a", [[1, 2]], clip=True)
    write_set(tmp_path / "b", [[2, 3]], encoders={"float32": FINGERPRINT, "bfloat16": fingerprint("1", "bfloat16")})
    found, back = compare(tmp_path / "a", tmp_path / "b"), compare(tmp_path / "b", tmp_path / "a")
    key = {number: record(number).key for number in (1, 2, 3)}
    assert (found.clips_only_a, found.clips_only_b) == ([key[1]], [key[3]])
    assert found.queries_only_a == [f"{key[1]}/1.0", f"{key[1]}/1.1"]
    assert found.kinds_only_a == ["clip/clip-tiny-00000000"]
    assert found.kinds_only_b == [f"features/{fingerprint('1', 'bfloat16').name}"]
    assert (back.clips_only_a, back.queries_only_b) == (found.clips_only_b, found.queries_only_a)
    assert found.same == 1 and not found.ok


def change_query(at: int, **changes: Any) -> Callable[[ClipRecord], ClipRecord]:
    def changed(clip: ClipRecord) -> ClipRecord:
        queries = list(clip.queries)
        queries[at] = queries[at].model_copy(update=changes)
        return clip.model_copy(update={"queries": queries})
    return changed


@pytest.mark.parametrize(("change", "sheet", "number", "expected"), [
    (change_query(1, windows_s=[(0.5, 1.75)]), SHEET, 1, {"windows": ["{key}/1.1"]}),
    (change_query(0, text="other"), SHEET, 1, {"queries": ["{key}/1.0"]}),
    (change_query(0, id="9"), SHEET, 1, {"queries_only_a": ["{key}/1.0"], "queries_only_b": ["{key}/9"]}),
    (change_query(0, id="1.1"), SHEET, 1,
     {"queries_only_a": ["{key}/1.0"], "queries_only_b": ["{key}/1.1 (turn 2)"],
      "windows": ["{key}/1.1"], "queries": ["{key}/1.1"]}),
    (lambda clip: clip.model_copy(update={"captions": clip.captions[::-1]}), SHEET, 1, {"captions": ["{key}"]}),
    (lambda clip: clip.model_copy(update={"video": clip.video.model_copy(update={"fps": 25.0})}), SHEET, 1,
     {"clips": ["{key}"]}),
    (lambda clip: clip, SHEET + b"x", 1, {"thumbnails": ["{key}"]}),
    (lambda clip: clip, SHEET, 2, {"features": [f"features/{FINGERPRINT.name} {{key}}"]}),
])
def test_each_difference_has_its_name_and_no_other(
    tmp_path: Path, change: Callable[[ClipRecord], ClipRecord], sheet: bytes, number: int,
    expected: dict[str, list[str]],
) -> None:
    write_one(tmp_path / "a", record(1), SHEET, 1)
    write_one(tmp_path / "b", change(record(1)), sheet, number)
    found = compare(tmp_path / "a", tmp_path / "b")
    lists = {name: value for name, value in found.as_dict().items() if isinstance(value, list) and value}
    assert lists == {name: [one.format(key=record(1).key) for one in names] for name, names in expected.items()}
    assert found.same == 0 and not found.ok


def test_the_command_exits_1_where_they_differ(tmp_path: Path) -> None:
    write_set(tmp_path / "a", [[1, 2]])
    write_set(tmp_path / "b", [[2]])
    same = CliRunner().invoke(app, ["shards", "diff", str(tmp_path / "a"), str(tmp_path / "a")])
    assert same.exit_code == 0 and "nothing differs" in same.output
    result = CliRunner().invoke(app, ["shards", "diff", str(tmp_path / "a"), str(tmp_path / "b")])
    assert result.exit_code == 1 and record(1).key in result.output
    found = CliRunner().invoke(app, ["shards", "diff", str(tmp_path / "a"), str(tmp_path / "b"), "--json"])
    assert found.exit_code == 1 and json.loads(found.output)["clips_only_a"] == [record(1).key]
    lost = CliRunner().invoke(app, ["shards", "diff", str(tmp_path / "a"), str(tmp_path / "none")])
    assert lost.exit_code == 1 and "no such folder" in lost.output
