"""What of a set's index is fuzzed: its bytes, and tables that lie, named by a manifest with the right digest.

What is accepted must keep what the format promises: as many rows as the manifest says, clips in order, every row a
query that fits or a clip without one, filters that choose as Python does.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
from pathlib import Path
from typing import Any

from benchmarks import fuzz_mutations as change
from benchmarks.fuzz_targets import Files
from taro.core.errors import ShardError
from taro.shards.format import INDEX, MANIFEST
from taro.shards.index import Index, query_of_row
from taro.shards.index_file import COLUMNS, PLAIN
from taro.shards.manifest import read_manifest
from taro.shards.store_local import LocalStore

VALUES: dict[str, tuple[Any, ...]] = {
    "string": ("", "x", "v1-0", "\u202e", "\U0001f600", "x" * 90_000, "[[0.0,1.0]]", "[[1e400,2]]", "[[0]]", "[]",
               "{", "[[\"a\",1]]", None),
    "int32": (0, 1, -1, 2**31 - 1, None),
    "float64": (0.0, -0.0, 1e300, float("nan"), float("inf"), 5e-324, None)}  # fmt: skip


def index_input(rng: random.Random, files: Files) -> Files:
    """Another index for a set, and a manifest that names it, now and then with other numbers."""
    data = change.blob(rng, files[INDEX], [files[INDEX]]) if rng.random() < 0.6 else _table(rng, files[INDEX])
    manifest = json.loads(files[MANIFEST])
    manifest["index"] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if rng.random() < 0.2:
        manifest["index"]["rows"] = rng.choice((0, 1, 7, 2**22, 2**40))
    if rng.random() < 0.2:
        counts = manifest["counts"]
        counts |= {"clips": rng.choice((0, 1, 3)), "queries": (queries := rng.choice((0, 1, 6, 12)))}
        counts["inputs"] = queries + counts["skipped"]
    return {INDEX: data, MANIFEST: json.dumps(manifest).encode()}


def _table(rng: random.Random, data: bytes) -> bytes:
    """Rows with changes, written as taro does or another way."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pq.read_table(pa.BufferReader(data)).to_pylist()
    for _ in range(rng.choice((0, 1, 1, 2, 9))):
        name = rng.choice(list(COLUMNS))
        for row in rng.sample(rows, rng.choice((1, 1, len(rows)))):
            row[name] = rng.choice(VALUES[COLUMNS[name]])
    if rng.random() < 0.2:
        rng.shuffle(rows)
    rows = rows * rng.choice((1, 1, 1, 0, 2, 300))
    odd = rng.random() < 0.4
    sink = io.BytesIO()
    try:
        table = pa.Table.from_pylist(rows, schema=pa.schema([(name, getattr(pa, kind)())
                                                             for name, kind in COLUMNS.items()]))
        if odd and rng.random() < 0.3:
            name = rng.choice(table.column_names)
            table = table.set_column(table.column_names.index(name), name, pa.array([rng.choice((
                [1], 1, "x", b"\xff", {"a": 1}, 1.5))] * len(table)))
        pq.write_table(
            table, sink, compression=rng.choice(("none", "none", "zstd", "snappy")) if odd else "none",
            use_dictionary=odd or [name for name in COLUMNS if name not in PLAIN], store_schema=odd,
            data_page_version=rng.choice(("1.0", "2.0")) if odd else "1.0", row_group_size=rng.choice((3, 65_536)),
            data_page_size=rng.choice((64, 1 << 20)))
    except (pa.ArrowException, OSError, ValueError, TypeError):
        return rng.randbytes(64)
    return sink.getvalue()


def read_index(files: Files, folder: Path) -> None:
    """Opens the index and uses all of it."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    store = LocalStore(folder)
    manifest = read_manifest(store)
    if manifest.index is None:
        return
    index, wrong = Index(store, manifest), None
    rows = [row for _, of_clip in index.clips() for row in of_clip]
    assert len(rows) == manifest.index.rows and list(index.keys) == sorted({row["key"] for row in rows})
    asked = [row for row in rows if row["id"] is not None]
    assert len(asked) == len(index.queries()) == manifest.counts.queries and index.ids() == {row["id"] for row in asked}
    for row in asked:
        try:
            query_of_row(row, "x")
        except ShardError as error:
            wrong = error
    for name, value, keeps in (
            ("split", "val", lambda row: row["split"] == "val"), ("queries", {"1.0", "x"}, lambda row: row["id"] in {
                "1.0", "x"}), ("text", "E", lambda row: re.search("E", row["text"], re.IGNORECASE) is not None),
            ("keys", {index.keys[0]} if len(index.keys) else set(), lambda row: row["key"] == index.keys[0]),
            ("difficulty", (0, 15), lambda row: row["difficulty"] is not None and 0 <= row["difficulty"] <= 15)):
        assert index.passing(index.queries(), name, value).tolist() == [keeps(row) for row in asked], name
    if wrong is not None:
        raise wrong
