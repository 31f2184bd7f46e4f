"""The importers of other people's formats: small files in the form of the real ones, with their faults."""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import taro.core.json
from taro.annotations import Dropped, LintReport, dataset_names, import_annotations, reading
from taro.annotations.rows import Saliency
from taro.core.errors import AnnotationError
from taro.grounding.moment import Moment, part_of_file


def read(folder: Path, dataset: str, data: Any, **knobs: Any) -> LintReport:
    """`data`: lines where it is a list for a format of lines, else one document."""
    path = folder / "annotations"
    lines = dataset in ("qvhighlights", "taro-eval", "jsonl")
    path.write_text("\n".join(map(json.dumps, data)) if lines else json.dumps(data), encoding="utf-8")
    report = import_annotations(path, dataset=dataset, **knobs)
    assert report.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    return report


def reasons(report: LintReport) -> list[str]:
    return [outcome.reason for outcome in report.outcomes if isinstance(outcome, Dropped)]


def test_activitynet(tmp_path: Path) -> None:
    """Sentences are rows and, all of them, the captions of each row; what cannot be a row is no caption either."""
    data = {
        "v_a": {
            "duration": 10.0,
            "timestamps": [[0, 4], [4, 10.004], [8, 5], [6, 6]],
            "sentences": ["One.", "  Two.", "Three.", "No length."],
        },
        "v_b": {"duration": 9.0, "timestamps": [[0, 4]], "sentences": ["One.", "Two."]},
        "v_c": {"duration": 9.0, "timestamps": [[0, 4]]},
        "v_d": {"duration": 9.0, "timestamps": [[1, 4]], "sentences": ["One."]},
    }
    report = read(tmp_path, "activitynet", data, split="val_1")
    assert [(row.row_id, row.video, row.query, row.windows, row.split) for row in report.rows] == [
        ("v_a#0", "v_a", "One.", (Moment(0, 4),), "val_1"),
        ("v_a#1", "v_a", "Two.", (Moment(4, 10),), "val_1"),
        ("v_a#2", "v_a", "Three.", (Moment(5, 8),), "val_1"),
        ("v_d#0", "v_d", "One.", (Moment(1, 4),), "val_1"),
    ]
    first = report.rows[0].captions
    assert first is not None and first is report.rows[2].captions
    assert [(c.start_s, c.end_s, c.text) for c in first] == [(0, 4, "One."), (4, 10, "Two."), (5, 8, "Three.")]
    assert reasons(report) == [
        "window has no length: [6.0, 6.0]",
        "timestamps and sentences are not two lists of one length: 'v_b'",
        "key missing: sentences",
    ]
    assert [outcome.line for outcome in report.outcomes if isinstance(outcome, Dropped)] == [4, 5, 6]
    assert report.counts["repair: query stripped of blanks"] == 1 == report.counts["repair: window swapped"]


def test_timelens(tmp_path: Path) -> None:
    data = {"Z_0_150": {"duration": 30.0, "spans": [[1, 2], [3, 40]], "queries": ["a dog", "a cat"]}}
    report = read(tmp_path, "timelens", data)
    assert [(row.row_id, row.video, row.windows, row.captions) for row in report.rows] == [
        ("Z_0_150#0", "Z_0_150", (Moment(1, 2),), None),
        ("Z_0_150#1", "Z_0_150", (Moment(3, 30),), None),
    ]


QVH: dict[str, Any] = {
    "qid": 7, "query": "a dog", "duration": 150, "vid": "a_60.0_210.0", "relevant_windows": [[0, 4], [8, 9]],
    "relevant_clip_ids": [0, 1], "saliency_scores": [[1, 2, 4], [0, 0, 3]],
}  # fmt: skip


def test_qvhighlights(tmp_path: Path) -> None:
    """Several windows a query; the file is cut already, whatever its name says; marks come along."""
    rows = read(tmp_path, "qvhighlights", [QVH]).rows
    assert rows[0].row_id == "7" and rows[0].windows == (Moment(0, 4), Moment(8, 9)) and rows[0].clip is None
    assert rows[0].saliency == Saliency((0, 1), ((1.0, 2.0, 4.0), (0.0, 0.0, 3.0)))
    assert reasons(read(tmp_path, "qvhighlights", [{k: QVH[k] for k in ("qid", "query", "vid")}])) == [
        "key missing: relevant_windows"
    ]


@pytest.mark.parametrize(
    ("clips", "scores"),
    [([0], [[1, 2, 3], [1, 2, 3]]), ([0, 0], [[1], [1]]), ([-1], [[1]]), ([0, 1], [[1], [1, 2]]), ([0], [["4"]]),
     ([0], [[]]), ("0", [[1]]), ([True], [[1]]), (None, [[1]]), ([0], [1])],
)  # fmt: skip
def test_unusable_saliency_is_left_out(tmp_path: Path, clips: Any, scores: Any) -> None:
    report = read(tmp_path, "qvhighlights", [QVH | {"relevant_clip_ids": clips, "saliency_scores": scores}])
    assert report.counts["repair: unusable saliency left out"] == 1 and report.rows[0].saliency is None


def test_tvgbench(tmp_path: Path) -> None:
    item = {"path": "a.mp4", "question": "a dog", "answer": "13.4-28.1", "start": 60.0, "end": 90.0, "duration": 30.0,
            "question_type": "x", "source": "y", "qsemtype": "z"}  # fmt: skip
    report = read(
        tmp_path, "tvgbench",
        [item, item | {"start": None, "end": None}, item | {"answer": "5-5"}, item | {"answer": "3 to 4"}, [],
         item | {"answer": 7}],
    )  # fmt: skip
    assert [(row.row_id, row.clip, row.windows) for row in report.rows] == [
        ("1", Moment(60, 90), (Moment(13.4, 28.1),)),
        ("2", None, (Moment(13.4, 28.1),)),
    ]
    assert reasons(report) == ["window has no length: [5.0, 5.0]", "answer is not START-END: '3 to 4'",
                               "not a JSON object: got a list", "answer is not START-END: '7'"]  # fmt: skip


def test_time_r1(tmp_path: Path) -> None:
    """A file that is named after its part is that part; of any other its length decides, once it is known."""
    item = {"video": "d/a.mp4", "duration": 45.7, "timestamp": [120, 14220], "sentence": "a dog", "qid": "q",
            "video_start": 39.0, "video_end": 84.7, "difficulty": 50.0, "pred": [0.0, 3.0]}  # fmt: skip
    good = item | {"timestamp": [1, 4]}
    named = "d/a_00:00:39:000_00:01:24:700.mp4"
    report = read(
        tmp_path, "time-r1",
        [item, good, good | {"video": named}, good | {"video": named, "video_start": 0.0, "video_end": 45.7},
         good | {"video_start": None, "video_end": None}],
    )  # fmt: skip
    assert reasons(report) == ["window starts at or past the duration: [120.0, 14220.0] of 45.7 s"]
    huge = read(tmp_path, "time-r1", [good | {"video": named, "video_end": 10**400}])
    assert huge.counts["drop: unusable clip"] == 1, "a number that no float holds, found by fuzzing"
    assert [(row.clip, row.may_be_cut) for row in report.rows] == [
        (Moment(39, 84.7), True), (None, False), (Moment(0, 45.7), True), (None, False)
    ]  # fmt: skip
    assert report.rows[0].difficulty == 50.0 and report.rows[1].row_id == "q#3"
    part = Moment(39, 84.7)
    assert part_of_file(part, 45.7) is None and part_of_file(part, 300.0) == part


def test_what_is_left_to_cut() -> None:
    part = Moment(39, 84)
    assert part_of_file(part, 83.5) == part, "a whole file that ends a little early is still whole"
    assert part_of_file(part, 60.0) == part, "neither the part nor long enough: cutting will say so"
    assert part_of_file(Moment(0, 45), 45.0) == Moment(0, 45), "nothing to choose between"


TARO: dict[str, Any] = {
    "data_source": "x", "videos": ["v/a.mp4"], "video_start": None, "video_end": None,
    "prompt": [{"role": "user", "content": '<video>To pinpoint the event "a "red" dog" in the video, say "when".'}],
    "reward_model": {"ground_truth": [1.0, 4.0]}, "extra_info": {"split": "train", "index": 3, "duration": 9.0},
}  # fmt: skip


def test_the_authors_files(tmp_path: Path) -> None:
    lines = ["From 0.0s to 2.5s, a dog sits\nFrom 2.5 seconds to 9.7 seconds: it runs", "nothing of the kind"]
    quoted = TARO | {"prompt": [{"role": "system", "content": '"no"'}, {"role": "user", "content": 'Find "a {cat}".'}]}
    report = read(
        tmp_path, "taro",
        [TARO, TARO | {"query": "a bird", "captions": lines}, quoted, TARO | {"prompt": []}, TARO | {"videos": []},
         TARO | {"reward_model": {"ground_truth": "1 to 4"}}],
        split="val",
    )  # fmt: skip
    assert [(row.query, row.split, row.row_id) for row in report.rows] == [
        ('a "red" dog', "train", "train-3"), ("a bird", "train", "train-3#2"), ("a {cat}", "train", "train-3#3")
    ]  # fmt: skip
    captions = report.rows[1].captions
    assert captions is not None and report.counts["repair: unusable captions left out"] == 1
    assert [(c.start_s, c.end_s, c.text) for c in captions] == [(0, 2.5, "a dog sits"), (2.5, 9.0, "it runs")]
    assert reasons(report) == ["no query: expected a string, got NoneType", "videos is not a list of one path",
                               "window is not two numbers: '1 to 4'"]  # fmt: skip


def test_the_authors_evaluation_files(tmp_path: Path) -> None:
    line = {"qid": "q1", "query": "a dog", "duration": 30.0, "vid": "a", "relevant_windows": [[1, 4]],
            "video_file": "a.mp4"}  # fmt: skip
    rows = read(tmp_path, "taro-eval", [line, line | {"qid": 2, "video_start": 5.0, "video_end": 35.0}]).rows
    assert [(row.video, row.row_id, row.clip) for row in rows] == [("a.mp4", "q1", None), ("a.mp4", "2", Moment(5, 35))]


@pytest.mark.parametrize("dataset", ["activitynet", "timelens", "tvgbench", "time-r1", "taro"])
def test_another_document_is_one_message(tmp_path: Path, dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    other = "[]" if dataset in ("activitynet", "timelens") else "{}"
    twice = '{"a": {"duration": 1}, "a": {"duration": 2}}'
    for text, message in [
        (other, "expected a JSON"), ("{", "expected one JSON document"), ("[" * 100_000, "nested deeper than"),
        ("[" * 70 + "]" * 70, "nested deeper than 32"), (twice, "key 'a' stands twice"), ("9" * 5000, "expected"),
    ]:  # fmt: skip
        path.write_text(text)
        with pytest.raises(AnnotationError, match=message):
            import_annotations(path, dataset=dataset)
    path.write_bytes(b"\xff")
    with pytest.raises(AnnotationError, match="expected one JSON document"):
        import_annotations(path, dataset=dataset)
    monkeypatch.setattr(taro.core.json, "MAX_CONTAINERS", 5)
    path.write_text("[[],[],[],[],{}]")
    with pytest.raises(AnnotationError, match="6 lists and objects, at most 5"):
        import_annotations(path, dataset=dataset)
    monkeypatch.setattr(reading, "MAX_DOCUMENT_BYTES", 10)
    path.write_text("[0, 0, 0, 0, 0]")
    with pytest.raises(AnnotationError, match="at most 10 bytes"):
        import_annotations(path, dataset=dataset)


def test_the_number_of_rows_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("taro.annotations.importers"), "MAX_ROWS", 3)
    with pytest.raises(AnnotationError, match="at most 3 lines"):
        read(tmp_path, "tvgbench", [0] * 4)
    assert read(tmp_path, "tvgbench", [0] * 3).counts["dropped"] == 3


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    "video query windows path question answer start end duration timestamp sentence qid video_start video_end videos "
    "prompt reward_model extra_info captions vid relevant_windows video_file relevant_clip_ids saliency_scores "
    "timestamps sentences spans queries".split()
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from([name for name in dataset_names() if name != "hf"]), st.dictionaries(KEYS, VALUES, max_size=8))
@example("timelens", {"duration": None, "spans": [], "queries": []})
def test_whatever_an_item_holds_it_has_an_outcome(tmp_path: Path, dataset: str, item: dict[str, Any]) -> None:
    path = tmp_path / "a"
    documents = {"activitynet": {"v": item, "w": item}, "timelens": {"v": item, "w": item}}
    lists = {name: [item, item] for name in ("tvgbench", "time-r1", "taro")}
    document = (documents | lists).get(dataset)
    text = json.dumps(item) if document is None else json.dumps(document)
    path.write_text(text, encoding="utf-8")
    report = import_annotations(path, dataset=dataset)
    for row in report.rows:
        assert row.video.strip() and all(0 <= w.start_s < w.end_s for w in row.windows)
