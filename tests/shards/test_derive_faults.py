"""Making sets out of sets under faults: killed anywhere, out of memory's reach, out of room, fed untrusted files."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from taro.core.errors import ShardError, TaroError
from taro.shards.format import MANIFEST, SKIPPED
from taro.shards.manifest import build_manifest, read_skipped, write_manifest, write_skipped
from taro.shards.ops.filter import Selection, filter_set
from taro.shards.ops.merge import merge_sets
from taro.shards.ops.split import split_by_fraction, split_by_split
from taro.shards.reader import open_shards
from taro.shards.writer import SliceWriter
from tests.shards.helpers_sets import FINGERPRINT, features, record, write_set

# Runs in a process of its own, without threads, so that it can fork; each child dies, as by a signal, at its n-th
# operation on a file of the new set, and the parent looks at what is on the disk.
SCRIPT = """
import os, sys
from pathlib import Path
from taro.shards.ops.merge import merge_sets
from taro.shards.reader import open_shards
from tests.shards.helpers_sets import write_set

base = Path(sys.argv[1])
write_set(base / "a", [[1, 2]])
write_set(base / "b", [[2, 3]])
merge = lambda out: merge_sets([open_shards(base / "a"), open_shards(base / "b")], out, slice_bytes=4000)
state = lambda root: {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
merge(base / "whole")
whole = state(base / "whole")
half = 0
for moment in range(1, 400):
    out = base / f"out{moment}"
    child = os.fork()
    if child == 0:
        left = [moment]
        def hook(event, arguments):
            if event in {"open", "os.rename", "os.remove", "os.mkdir"} and out.name in str(arguments[0]):
                left[0] -= 1
                if left[0] == 0:
                    os._exit(9)
        sys.addaudithook(hook)
        merge(out)
        os._exit(0)
    finished = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    if out.exists():
        assert state(out) == whole, moment
    else:
        half += (base / f".{out.name}.making").exists()
        merge(out)
        assert state(out) == whole and not (base / f".{out.name}.making").exists(), moment
    if finished:
        break
assert finished and half > 20, (moment, half)
print("moments", moment)
"""


@pytest.mark.slow
def test_a_kill_at_any_file_operation_leaves_all_or_nothing_and_the_next_merge_is_whole(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=300,
                          cwd=Path(__file__).parents[2])  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith("moments"), done.stderr


Derive = Callable[[Path, Path], Any]
SETS: dict[str, Derive] = {
    "filter": lambda base, out: filter_set(open_shards(base / "a"), out, Selection(queries=frozenset({"1.0", "2.1"}))),
    "split": lambda base, out: split_by_split(open_shards(base / "a"), out),
    "fraction": lambda base, out: split_by_fraction(open_shards(base / "a"), out, {"x": 0.5, "y": 0.5}),
    "merge": lambda base, out: merge_sets([open_shards(base / name) for name in "ab"], out)}
OTHERS: dict[str, Derive] = {
    "filter": lambda base, out: filter_set(open_shards(base / "a"), out, Selection(queries=frozenset({"1.1", "2.0"}))),
    "split": lambda base, out: split_by_split(open_shards(base / "b"), out),
    "fraction": lambda base, out: split_by_fraction(open_shards(base / "a"), out, {"x": 0.5, "y": 0.5}, seed=1),
    "merge": lambda base, out: merge_sets([open_shards(base / name) for name in "ac"], out)}


def inodes(root: Path) -> dict[str, tuple[int, int]]:
    return {path.relative_to(root).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", SETS)
def test_a_job_that_died_after_its_last_rename_has_nothing_left_to_do(tmp_path: Path, name: str) -> None:
    for one, numbers in (("a", [[1, 2], [4]]), ("b", [[2, 3]]), ("c", [[2, 5]])):
        write_set(tmp_path / one, numbers)
    first = SETS[name](tmp_path, tmp_path / "out")
    before = inodes(tmp_path / "out")
    assert SETS[name](tmp_path, tmp_path / "out") == first and inodes(tmp_path / "out") == before
    with pytest.raises(ShardError, match="exists already"):  # as many queries, and others
        OTHERS[name](tmp_path, tmp_path / "out")
    shard = max((tmp_path / "out").rglob("paths-000000.json"))
    kept = shard.read_bytes()
    shard.write_bytes(kept.replace(b"0", b"1"))
    with pytest.raises(ShardError, match="exists already"):
        SETS[name](tmp_path, tmp_path / "out")
    shard.unlink()
    with pytest.raises(ShardError, match="exists already"):
        SETS[name](tmp_path, tmp_path / "out")
    assert not list(tmp_path.glob(".*"))


def test_memory_holds_a_record_and_not_the_set(tmp_path: Path) -> None:
    """Twelve records of 2 MB each: filter, split and merge stay under a few of them."""
    one = features(1)
    with SliceWriter(tmp_path / "set", 0, kinds=["paths", f"features/{FINGERPRINT.name}"]) as writer:
        for clip in sorted((record(number) for number in range(12)), key=lambda clip: clip.key):
            wide = torch.zeros(4, 4, 2**15)
            writer.add_clip(clip, None, {FINGERPRINT.name: type(one)(wide, one.times_S, one.grid_thw, 1.0, ())}, {})
        writer.commit()
    write_skipped(tmp_path / "set", [])
    write_manifest(tmp_path / "set", build_manifest(tmp_path / "set", inputs=24, skipped=0, captions=36,
                                                    encoders=[FINGERPRINT], config={"thumbnails": False}))  # fmt: skip
    assert sum(entry.bytes for entry in open_shards(tmp_path / "set").manifest.shards) > 24 * 2**20
    tracemalloc.start()
    try:
        filter_set(open_shards(tmp_path / "set"), tmp_path / "part", Selection(split="train"))
        parts = split_by_split(open_shards(tmp_path / "set"), tmp_path / "parts")
        merge_sets([open_shards(part.root) for part in parts.values()], tmp_path / "whole")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 2 * 2**20 + 4 * 2**20, f"{peak:,} bytes at the peak"


def test_no_room_on_the_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path / "set", [[1, 2], [3]])
    synced, real = [0], os.fsync

    def full(handle: int) -> None:
        synced[0] += 1
        if synced[0] == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    said = "out: expected a folder with room.*No space.*the same command again: the sets that it reads are as they"
    with pytest.raises(TaroError, match=said):
        filter_set(open_shards(tmp_path / "set"), tmp_path / "out", Selection(split="train"))
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


GOOD: dict[str, Any] = {"row_id": "1", "line": 1, "video": "v", "key": "", "stage": "s", "reason": "r", "detail": "",
                        "transient": False}


@pytest.mark.parametrize("row", [
    GOOD | {"line": None}, GOOD | {"line": "1"}, GOOD | {"row_id": 3}, GOOD | {"detail": None},
    GOOD | {"reason": ["r"]}, GOOD | {"transient": 1}, {"other": 1}])
def test_untrusted_skipped_rows_are_a_message(tmp_path: Path, row: dict[str, Any]) -> None:
    write_set(tmp_path / "set", [[1]])
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row]), sink)
    (tmp_path / "set" / SKIPPED).write_bytes(sink.getvalue())
    with pytest.raises(ShardError, match=SKIPPED):
        filter_set(open_shards(tmp_path / "set"), tmp_path / "out", Selection(split="train"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("config", [
    {"derived": "x"}, {"derived": {"a": 1}}, {"configs": 3}, {"configs": []}, {"configs": ["x"]}, {"thumbnails": []},
    {"derived": [[[[]]]], "configs": [{"configs": [1]}]}])
def test_untrusted_settings_do_not_break_a_merge(tmp_path: Path, config: dict[str, Any]) -> None:
    for number, name in ((1, "a"), (2, "b")):
        write_set(tmp_path / name, [[number]])
        path = tmp_path / name / MANIFEST
        path.write_text(json.dumps(json.loads(path.read_text()) | {"config": config}))
    merge_sets([open_shards(tmp_path / name) for name in ("a", "b")], tmp_path / "out")
    filter_set(open_shards(tmp_path / "out"), tmp_path / "part", Selection(split="train"))
    assert open_shards(tmp_path / "part").manifest.counts.queries == 2
    assert len(read_skipped(tmp_path / "part")) == 3
