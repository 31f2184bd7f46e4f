"""An untrusted folder: files that are no files, tables that are bombs, names planted where taro writes."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from taro.annotations import import_annotations
from taro.core.errors import AnnotationError, ConfigError, ShardError
from taro.preprocess.plan import PlannedClip
from taro.shards.format import SKIPPED, shard_path
from taro.shards.manifest import SKIPPED_COLUMNS, read_entries, read_skipped, write_skipped
from taro.shards.ops.filter import Selection, filter_set
from taro.shards.reader import open_shards
from taro.shards.verify import verify
from taro.shards.view import view
from tests.shards.helpers_sets import write_set

NAMES = [shard_path("paths", 0), "paths/paths-000000.json", "manifest.json"]


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's name has 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "fifo": make_fifo, "socket": make_socket, "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"), "loop": lambda path: path.symlink_to(path),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_is_said_at_once(tmp_path: Path, kind: str, name: str) -> None:
    write_set(tmp_path, [[1]])
    (tmp_path / name).unlink()
    SPECIAL[kind](tmp_path / name)
    began = time.monotonic()
    with pytest.raises(ShardError, match=Path(name).name):
        open_shards(tmp_path)
    assert any(Path(name).name in problem for problem in verify(tmp_path).problems)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("kind", SPECIAL)
def test_annotations_that_are_no_file_are_said_at_once(tmp_path: Path, kind: str) -> None:
    SPECIAL[kind](tmp_path / "a.jsonl")
    for dataset in ("jsonl", "activitynet", "hf"):
        with pytest.raises(AnnotationError, match=r"a\.jsonl: expected"):
            import_annotations(tmp_path / "a.jsonl", dataset=dataset)


def test_a_hard_link_is_a_file_like_another(tmp_path: Path) -> None:
    """No more is read through it than its digest allows."""
    write_set(tmp_path / "set", [[1]])
    shard = tmp_path / "set" / shard_path("paths", 0)
    os.link(shard, tmp_path / "copy.tar")
    assert verify(tmp_path / "set").ok
    shard.unlink()
    (tmp_path / "secret").write_bytes(b"x" * (tmp_path / "copy.tar").stat().st_size)
    os.link(tmp_path / "secret", shard)
    with pytest.raises(ShardError, match="not the header of a shard's member"):
        open_shards(tmp_path / "set").queries()


def rows(count: int, **changes: object) -> list[dict[str, object]]:
    one: dict[str, object] = {**dict.fromkeys(SKIPPED_COLUMNS, "x"), "line": 1, "transient": False,
                             "duration_s": 1.5, "difficulty": None}
    return [one | changes] * count


def test_tables_that_are_bombs_are_refused(tmp_path: Path) -> None:
    """300 kB of parquet that stand for 4 GB of text, and for 5 million rows; other types; another table."""
    schema = pq.read_schema(_written(tmp_path, rows(1)))
    long = pa.Table.from_pylist(rows(4_000, detail="y" * 1_000_000)[:1], schema=schema)
    texts = {name: pa.DictionaryArray.from_arrays(pa.array([0] * 4_000, pa.int32()), long.column(name).combine_chunks())
             if pa.types.is_string(schema.field(name).type)
             else pa.array([long.column(name)[0].as_py()] * 4_000, schema.field(name).type)
             for name in schema.names}  # fmt: skip
    bombs = [
        pa.table(texts),
        pa.table({name: pa.array([None] * 5_000_000, schema.field(name).type) for name in schema.names}),
        pa.table({name: pa.array([1.5]) for name in schema.names}), pa.table({"row_id": ["x"]}),
        pa.Table.from_pylist(rows(1), schema=schema).rename_columns(["row_id", *schema.names[1:-1], "row_id"]),
    ]  # fmt: skip
    for bomb in bombs:
        pq.write_table(bomb, tmp_path / SKIPPED, compression="zstd", store_schema=False)
        assert (tmp_path / SKIPPED).stat().st_size < 2_000_000
        before = pa.total_allocated_bytes()
        with pytest.raises(ShardError, match="not a readable parquet"):
            read_skipped(tmp_path)
        assert pa.default_memory_pool().max_memory() - before < 2**30
    assert len(read_skipped(_written(tmp_path, rows(25_000)).parent)) == 25_000


def _written(folder: Path, table: list[dict[str, object]]) -> Path:
    write_skipped(folder, table)
    return folder / SKIPPED


@pytest.mark.parametrize("planted", ["file", "link", "dangling"])
def test_what_is_planted_where_a_set_is_made_is_not_followed(tmp_path: Path, planted: str) -> None:
    write_set(tmp_path / "set", [[1]])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("kept")
    aside = tmp_path / ".new.making"
    if planted == "file":
        aside.write_text("x")
    else:
        aside.symlink_to(tmp_path / ("mine" if planted == "link" else "nowhere"))
    with pytest.raises(ShardError, match="expected to make a folder here"):
        filter_set(open_shards(tmp_path / "set"), tmp_path / "new", Selection(split="train"))
    assert (tmp_path / "mine" / "precious").read_text() == "kept" and not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("planted", ["page", "link", "aside", "other"])
def test_pages_replace_nothing_but_pages(tmp_path: Path, planted: str) -> None:
    write_set(tmp_path / "set", [[1]])
    out, mine = tmp_path / "pages", tmp_path / "mine"
    mine.mkdir()
    (mine / "precious").write_text("kept")
    match planted:
        case "page":
            out.write_text("kept")
        case "link":
            out.symlink_to(mine)
        case "aside":
            (tmp_path / ".pages.making").symlink_to(mine)
        case "other":
            out = mine
    with pytest.raises(ConfigError, match="expected"):
        view(tmp_path / "set", out)
    assert (mine / "precious").read_text() == "kept" and len(list(mine.iterdir())) == 1
    assert planted != "page" or out.read_text() == "kept"


@pytest.mark.parametrize("path", ["../secret.mp4", "/etc/passwd", "a/../../x.mp4", "a\0b"])
def test_a_plan_names_no_video_outside(path: str) -> None:
    with pytest.raises(ValueError, match="leaves the videos folder"):
        PlannedClip(key="k", video="v", path=path, size=1, mtime_ns=1, clip_s=None, rows=[])
    assert PlannedClip(key="k", video="v", path="a..b/c.mp4", size=1, mtime_ns=1, clip_s=None, rows=[]).path


def test_a_name_of_megabytes_is_not_repeated() -> None:
    from taro.shards.tensors import unpack_features
    from taro.shards.variants import unpack_variants

    text = json.dumps({"x" * 500_000: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    for read in (unpack_features, unpack_variants):
        with pytest.raises(ShardError) as error:
            read(len(text).to_bytes(8, "little") + text + bytes(4))
        assert len(str(error.value)) < 500


def test_a_link_in_place_of_a_kinds_folder_is_refused_where_the_manifest_is_made(tmp_path: Path) -> None:
    """Passed over, its shards would be missing from the new manifest without a word."""
    root = tmp_path / "set"
    write_set(root, [[0, 1]])
    folder = next((root / "features").iterdir())
    outside = folder.rename(tmp_path / "outside")
    folder.symlink_to(outside)
    with pytest.raises(ShardError, match="symbolic link"):
        read_entries(root)
