"""Tables and JSON lines in every form that is certain: no row is shifted, none vanishes, nothing is read by a guess."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import generator
from benchmarks.fuzz_tables import table_targets
from taro.annotations import Dropped, LintReport, import_annotations
from taro.annotations.charades_sta import read_lengths
from taro.core.errors import AnnotationError, TaroError
from taro.grounding.moment import Moment
from taro.metrics.predictions import read_responses
from taro.preprocess.captioners.imported import Entry, captions_file

GOOD = ("a.mp4", "the circle grows", 4.0, 7.0)


def written(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def rows(report: LintReport) -> list[tuple[str, str, float, float]]:
    return [(row.video, row.query, row.windows[0].start_s, row.windows[0].end_s) for row in report.rows]


def reasons(report: LintReport) -> list[str]:
    return [outcome.reason for outcome in report.outcomes if isinstance(outcome, Dropped)]


@pytest.mark.parametrize(
    "table",
    [
        "video,query,start,end\na.mp4,the circle grows,4,7\n",
        "video,query,start,end\na.mp4,the circle grows,4,7,\n",  # a comma too much, nothing behind it
        ",video,query,start,end\n0,a.mp4,the circle grows,4,7\n",  # as pandas writes its index
        "video, query, start, end\na.mp4, the circle grows, 4, 7\n",
        'video, query, start, end\na.mp4, "the circle grows", 4, 7\n',
        "\ufeff video ,query,start,end ,\r\n\r\na.mp4,the circle grows,4,7,\r\n,,,,\r\n",
        'query,end,video,start\n"the circle grows",7,a.mp4,4.0',
        'video,query,start,end\na.mp4, "the circle grows", 4, 7\n',  # only the rows have blanks
    ],
)  # fmt: skip
def test_a_csv_is_read_whatever_its_style(tmp_path: Path, table: str) -> None:
    path = written(tmp_path / "a.csv", table)
    report = import_annotations(path, dataset="hf")
    assert rows(report) == [GOOD] and report.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    tabs = written(tmp_path / "a.tsv", table.replace(",", "\t"))
    assert rows(import_annotations(tabs, dataset="hf")) == [GOOD]


@pytest.mark.parametrize("first", [0, 1, 999, 1000, 2500])
@pytest.mark.parametrize("field", [{"split": "val"}, {"qid": "x"}, {"duration": 6.0}, {"clip": [2, 9]},
                                   {"windows": [[1, 2]]}, {"difficulty": 3}])  # fmt: skip
def test_a_field_counts_wherever_it_stands_first(tmp_path: Path, first: int, field: dict[str, Any]) -> None:
    """Rows of JSON lines need not have the same keys; hf and jsonl are one thing there."""
    plain = {"video": "a.mp4", "query": "the circle grows", "start": 4.0, "end": 5.0}
    lines = [json.dumps(plain)] * first + [json.dumps(plain | field)]
    path = written(tmp_path / "a.jsonl", "\n".join(lines))
    by_hf, by_jsonl = (import_annotations(path, dataset=name).rows for name in ("hf", "jsonl"))
    assert by_hf == by_jsonl and len(by_hf) == first + 1
    alone = import_annotations(written(tmp_path / "b.jsonl", lines[-1]), dataset="hf").rows[0]
    late = replace(by_hf[-1], line=1, row_id="1" if by_hf[-1].row_id == str(first + 1) else by_hf[-1].row_id)
    assert late == alone


@pytest.mark.parametrize(("data", "said"), [
    ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
    ("<!doctype html>", "an HTML page"), (b"PK\3\4", "a zip archive")])  # fmt: skip
def test_what_is_no_parquet_is_named(tmp_path: Path, data: str | bytes, said: str) -> None:
    with pytest.raises(AnnotationError, match=rf"not a parquet table that can be read \({said}"):
        import_annotations(written(tmp_path / "a.parquet", data), dataset="hf")


@pytest.mark.parametrize("name", ["data/moments.csv", "data/a.parquet", "data/a.jsonl.gz"])
def test_a_file_that_is_missing_is_no_hub_id(name: str) -> None:
    with pytest.raises(AnnotationError, match="no such file; give the annotation file"):
        import_annotations(name, dataset="hf")


def test_a_row_that_does_not_fit_its_header_is_never_shifted(tmp_path: Path) -> None:
    table = ("note,video,query,start,end\nx,a.mp4,b.mp4,13.5,18,25\nx,a.mp4,13.5,18\nx,a.mp4,q,1,2\n"
             '"x, y",b.mp4,q,1,2\nx, y,c.mp4,q,1,2\n')  # fmt: skip
    report = import_annotations(written(tmp_path / "a.csv", table), dataset="hf")
    assert [(row.video, row.row_id) for row in report.rows] == [("a.mp4", "3"), ("b.mp4", "4")]
    assert reasons(report) == [f"row does not fit its header: {n} fields, the header has 5" for n in (6, 4, 6)]
    assert report.counts["drop: row does not fit its header"] == 3


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"video,query,start,end,query\na,b,1,2,c", "column 'query' stands twice"),
        (b"video,query,start,end, query\na,b,1,2,c", "column 'query' stands twice"),
        (b'video,query,start,end\na,"b,1,2\nc,d,1,2\ne,f,1,2\n', "line 4: not csv"),
        (b'video,query,start,end\na,"b" x,1,2\n', "line 2: not csv"),
        (b"video;query;start;end\na;b;1;2", "got ';'"),
        (b"video\tquery\tstart\tend\na\tb\t1\t2", r"got '\\t'"),
        ("video,query,start,end\na,q,1,2\na,caf\u00e9,1,2".encode("latin-1"), "line 3: not UTF-8: .*Latin-1, perhaps"),
        ("video,query,start,end\na,\u72d7\u5728\u53eb,1,2".encode("gbk"), "line 2: not UTF-8: .*GBK, perhaps"),
        (b"PK\x03\x04", "a zip archive"),
        (b"", "got an empty file"),
    ],
)  # fmt: skip
def test_a_csv_that_cannot_be_read_for_certain_is_refused(tmp_path: Path, table: bytes, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        import_annotations(written(tmp_path / "a.csv", table), dataset="hf")


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=8)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5), st.sampled_from([",", "\t"]))
def test_a_written_csv_reads_back(tmp_path: Path, cells: list[tuple[str, str]], sep: str) -> None:
    import csv

    path = tmp_path / ("a.csv" if sep == "," else "a.tsv")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=sep)
        writer.writerows([["note", "video", "query", "start", "end"]])
        writer.writerows([[note, f"v{place}.mp4", f"q {query}", 1, 2] for place, (note, query) in enumerate(cells)])
    found = import_annotations(path, dataset="hf").rows
    assert [(row.video, row.query) for row in found] == [
        (f"v{place}.mp4", f"q {query}".strip()) for place, (_, query) in enumerate(cells)]  # fmt: skip


@pytest.mark.parametrize("end", [".csv", ".json", ".jsonl", ".parquet"])
@pytest.mark.parametrize("name", ["moments[1]", "m*", "m?", "{m,n}", "a::b", "~", "file:b", "http:a", "%20", "a b"])
def test_the_file_that_was_named_is_the_file_that_is_read(tmp_path: Path, name: str, end: str) -> None:
    """Beside it lie files that a pattern of that name would fit."""
    import pyarrow as pa
    import pyarrow.parquet

    row = {"video": "right.mp4", "query": "q", "start": 1.0, "end": 2.0}
    for other, video in (("moments1", "wrong"), ("mx", "wrong"), ("m", "wrong"), ("n", "wrong"), (name, "right")):
        path, one = tmp_path / f"{other}{end}", row | {"video": f"{video}.mp4"}
        if end == ".parquet":
            pyarrow.parquet.write_table(pa.Table.from_pylist([one]), path)
        elif end == ".csv":
            path.write_text(f"video,query,start,end\n{video}.mp4,q,1,2\n")
        else:
            path.write_text(json.dumps([one] if end == ".json" else one))
    report = import_annotations(tmp_path / f"{name}{end}", dataset="hf")
    assert [one.video for one in report.rows] == ["right.mp4"]
    assert report.source_sha256 == hashlib.sha256((tmp_path / f"{name}{end}").read_bytes()).hexdigest()


def test_integers_and_decimals_of_a_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    table = [{"video": 101, "query": "q", "start": Decimal("1.5"), "end": Decimal("2.5"), "qid": 7, "split": None,
              "__index_level_0__": 0}]  # fmt: skip
    pyarrow.parquet.write_table(pa.Table.from_pylist(table), path)
    row = import_annotations(path, dataset="hf", split="val").rows[0]
    assert (row.video, row.row_id, row.windows, row.split) == ("101", "7", (Moment(1.5, 2.5),), "val")
    twice = pa.table([pa.array(["a"]), pa.array(["b"])], names=["video", "video"])
    pyarrow.parquet.write_table(twice, path)
    with pytest.raises(AnnotationError, match="column 'video' stands twice"):
        import_annotations(path, dataset="hf")


ROW = {"video": "a.mp4", "query": "the circle grows", "windows": [[4.0, 7.0]]}
FORMS: dict[str, Callable[[list[Any]], str]] = {
    "lines": lambda values: "\n".join(map(json.dumps, values)),
    "lines and blank lines": lambda values: "\n\n" + "\n \n".join(map(json.dumps, values)) + "\n\n",
    "carriage returns": lambda values: "\r\n".join(map(json.dumps, values)) + "\r\n",
    "list": json.dumps,
    "pretty list": lambda values: json.dumps(values, indent=2),
    "list, an item a line": lambda values: "[\n" + ",\n".join(map(json.dumps, values)) + "\n]\n",
    "pretty objects": lambda values: "\n".join(json.dumps(value, indent=1) for value in values),
}
WAYS: dict[str, Callable[[str], bytes]] = {
    "utf-8": str.encode, "mark": lambda text: text.encode("utf-8-sig"), "utf-16": lambda text: text.encode("utf-16"),
    "gzip": lambda text: gzip.compress(text.encode(), mtime=0),
}  # fmt: skip
TVG = {"path": "a.mp4", "question": "the circle grows", "answer": "4.0-7.0", "start": None, "end": None}
ONE: dict[str, dict[str, Any]] = {
    "jsonl": ROW, "sandbox": ROW, "hf": ROW, "tvgbench": TVG,
    "qvhighlights": {"qid": 1, "query": ROW["query"], "vid": "a.mp4", "relevant_windows": [[4, 7]]},
    "taro-eval": {"qid": 1, "query": ROW["query"], "video_file": "a.mp4", "relevant_windows": [[4, 7]]},
    "time-r1": {"video": "a.mp4", "sentence": ROW["query"], "timestamp": [4, 7], "duration": None, "qid": None},
    "taro": {"videos": ["a.mp4"], "query": ROW["query"], "reward_model": {"ground_truth": [4, 7]},
             "extra_info": {"split": None, "index": None, "duration": None}, "video_start": None},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", WAYS)
def test_every_form_of_json_is_one_set(tmp_path: Path, form: str, way: str) -> None:
    """Annotations of every format, captions and predictions go through one reader."""
    for dataset, one in ONE.items():
        path = written(tmp_path / "a.jsonl", WAYS[way](FORMS[form]([one, one])))
        report = import_annotations(path, dataset=dataset, split="val")
        assert rows(report) == [GOOD, GOOD] and {row.split for row in report.rows} == {"val"}, dataset
        assert report.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    captions = [{"video": name, "captions": [{"start_s": 0, "end_s": 1, "text": "x"}]} for name in ("a", 7)]
    path = written(tmp_path / "captions.jsonl", WAYS[way](FORMS[form](captions)))
    assert captions_file(path) == {name: [Entry(0.0, 1.0, "x")] for name in ("a", "7")}
    answers = [{"query_id": 5, "qid": 6, "predicted": [1, 2]},
               {"query_id": None, "qid": 7, "text": None, "predicted": None, "pred_relevant_windows": None},
               {"video": 8, "query": "q.", "predicted": [1, 2], "pred_saliency_scores": None}]  # fmt: skip
    path = written(tmp_path / "answers.jsonl", WAYS[way](FORMS[form](answers)))
    found = read_responses(path)
    assert [(one.name, one.predicted) for one in found] == [
        (("id", "5"), Moment(1, 2)), (("id", "7"), None), (("query", "8", "q"), Moment(1, 2))]  # fmt: skip


def test_null_is_absent_in_every_optional_field(tmp_path: Path) -> None:
    absent = {"jsonl": ["split", "qid", "duration", "clip", "difficulty", "captions", "start", "end", "clip_start"],
              "qvhighlights": ["qid", "duration", "relevant_clip_ids", "saliency_scores"],
              "taro-eval": ["qid", "duration", "video_start", "video_end"],
              "tvgbench": ["duration", "start", "end"],
              "time-r1": ["qid", "duration", "video_start", "video_end", "difficulty"],
              "taro": ["extra_info", "video_start", "video_end", "captions", "prompt"]}  # fmt: skip
    absent["sandbox"] = absent["hf"] = absent["jsonl"]
    for dataset, keys in absent.items():
        least = {key: value for key, value in ONE[dataset].items() if key not in keys}
        nulls = least | dict.fromkeys(keys)
        path = written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, (least, nulls))))
        report = import_annotations(path, dataset=dataset)
        assert report.counts["kept"] == 2, (dataset, report.table())
        one, other = ({**row.__dict__, "row_id": "", "line": 0} for row in report.rows)
        assert one == other, dataset
    for dataset, video in (("activitynet", {"timestamps": [[4, 7]], "sentences": ["the circle grows"]}),
                           ("timelens", {"spans": [[4, 7]], "queries": ["the circle grows"]})):  # fmt: skip
        path = written(tmp_path / "a.json", json.dumps({"a.mp4": video, "b.mp4": video | {"duration": None}}))
        assert rows(import_annotations(path, dataset=dataset)) == [GOOD, ("b.mp4", *GOOD[1:])]


@pytest.mark.parametrize("dataset", ["jsonl", "hf"])
def test_a_window_may_stand_alone_or_in_two_columns(tmp_path: Path, dataset: str) -> None:
    rest = {"video": 12345, "query": "q"}
    ways = [{"windows": [4, 7]}, {"windows": [[4, 7]]}, {"start": 4, "end": 7}, {"windows": None, "start": 4, "end": 7},
            {"windows": [[4, 7]], "start": 60, "end": 90}]  # fmt: skip
    bad = [{"start": 4}, {"windows": [4]}, {"windows": [4, 7, 9]}, {"windows": ["4", "7"]}]
    path = written(tmp_path / "a.jsonl", "\n".join(json.dumps(rest | way) for way in ways + bad))
    report = import_annotations(path, dataset=dataset)
    assert rows(report) == [("12345", "q", 4.0, 7.0)] * len(ways) and len(reasons(report)) == len(bad)
    assert all("window" in reason for reason in reasons(report))


def test_a_query_that_is_a_list_falls_with_its_reason(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", json.dumps(ROW) + "\n" + json.dumps(ROW | {"query": ["a", "b"]}))
    assert reasons(import_annotations(path, dataset="jsonl")) == ["no query: expected a string, got ['a', 'b']"]


def test_a_damaged_line_spoils_no_other(tmp_path: Path) -> None:
    """Also the first one, whose form says what the file is."""
    good = json.dumps(ROW)
    for bad in ('{"video": "a.mp4", ', "[1, ", '{"query": 1, "query": 2}', good[:-1], "nonsense", '"text"', "[]"):
        path = written(tmp_path / "a.jsonl", "\n".join((bad, good, bad, good)))
        report = import_annotations(path, dataset="jsonl")
        assert [row.line for row in report.rows] == [2, 4] and len(reasons(report)) == 2, bad


@pytest.mark.parametrize("text", ['{"video": "a", "captions": [], "captions": []}', '[{"video": "a", "video": "b"}]',
                                  '{\n"video": "a",\n"video": "b"\n}'])  # fmt: skip
def test_a_key_that_stands_twice_is_an_error(tmp_path: Path, text: str) -> None:
    path = written(tmp_path / "a.jsonl", text)
    for read in (captions_file, read_responses):
        with pytest.raises(AnnotationError, match="stands twice"):
            read(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"video": None, "captions": []}, "video is a NoneType"),
        ({"video": True, "captions": []}, "video is a bool"),
        ({"video": "a", "captions": {}}, "captions are a dict"),
        ({"video": "a"}, "captions"),
        ({"video": "a", "captions": [{"start_s": "1", "end_s": 2, "text": "x"}]}, "two finite times"),
        ({"video": "a", "captions": [{"start_s": True, "end_s": 2, "text": "x"}]}, "two finite times"),
        ({"video": "a", "captions": [{"start_s": 1, "end_s": 2, "text": None}]}, "a text"),
    ],
)
def test_a_captions_file_is_refused_by_its_line(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = written(tmp_path / "a.jsonl", json.dumps({"video": "a", "captions": None}) + "\n" + json.dumps(row))
    with pytest.raises(AnnotationError, match=f"line 2: .*{message}"):
        captions_file(path)
    path.write_bytes('{"video": "a", "captions": [{"start_s": 0, "end_s": 1, "text": "caf\u00e9"}]}'.encode("latin-1"))
    with pytest.raises(AnnotationError, match=r"line 1: .*UTF-8.*Latin-1, perhaps"):
        captions_file(path)


@pytest.mark.parametrize("way", WAYS)
def test_lengths_are_a_table_like_any_other(tmp_path: Path, way: str) -> None:
    path = written(tmp_path / "a.csv", WAYS[way](',id, length ,"a, b"\n0,A,1.5,x\n1,007, 30 ,y\n2,A,1.50,z\n'))
    assert read_lengths(path) == {"A": 1.5, "007": 30.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,length\nA,1\nA,2\n", "line 3: A has two lengths, 1.0 and 2.0"),
        ("id,length,id\nA,1,B\n", "column 'id' stands twice"),
        ("id,length\nA,B,1\n", "line 2: row does not fit its header"),
        *((f"id,length\nA,{length}\n", "line 2: length of A is") for length in ("inf", "nan", "1_0", "-1", "", "0x9")),
    ],
)
def test_lengths_that_say_nothing_certain_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        read_lengths(written(tmp_path / "a.csv", text))


@pytest.mark.parametrize("name", ["hf-parquet", "hf-csv", "hf-json", "jsonl-forms", "captions-forms", "set-words"])
def test_damaged_files_end_in_a_message(tmp_path: Path, name: str) -> None:
    """The fuzzer in small. Of a damaged parquet (number 345) Arrow ended the process."""
    target = next(one for one in table_targets(tmp_path) if one.name == name)
    for number in (*range(20), 345):
        folder = tmp_path / str(number)
        folder.mkdir()
        with suppress(TaroError):
            target.run(target.make(generator(1, name, number)), folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_rights_is_one_message(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", "{}")
    path.chmod(0)
    with pytest.raises(AnnotationError, match="check the path and its permissions"):
        import_annotations(path, dataset="jsonl")
