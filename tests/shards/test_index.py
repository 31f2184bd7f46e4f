"""The index of a set: it says what the records say, opens without them, and is never believed against them."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from taro.cli.app import app
from taro.core.errors import ShardError
from taro.core.json import canonical_json
from taro.grounding.records import ClipRecord
from taro.shards.format import INDEX, MANIFEST, IndexEntry, shard_path, sidecar_path
from taro.shards.index_build import add_index, write_index
from taro.shards.index_file import CLIP_COLUMNS, COLUMNS, PLAIN, IndexFile, encode_index, rows_table
from taro.shards.manifest import build_manifest, read_manifest, write_manifest, write_skipped
from taro.shards.ops.filter import Selection, filter_set
from taro.shards.ops.merge import merge_sets
from taro.shards.ops.split import split_by_fraction
from taro.shards.ops.stats import sample, stats
from taro.shards.reader import open_shards
from taro.shards.store_local import LocalStore
from taro.shards.verify import verify
from taro.shards.writer import SliceWriter
from tests.shards.helpers_sets import FINGERPRINT, features, record, write_set

SLICES = [[5, 3], [], [4, 1], [2]]


def write_clips(root: Path, slices: list[list[ClipRecord]]) -> None:
    """A set of the clips given, each with the features of clip 1, and an index."""
    for index, clips in enumerate(slices):
        with SliceWriter(root, index, kinds=["paths", f"features/{FINGERPRINT.name}"]) as writer:
            for clip in sorted(clips, key=lambda one: one.key):
                writer.add_clip(clip, None, {FINGERPRINT.name: features(1)}, {})
            writer.commit()
    write_skipped(root, [])
    every = [clip for clips in slices for clip in clips]
    queries = sum(len(clip.queries) for clip in every)
    write_manifest(root, build_manifest(root, inputs=queries, skipped=0, name="t", encoders=[FINGERPRINT],
                                        captions=sum(len(clip.captions) for clip in every), index=write_index(root)))


def odd_clips() -> list[ClipRecord]:
    """Clips with everything that a row can hold: no query, several windows, windows that were cut, other alphabets."""
    bare = record(1).model_copy(update={"queries": []})
    many = record(2, queries=4)
    queries = [many.queries[0].model_copy(update={"windows_s": [(0.0, 1.5), (2.0, 3.25)], "difficulty": -0.0}),
               many.queries[1].model_copy(update={"unclipped_s": [(0.1, 9.0)], "id": "2.0", "split": "Stra\u00dfe"}),
               many.queries[2].model_copy(update={"text": "der \u212aelvin-\u017fatz \u0130 \u202e", "windows_s": []}),
               many.queries[3].model_copy(update={"text": "", "split": "", "difficulty": 1e300})]  # fmt: skip
    return [bare, many.model_copy(update={"queries": queries}), record(3, captions=0), record(4)]


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path]:
    """The same set without an index and with one."""
    write_set(tmp_path / "plain", SLICES, clip=True)
    shutil.copytree(tmp_path / "plain", tmp_path / "indexed")
    add_index(str(tmp_path / "indexed"))
    return tmp_path / "plain", tmp_path / "indexed"


class Watched(LocalStore):
    """Counts what is read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.names: list[str] = []

    def open(self, name: str) -> Any:
        self.names.append(name)
        return super().open(name)


def test_an_index_says_what_the_records_say(both: tuple[Path, Path], tmp_path: Path) -> None:
    write_clips(tmp_path / "odd", [odd_clips()[:2], odd_clips()[2:]])
    shutil.copytree(tmp_path / "odd", tmp_path / "bare")
    held = read_manifest(LocalStore(tmp_path / "bare"))
    write_manifest(tmp_path / "bare", held.model_copy(update={"index": None}))
    for plain, indexed in (both, (tmp_path / "bare", tmp_path / "odd")):
        old, new = open_shards(plain), open_shards(indexed)
        assert old.index is None and new.index is not None and verify(indexed).problems == []
        assert list(new.rows()) == list(old.rows()) and stats(new) == stats(old)
        assert new.keys == old.keys and len(new) == len(old) and new.splits == old.splits
        assert new.captioned == old.captioned and new.to_pandas().equals(old.to_pandas())
        assert sample(new, 3, seed=1) == sample(old, 3, seed=1)
        refs = old.queries()
        assert new.queries() == refs and [ref.known.id for ref in new.queries()] == [ref.query.id for ref in refs]
        assert [new.sample(ref).query for ref in new.queries()] == [old.sample(ref).query for ref in refs]
        for split in old.splits:
            assert new.queries(split=split) == old.queries(split=split)
        assert new.queries(ids=["2.0", "x"], difficulty=(-1, 50)) == old.queries(ids=["2.0", "x"], difficulty=(-1, 50))
        assert len(new.queries()[1:3]) == 2 and new.queries()[-1] == refs[-1] and new.keys[-2:] == list(old.keys)[-2:]


def test_opening_choosing_and_counting_read_the_index_alone(both: tuple[Path, Path]) -> None:
    store = Watched(both[1])
    found = open_shards(store)
    assert [ref.known.text for ref in found.queries(split="val")] == ["the 1 event"] * 5
    assert (len(found), len(found.captioned), found.splits) == (5, 5, ["train", "val"])
    assert stats(found).queries == 10 and set(store.names) == {MANIFEST, INDEX, "skipped.parquet"}
    store.names.clear()
    found.sample(found.queries()[0])
    touched = {name for kind in ("paths", f"features/{FINGERPRINT.name}")
               for name in (shard_path(kind, 2), sidecar_path(kind, 2))}  # clip 1 lies in slice 2
    assert set(store.names) == touched
    sent = pickle.loads(pickle.dumps(found))  # noqa: S301
    assert sent.sample(found.queries()[0]).query == found.queries()[0].query


def test_the_same_set_has_the_same_index_and_a_second_run_writes_nothing(both: tuple[Path, Path], tmp_path: Path
                                                                         ) -> None:
    data = (both[1] / INDEX).read_bytes()
    before = {path: path.stat().st_mtime_ns for path in both[1].rglob("*")}
    assert add_index(str(both[1]))[1] is False and before == {path: path.stat().st_mtime_ns for path in before}
    shutil.copytree(both[0], tmp_path / "again")
    add_index(str(tmp_path / "again"))
    assert (tmp_path / "again" / INDEX).read_bytes() == data
    rows = pq.read_table(pa.BufferReader(data)).to_pylist()
    assert encode_index([rows_table(rows[6:]), rows_table(rows[:6])]) == data, "whatever order the slices come in"


def test_what_is_derived_has_an_index(both: tuple[Path, Path], tmp_path: Path) -> None:
    source = open_shards(both[1])
    filter_set(source, tmp_path / "few", Selection(text="1 event", keys=frozenset({record(1).key, record(4).key})))
    split_by_fraction(source, tmp_path / "parts", {"a": 0.6, "b": 0.4})
    merge_sets([open_shards(tmp_path / "parts" / name) for name in "ab"], tmp_path / "whole")
    for name in ("few", "parts/a", "parts/b", "whole"):
        assert verify(tmp_path / name).problems == [] and open_shards(tmp_path / name).index is not None
    assert list(open_shards(tmp_path / "whole").queries()) == list(source.queries())
    filter_set(open_shards(both[0]), tmp_path / "plainly", Selection(text="1 event", keys=frozenset(
        {record(1).key, record(4).key})))
    for name in (INDEX, "skipped.parquet", shard_path("paths", 0)):
        assert (tmp_path / "plainly" / name).read_bytes() == (tmp_path / "few" / name).read_bytes()


def resigned(root: Path, data: bytes, **changes: Any) -> None:
    """Puts another index into a set, the manifest agreeing."""
    held = read_manifest(LocalStore(root))
    assert held.index is not None
    entry = {"bytes": len(data), "rows": held.index.rows, "sha256": hashlib.sha256(data).hexdigest(), **changes}
    (root / INDEX).write_bytes(data)
    write_manifest(root, held.model_copy(update={"index": IndexEntry(**entry)}))


def written(table: pa.Table, **options: Any) -> bytes:
    """A table as taro writes it, but for the options; its rows in the order given."""
    sink = pa.BufferOutputStream()
    dictionaries = [name for name in table.column_names if name not in PLAIN] + options.pop("dictionaries", [])
    pq.write_table(table, sink, **{"compression": "none", "store_schema": False, "use_dictionary": dictionaries,
                                   **options})
    return bytes(sink.getvalue().to_pybytes())


def changed(column: str, row: int, value: Any) -> Callable[[list[dict[str, Any]]], None]:
    def change(rows: list[dict[str, Any]]) -> None:
        rows[row][column] = value

    return change


@pytest.mark.parametrize(("column", "value"), [
    ("text", "another"), ("split", "train"), ("windows_s", "[[0.5,1.25]]"), ("difficulty", 11.0), ("id", "9"),
    ("paths_random", 7), ("paths_overlap", 1), ("unclipped_s", "[[0.5,1.5]]"), ("difficulty", None)])
def test_a_record_that_is_not_its_row_is_refused_by_name(both: tuple[Path, Path], column: str, value: Any) -> None:
    rows = pq.read_table(both[1] / INDEX).to_pylist()
    rows[1][column] = value
    resigned(both[1], encode_index([rows_table(rows)]))
    found = open_shards(both[1])
    with pytest.raises(ShardError, match=rf"record {record(1).key} .*query 1 of the record says {column} "):
        found.sample(found.queries()[0])
    found.sample(found.queries()[2])
    assert [f"says {column}" in problem for problem in verify(both[1]).problems] == [True]
    add_index(str(both[1]))
    assert verify(both[1]).problems == []


@pytest.mark.parametrize(("change", "why"), [
    (changed("key", 1, "v9-x"), "keys are not ascending"), (changed("key", 0, "../x"), "a key is not"),
    (changed("slice", 0, 7), "differ in slice"), (changed("captions", 1, 9), "differ in captions"),
    (lambda rows: [row.update(slice=7) for row in rows], "a slice that the manifest does not list"),
    (lambda rows: rows.pop(), "rows, the manifest says"), (lambda rows: rows.reverse(), None),
    (changed("text", 3, "x" * 80_001), "a text of 80,001 bytes"), (changed("text", 3, None), "1 rows say no text"),
    (changed("video", 3, None), "1 rows say no video"), (changed("id", 3, None), "say no text"),
    (lambda rows: rows[2].update(dict.fromkeys(COLUMNS.keys() - CLIP_COLUMNS.keys())), "stands beside others")])
def test_rows_that_cannot_be_are_refused(both: tuple[Path, Path], change: Callable[[list[dict[str, Any]]], Any],
                                         why: str | None) -> None:
    rows = pq.read_table(both[1] / INDEX).to_pylist()
    change(rows)
    resigned(both[1], written(rows_table(rows)))
    with pytest.raises(ShardError, match=why or "keys are not ascending"):
        open_shards(both[1]).queries()
    assert any(INDEX in problem for problem in verify(both[1]).problems)


def test_a_file_of_another_sort_is_refused(both: tuple[Path, Path], tmp_path: Path) -> None:
    table = pq.read_table(both[1] / INDEX)
    lists = table.set_column(7, "text", pa.array([["x"]] * 10))
    for data, why in ((written(table, compression="zstd"), "compressed"), (written(table.drop(["text"])), "text is"),
                      (written(lists), "text is"),
                      (written(table.append_column("more", pa.array([[1]] * 10))), "lists"),
                      (written(table, dictionaries=["text"]), "another encoding"),
                      (written(table, data_page_version="2.0"), "another sort"),
                      (b"PAR1", "not a readable"), (b"", "not a readable"), (written(table)[:-9], "not a readable"),
                      (written(table.cast(table.schema.set(1, pa.field("slice", pa.int64())))), "slice is")):
        resigned(both[1], data)
        with pytest.raises(ShardError, match=why):
            open_shards(both[1])
    resigned(both[1], written(table.append_column("later", pa.array(range(10)))))
    assert len(open_shards(both[1]).queries()) == 10, "a column of a newer minor version"
    (both[1] / INDEX).write_bytes(written(table))
    with pytest.raises(ShardError, match="size or sha256 is not the manifest's"):
        open_shards(both[1])
    assert len(verify(both[1]).problems) == 1
    add_index(str(both[1]))
    assert verify(both[1]).problems == []


def test_a_record_that_no_row_names_is_found(tmp_path: Path) -> None:
    write_clips(tmp_path, [[record(1), record(2)]])
    rows = pq.read_table(tmp_path / INDEX).to_pylist()
    for row in rows[2:]:
        row["key"] = "v2-0"
    resigned(tmp_path, encode_index([rows_table(rows)]))
    problems = verify(tmp_path).problems
    assert len(problems) == 2 and "has 0 rows of it" in problems[0]
    assert "no paths shard holds, such as v2-0" in problems[1]


def test_a_shard_of_another_size_is_refused_when_it_is_touched(both: tuple[Path, Path]) -> None:
    path = both[1] / shard_path("paths", 2)
    path.write_bytes(path.read_bytes() + b"\0")
    found = open_shards(both[1])
    found.clip(record(2).key)
    with pytest.raises(ShardError, match="truncated or replaced"):
        found.clip(record(1).key)


def test_the_command_adds_an_index(both: tuple[Path, Path]) -> None:
    (both[1] / MANIFEST).write_bytes(canonical_json(read_manifest(LocalStore(both[0])).model_copy(
        update={"format_version": "1.1"})))
    made = [CliRunner().invoke(app, ["shards", "index", str(both[1]), "--json"]) for _ in range(2)]
    assert [json.loads(one.stdout)["written"] for one in made] == [True, False]
    assert read_manifest(LocalStore(both[1])).format_version == "1.2"
    (both[1] / MANIFEST).write_bytes(canonical_json(read_manifest(LocalStore(both[1])).model_copy(
        update={"format_version": "1.9"})))
    with pytest.raises(ShardError, match="writing it anew would lose"), pytest.warns(UserWarning, match="newer"):
        add_index(str(both[1]))
    with pytest.raises(ShardError, match="a set in a local folder"):
        add_index("s3://bucket/set")


def test_filters_choose_as_one_by_one(tmp_path: Path) -> None:
    """Against Python's own search, also where arrow does the work."""
    words = ["Kelvin", "\u212aelvin", "\u017fatz", "satz", "I", "\u0130", "\u0131", "a-b", "\u00e9", "line\nline"]
    draw = random.Random(0)
    clips = []
    for number in range(1, 7):
        clip = record(number, queries=4)
        clips.append(clip.model_copy(update={"queries": [query.model_copy(update={"text": " ".join(
            draw.choices(words, k=3)), "difficulty": draw.choice([None, 1.0, 2.5])}) for query in clip.queries]}))
    write_clips(tmp_path, [clips])
    index = open_shards(tmp_path).index
    assert index is not None and len(index.queries()) == 24 and set(COLUMNS) == set(index.rows(np.array([0]))[0])
    whole = open_shards(tmp_path).queries()
    for pattern in ("k", "S", "i", "kelvin", "^K", "a-b", "e l", "satz$", "[k-l]e", ".", "\u017f", "line", "(?-i:K)"):
        selection = Selection(text=pattern)
        kept = [at for at, ref in enumerate(whole) if selection.keeps(ref.key, ref.query)]
        assert np.flatnonzero(index.passing(index.queries(), "text", pattern)).tolist() == kept, pattern
    some = index.queries()[5:20]
    kept = [at for at, ref in enumerate(whole[5:20]) if Selection(difficulty=(1, 2)).keeps(ref.key, ref.query)]
    assert np.flatnonzero(index.passing(some, "difficulty", (1, 2))).tolist() == kept


def test_an_index_of_no_row() -> None:
    file = IndexFile(encode_index([]), "x", 0)
    assert len(file.clip_texts("key").values) == len(file.column("split")) == 0
