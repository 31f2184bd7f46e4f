"""Sets merged are the union: parts give the whole back, any order gives the same bytes, contradictions are refused."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from taro.cli.app import app
from taro.core.errors import ConfigError, ShardError
from taro.grounding.records import ClipRecord
from taro.shards.manifest import build_manifest, read_skipped, write_manifest, write_skipped
from taro.shards.ops.diff import diff
from taro.shards.ops.filter import Selection, filter_set
from taro.shards.ops.merge import merge_sets
from taro.shards.ops.split import split_by_fraction, split_by_split
from taro.shards.reader import open_shards
from taro.shards.verify import verify
from taro.shards.writer import SliceWriter
from tests.shards.helpers_sets import FINGERPRINT, SHEET, add_variants, features, fingerprint, record, write_set
from tests.shards.test_filter import files


def merged(out: Path, *roots: Path, slice_bytes: int = 10**9) -> Any:
    return merge_sets([open_shards(root) for root in roots], out, slice_bytes=slice_bytes)


def write_clips(root: Path, clips: list[ClipRecord], *, sheet: bytes = SHEET, shift: int = 0, **fields: Any) -> Path:
    """A set of clips with the features of their number plus `shift`, nothing skipped."""
    with SliceWriter(root, 0, kinds=["paths", f"features/{FINGERPRINT.name}"]) as writer:
        for clip in sorted(clips, key=lambda clip: clip.key):
            writer.add_clip(clip, sheet, {FINGERPRINT.name: features(int(clip.video.sha256, 16) + shift)}, {})
        writer.commit()
    write_skipped(root, [])
    manifest = build_manifest(root, inputs=sum(len(clip.queries) for clip in clips), skipped=0,
                              captions=sum(len(clip.captions) for clip in clips), encoders=[FINGERPRINT], **fields)
    write_manifest(root, manifest)
    return root


@pytest.mark.parametrize("cut", [
    lambda source, out: split_by_split(source, out),
    lambda source, out: split_by_fraction(source, out, {"a": 0.5, "b": 0.25, "c": 0.25}),
])
def test_the_parts_of_a_split_are_the_set_again(tmp_path: Path, cut: Callable[..., dict[str, Any]]) -> None:
    write_set(tmp_path / "set", [[1, 2], [3, 4]], clip=True, skipped=3)
    parts = cut(open_shards(tmp_path / "set"), tmp_path / "parts")
    merged(tmp_path / "whole", *(part.root for part in parts.values()))
    source, whole = open_shards(tmp_path / "set"), open_shards(tmp_path / "whole")
    assert diff(source, whole).ok and verify(tmp_path / "whole").problems == []
    assert whole.manifest.counts == source.manifest.counts, "skipped rows count once, left-out rows return"
    assert read_skipped(tmp_path / "whole") == read_skipped(tmp_path / "set")
    assert torch.equal(whole.features(record(3).key).main_SND, features(3).main_SND)


QUERIES = [f"{number}.{index}" for number in (1, 2, 3) for index in (0, 1)]


@given(parts=st.lists(st.sets(st.sampled_from(QUERIES), min_size=1), min_size=2, max_size=4), data=st.data())
@settings(max_examples=15, deadline=None)
def test_parts_that_overlap_in_any_way_merge_to_their_union_in_any_order(
    parts: list[set[str]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_set(root / "set", [[1, 2], [3]], skipped=2)
        source = open_shards(root / "set")
        roots = []
        for index, ids in enumerate(parts):
            roots.append(filter_set(source, root / str(index), Selection(queries=frozenset(ids))).root)
        made = merged(root / "ab", *roots)
        union = set().union(*parts)
        found = open_shards(root / "ab")
        assert sorted(ref.query.id for ref in found.queries()) == sorted(union)
        assert found.manifest.counts.inputs == source.manifest.counts.inputs == 8
        assert made.source_inputs == 8 * len(parts) and made.repeated == 8 * (len(parts) - 1)
        assert {row["row_id"] for row in read_skipped(root / "ab") if row["stage"] == "filter"} == {
            "0", "1", *QUERIES} - union, "the missing video's rows are in no part"
        merged(root / "ba", *data.draw(st.permutations(roots)))
        assert files(root / "ab") == files(root / "ba")
        assert verify(root / "ab").problems == []


def test_different_sets_add_up_with_their_provenance(tmp_path: Path) -> None:
    a = write_clips(tmp_path / "a", [record(1)], name="a", versions={"av": "1", "x": "2"}, captioner={"method": "m"},
                    provenance={"dataset": "one", "annotations_sha256": "1" * 64, "licence_videos": "free"},
                    config={"thumbnails": True, "seed": 1})  # fmt: skip
    b = write_clips(tmp_path / "b", [record(2)], name="b", versions={"av": "2"}, captioner={"method": "m"},
                    provenance={"dataset": "two", "annotations_sha256": "2" * 64, "licence_videos": "free"},
                    config={"thumbnails": True, "seed": 2})  # fmt: skip
    c = write_clips(tmp_path / "c", [record(3)], name="b", config={"thumbnails": True, "seed": 2})
    merged(tmp_path / "ab", a, b)
    made = merged(tmp_path / "abc", tmp_path / "ab", c, slice_bytes=1)
    manifest = open_shards(tmp_path / "abc").manifest
    assert (made.made.inputs, made.repeated, made.clips_twice) == (6, 0, 0)
    assert manifest.name == "a + b + b" and manifest.provenance.dataset == "one; two; unknown"
    assert manifest.provenance.annotations_sha256 is None and manifest.provenance.licence_videos == "free; unknown"
    assert manifest.versions == {"av": "1, 2", "x": "2"}
    assert [one["seed"] for one in manifest.config["configs"]] == [1, 2]
    assert [step["by"] for step in manifest.config["derived"]] == ["merge", "merge"]
    assert len([entry for entry in manifest.shards if entry.kind == "paths"]) == 3 and verify(tmp_path / "abc").ok


def change(record: Any, **changes: Any) -> Any:
    return record.model_copy(update=changes)


@pytest.mark.parametrize(("other", "knobs", "said"), [
    (change(record(1), captions=record(1).captions[::-1]), {}, "its captions differ"),
    (change(record(1), times_s=[time + 1e-9 for time in record(1).times_s]), {}, "its frame times differ"),
    (record(1), {"shift": 1}, f"its features/{FINGERPRINT.name} differ"),
    (record(1), {"sheet": SHEET + b"x"}, "its contact sheet differ"),
    (change(record(1), queries=[change(record(1).queries[0], windows_s=[(0.0, 0.5)])]), {}, "query '1.0' of clip v1-"),
])
def test_a_contradiction_is_refused_by_name_and_leaves_nothing(
    tmp_path: Path, other: ClipRecord, knobs: dict[str, Any], said: str
) -> None:
    a, b = write_clips(tmp_path / "a", [record(1), record(2)]), write_clips(tmp_path / "b", [other], **knobs)
    for roots in ((a, b), (b, a)):
        with pytest.raises(ShardError, match=said) as error:
            merged(tmp_path / "out", *roots)
        assert record(1).key in str(error.value) and str(a) in str(error.value) and str(b) in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_untrusted_names_cannot_move_the_cursor(tmp_path: Path) -> None:
    hostile = change(record(1).queries[0], id="\u001b[2J\u202e")
    a = write_clips(tmp_path / "a", [change(record(1), queries=[hostile])])
    b = write_clips(tmp_path / "b", [change(record(1), queries=[change(hostile, text="other")])])
    write_set(tmp_path / "c", [[3]], encoders={"float32": change(fingerprint("1"), model_id="\u001b[2J\u202e")})
    for other in (b, tmp_path / "c"):
        result = CliRunner().invoke(app, ["shards", "merge", str(a), str(other), str(tmp_path / "out")])
        assert result.exit_code == 1 and "error: " in result.output
        assert "\u001b" not in result.output and "\u202e" not in result.output


def test_variants_come_along_where_all_sets_hold_the_same(tmp_path: Path) -> None:
    write_set(tmp_path / "set", [[1, 2], [3]])
    add_variants(tmp_path / "set")
    source = open_shards(tmp_path / "set")
    for way, cut in (("split", split_by_split), ("fraction", lambda one, out: split_by_fraction(
            one, out, {"a": 0.4, "b": 0.6}))):
        parts = [part.root for part in cut(source, tmp_path / way).values()]
        assert all(verify(part).ok for part in parts)  # half of the windows are gone: more variants than needed is fine
        assert merged(tmp_path / f"whole-{way}", *parts).left_out == ()
        whole = open_shards(tmp_path / f"whole-{way}")
        assert diff(source, whole).ok and verify(tmp_path / f"whole-{way}").ok


@pytest.mark.parametrize("why", ["another seed", "one set has none", "the shared clip's differ"])
def test_variants_that_differ_are_left_out_and_named(tmp_path: Path, why: str) -> None:
    for name, numbers in (("a", [1, 2]), ("b", [2, 3])):
        write_set(tmp_path / name, [numbers])
        if name == "a" or why != "one set has none":
            add_variants(tmp_path / name, seed=int(name == "b" and why == "another seed"),
                         but=frozenset({2} if name == "b" and why.startswith("the shared") else ()))
    result = CliRunner().invoke(app, ["shards", "merge", *(str(tmp_path / name) for name in ("a", "b", "out"))])
    assert result.exit_code == 0 and f"left out: variants/{FINGERPRINT.name}" in result.output
    assert verify(tmp_path / "out").ok and open_shards(tmp_path / "out").manifest.kinds == [
        f"features/{FINGERPRINT.name}", "paths"]


def test_other_encoders_are_refused_by_name(tmp_path: Path) -> None:
    other = fingerprint("1")
    write_set(tmp_path / "a", [[1]])
    write_set(tmp_path / "b", [[2]], encoders={"float32": other})
    write_set(tmp_path / "c", [[3]], clip=True)
    with pytest.raises(ShardError, match="same encoders") as error:
        merged(tmp_path / "out", tmp_path / "a", tmp_path / "b")
    assert FINGERPRINT.name in str(error.value) and other.name in str(error.value)
    with pytest.raises(ShardError, match="clip/clip-tiny-00000000"):
        merged(tmp_path / "out", tmp_path / "a", tmp_path / "c")
    with pytest.raises(ConfigError, match="two or more"):
        merged(tmp_path / "out", tmp_path / "a")


def test_the_command(tmp_path: Path) -> None:
    write_set(tmp_path / "a", [[1, 2]])
    write_set(tmp_path / "b", [[2, 3]])
    result = CliRunner().invoke(app, ["shards", "merge", *(str(tmp_path / name) for name in ("a", "b", "out"))])
    assert result.exit_code == 0 and "7 rows = 6 queries + 1 skipped, 3 clips" in result.output, result.output
    assert "10 rows in 2 sets, 3 of them repeated; 1 clips in more than one" in result.output
    other = CliRunner().invoke(app, ["shards", "merge", *(str(tmp_path / name) for name in ("a", "out", "b"))])
    assert other.exit_code == 1 and "exists already" in other.output
