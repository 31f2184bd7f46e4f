"""Any dataset through `datasets`: local files, a mapping of columns, paths into nested values. No downloads."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from taro.annotations import Dropped, LintReport, import_annotations
from taro.core.errors import AnnotationError, MissingPackageError
from taro.grounding.moment import Moment

ROWS: list[dict[str, Any]] = [
    {"file": "a.mp4", "text": "a dog", "span": [1.0, 4.0], "len": 9.0, "id": 7, "meta": {"part": [60.0, 69.0]}},
    {"file": "b.mp4", "text": " a {cat}, sits", "span": [8.0, 2.0], "len": 9.0, "id": 8, "meta": {"part": None}},
    {"file": "c.mp4", "text": "NA", "span": [2.0, 2.0], "len": None, "id": 9, "meta": {"part": None}},
]
COLUMNS = {"video": "file", "query": "text", "windows": "span", "duration": "len", "qid": "id", "clip": "meta.part"}


def written(folder: Path, kind: str) -> Path:
    import pyarrow as pa
    import pyarrow.parquet

    path = folder / f"rows.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def check(report: LintReport, path: Path) -> None:
    assert report.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [(r.row_id, r.video, r.query, r.windows, r.duration_s, r.clip, r.split) for r in report.rows] == [
        ("7", "a.mp4", "a dog", (Moment(1, 4),), 9.0, Moment(60, 69), "val"),
        ("8", "b.mp4", "a {cat}, sits", (Moment(2, 8),), 9.0, None, "val"),
    ]
    assert [o.reason for o in report.outcomes if isinstance(o, Dropped)] == ["window has no length: [2.0, 2.0]"]


@pytest.mark.parametrize("kind", ["parquet", "json", "jsonl"])
def test_one_set_in_three_files(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, kind)
    check(import_annotations(path, dataset="hf", split="val", columns=COLUMNS), path)


def test_csv_cells_are_texts(tmp_path: Path) -> None:
    """An id 007 stays 007, a query NA stays a query, an empty number is none, lists are JSON."""
    path = tmp_path / "rows.csv"
    path.write_text(
        "video,query,start,end,duration,qid,captions,difficulty\n"
        '001,NA,1.0,4,9,007,"[{""start_s"": 0, ""end_s"": 2, ""text"": ""runs""}]",\n'
        '002,"a ""b"", c",x,4,,8,,5\n'
        "003,12,3,4,,9,[,\n"
    )
    report = import_annotations(path, dataset="hf")
    assert [(r.row_id, r.video, r.query, r.windows, r.duration_s) for r in report.rows] == [
        ("007", "001", "NA", (Moment(1, 4),), 9.0)
    ]
    assert report.rows[0].captions is not None and report.rows[0].captions[0].text == "runs"
    reasons = [o.reason for o in report.outcomes if isinstance(o, Dropped)]
    assert reasons[0] == "window is not two numbers: ['x', 4.0]" and reasons[1].startswith("cell cannot be read")


def test_nested_values_by_path(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"videos": ["a.mp4"], "query": "q", "rm": {"truth": [1.0, 2.0]}}]))
    columns = {"video": "videos.0", "windows": "rm.truth"}
    row = import_annotations(path, dataset="hf", columns=columns).rows[0]
    assert (row.video, row.windows) == ("a.mp4", (Moment(1, 2),))


def test_wrong_use_is_one_message(tmp_path: Path) -> None:
    path = written(tmp_path, "parquet")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 no")
    text = tmp_path / "rows.txt"
    text.write_text("a")
    for source, columns, message in [
        (path, {}, "expected a column for query, video, got the columns file, text"),
        (path, {"query": "text", "video": "file"}, "expected a column for windows"),
        (path, COLUMNS | {"query": "sentence"}, "expected columns sentence"),
        (path, {"queries": "text"}, "no such field: queries"),
        (broken, COLUMNS, "not a parquet table that can be read"),
        (text, {}, "ends in .parquet"),
        (tmp_path, {}, "or a hub id"),
        ("no such name", {}, "or a hub id"),
    ]:
        with pytest.raises(AnnotationError, match=message):
            import_annotations(source, dataset="hf", columns=columns)
    with pytest.raises(AnnotationError, match="only the format hf"):
        import_annotations(path, dataset="jsonl", columns=COLUMNS)


def test_without_datasets_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hub sets alone need it."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'taro-vtg\[hf\]'"):
        import_annotations("owner/name", dataset="hf", columns=COLUMNS)
    for kind in ("json", "parquet"):
        path = written(tmp_path, kind)
        check(import_annotations(path, dataset="hf", split="val", columns=COLUMNS), path)


def test_a_hub_id_that_cannot_be_reached_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(AnnotationError, match="owner/name:config@main: cannot be read by datasets"):
        import_annotations("owner/name:config@main", dataset="hf")
