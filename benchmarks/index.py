"""A set of a million queries: how long it takes to open, choose from and order, and in how much memory.

The set is synthetic. Its manifest and queries.parquet are whole, as `taro` writes them: a million queries of half a
million clips in 500 slices, each query with a text of its own. Real are the records of slice 0 (1,000 clips with tiny
features); the other slices are listed and not there, since nothing here may read them. Each figure is of a process of
its own; memory is its peak beyond what stood there once the libraries were imported.

    python benchmarks/index.py --out /tmp/index-set [--queries 1000000]

Left out: a set without an index, whose records nothing here could hold.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

CLIPS_A_SLICE = 1000
WORDS = ("person", "opens", "closes", "the", "door", "window", "cat", "jumps", "sits", "down", "walks", "into",
         "room", "holding", "a", "cup", "puts", "book", "on", "table", "turns", "light", "off", "laughs", "at")


def make(root: Path, queries: int) -> None:
    """Writes the set into a new folder."""
    from taro.shards.format import INDEX, Counts, IndexEntry, Manifest, ShardEntry
    from taro.shards.index_file import encode_index, index_rows, rows_table
    from taro.shards.manifest import read_manifest, write_manifest
    from taro.shards.reader import open_shards
    from taro.shards.store_local import LocalStore
    from tests.shards.helpers_sets import write_set

    write_set(root, [list(range(1, CLIPS_A_SLICE + 1))], skipped=0, thumbnails=False)
    held = read_manifest(LocalStore(root))
    plain = open_shards(root)
    first = rows_table(row for key in plain.keys for row in index_rows(plain.clip(key), 0))
    slices = queries // 2 // CLIPS_A_SLICE
    tables = [first, *(_slice_table(at) for at in range(1, slices))]
    data = encode_index(tables)
    (root / INDEX).write_bytes(data)
    entries = [ShardEntry(kind=entry.kind, index=at, bytes=entry.bytes, records=entry.records, queries=entry.queries,
                          sha256=_digest(entry.kind, at), sidecar_sha256=_digest("sidecar", entry.kind, at))
               if at else entry for entry in held.shards for at in range(slices)]  # fmt: skip
    write_manifest(root, Manifest(**{
        **held.model_dump(), "shards": entries, "index": IndexEntry(bytes=len(data), rows=queries,
                                                                    sha256=hashlib.sha256(data).hexdigest()),
        "counts": Counts(clips=queries // 2, queries=queries, captions=3 * queries // 2, inputs=queries)}))


def _slice_table(at: int) -> Any:
    """Rows of a slice that is listed alone: two queries a clip."""
    import pyarrow as pa

    draws = np.random.default_rng(at)
    n = 2 * CLIPS_A_SLICE
    clips = at * CLIPS_A_SLICE + np.arange(n) // 2
    texts = [f"{' '.join(np.take(WORDS, row))} {at}.{row_at}" for row_at, row in enumerate(
        draws.integers(len(WORDS), size=(n, 7)))]
    starts = np.round(draws.uniform(0, 20, n), 2)
    names = [f"video_{clip:07d}" for clip in clips]
    ends = np.round(starts + draws.uniform(1, 10, n), 2)
    return pa.table({
        "key": [f"{name}-{int(clip) * 2654435761 % 2**48:012x}" for name, clip in zip(names, clips, strict=True)],
        "slice": pa.array(np.full(n, at), pa.int32()), "video": [f"{name}.mp4" for name in names],
        "duration_s": 30.0 + clips % 97 / 8, "captions": pa.array(np.full(n, 3), pa.int32()),
        "time_error_s": np.zeros(n), "id": [f"{at}.{number}" for number in range(n)], "text": texts,
        "split": ["val" if number % 10 == 0 else "train" for number in range(n)],
        "windows_s": [f"[[{start},{end}]]" for start, end in zip(starts, ends, strict=True)],
        "unclipped_s": pa.nulls(n, pa.string()), "difficulty": np.round(draws.uniform(0, 100, n), 3),
        "paths_random": pa.array(np.full(n, 32), pa.int32()), "paths_overlap": pa.array(np.full(n, 32), pa.int32())})


def _digest(*names: Any) -> str:
    return hashlib.sha256(repr(names).encode()).hexdigest()


def measure(root: Path, what: str) -> dict[str, Any]:
    """One figure, in this process: seconds (wall and of the processor) and MB beyond the libraries."""
    import pyarrow.compute
    import pyarrow.parquet
    import torch

    from taro.shards.mix import MixedOrder
    from taro.shards.ops.stats import stats
    from taro.shards.reader import open_shards
    from taro.train.config import ShardSource
    from taro.train.data import TrainingData, select

    del pyarrow, torch
    steps: dict[str, Any] = {
        "open": lambda: len(open_shards(root)),
        "queries": lambda one: len(one.queries()),
        "split": lambda one: len(one.queries(split="val")),
        "difficulty": lambda one: len(one.queries(difficulty=(40, 60))),
        "text": lambda one: len(select(ShardSource(path=str(root), text="cat jumps"), one).refs),
        "regex": lambda one: len(select(ShardSource(path=str(root), text="(opens|closes) .* door"), one).refs),
        "read": lambda one: [one.sample(ref).clip.key for ref in one.queries(ids=["501.1", "777.0", "1000.0"])],
        "stats": lambda one: stats(one).queries,
        "order": lambda one: MixedOrder([len(one.queries())], [1.0], seed=0).step(10**6, 16)[1][:3],
        "resume": lambda one: TrainingData([select(ShardSource(path=str(root)), one)], prompts=16).order.step(
            2_345_678, 16)[1][:3],
    }  # fmt: skip
    opened = None if what == "open" else open_shards(root)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what is resident now
    before, began, used = _memory("VmRSS"), time.perf_counter(), time.process_time()
    found = steps[what]() if opened is None else steps[what](opened)
    return {"what": what, "found": found, "wall_s": round(time.perf_counter() - began, 3),
            "processor_s": round(time.process_time() - used, 3), "peak_mb": round((_memory("VmHWM") - before) / 1e6)}


def _memory(key: str) -> int:
    """VmHWM or VmRSS of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where the set is made, and kept")
    parser.add_argument("--queries", type=int, default=1_000_000)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.out, args.measure)))
        return
    if not (args.out / "manifest.json").exists():
        shutil.rmtree(args.out, ignore_errors=True)
        began = time.perf_counter()
        make(args.out, args.queries)
        print(f"made in {time.perf_counter() - began:.0f} s: queries.parquet "
              f"{(args.out / 'queries.parquet').stat().st_size:,} bytes")
    for what in ("open", "queries", "split", "difficulty", "text", "regex", "read", "order", "resume", "stats"):
        subprocess.run([sys.executable, __file__, "--out", str(args.out), "--measure", what], check=True)


if __name__ == "__main__":
    main()
