"""The linter and the importers: every line has an outcome, every repair a name, and a kept row can be relied on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taro.annotations import Dropped, Kept, LintReport, Repaired, import_annotations
from taro.annotations.lint import RawRow, lint, make_unique
from taro.annotations.reading import MAX_LINE_BYTES
from taro.core.errors import AnnotationError
from taro.grounding.moment import Moment
from taro.grounding.prompts import normalise_query


def raw(windows: Any = ((2, 5),), *, line: int = 1, video: Any = "v.mp4", query: Any = "a dog", **more: Any) -> RawRow:
    return RawRow(line, video, query, [list(w) for w in windows] if isinstance(windows, tuple) else windows, **more)


def written(path: Path, *rows: Any) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def row(**more: Any) -> dict[str, Any]:
    return {"video": "v.mp4", "query": "a dog", "windows": [[2, 5]], "duration": 10} | more


def test_a_fine_row_is_kept_as_it_is() -> None:
    outcome = lint(raw(((2, 5), (7, 8.5)), duration_s=10, row_id=7, difficulty=3))
    assert isinstance(outcome, Kept)
    assert outcome.row.windows == (Moment(2, 5), Moment(7, 8.5))
    assert (outcome.row.row_id, outcome.row.duration_s, outcome.row.difficulty) == ("7", 10.0, 3.0)


@pytest.mark.parametrize(
    ("given_row", "repair", "windows"),
    [
        (raw(((5, 2),)), "window swapped", [(2, 5)]),
        (raw(((2, 5),), duration_s=4.5), "window clipped to the duration", [(2, 4.5)]),
        (raw(((2, 6),), duration_s=4.5), "window clipped to the duration, over by more than 1 s", [(2, 4.5)]),
        (raw(((-1, 5),)), "window clipped to the start", [(0, 5)]),
        (raw(((2, 5), (3, 3))), "window left out", [(2, 5)]),
        (raw(query=" a dog\n"), "query stripped of blanks", [(2, 5)]),
        (raw(duration_s=0), "unusable duration left out", [(2, 5)]),
        (raw(duration_s="9"), "unusable duration left out", [(2, 5)]),
        (raw(duration_s=float("nan")), "unusable duration left out", [(2, 5)]),
        (raw(clip=[30, 40], duration_s=80), "duration set to the clip's length", [(2, 5)]),
        (raw(difficulty="hard"), "unusable difficulty left out", [(2, 5)]),
        (raw(captions="a dog runs"), "unusable captions left out", [(2, 5)]),
        (raw(row_id="q" * 501), "id shortened", [(2, 5)]),
    ],
)
def test_a_repair_has_a_name(given_row: RawRow, repair: str, windows: list[tuple[float, float]]) -> None:
    outcome = lint(given_row)
    assert isinstance(outcome, Repaired) and outcome.repairs == (repair,)
    assert outcome.row.windows == tuple(Moment(*w) for w in windows)


@pytest.mark.parametrize(
    ("given_row", "reason"),
    [
        (raw(((10, 12),), duration_s=10), "window starts at or past the duration: [10.0, 12.0] of 10.0 s"),
        (raw(((12, 9),), duration_s=8), "window starts at or past the duration: [12.0, 9.0] of 8.0 s"),
        (raw(((3, 3),)), "window has no length: [3.0, 3.0]"),
        (raw(((float("nan"), 3),)), "window is not finite: [nan, 3.0]"),
        (raw(((0, float("inf")),)), "window is not finite: [0.0, inf]"),
        (raw(((-5, -2),)), "window ends at or before the start: [-5.0, -2.0]"),
        (raw(((0, 2e6),)), "window is beyond 1,000,000 s: [0.0, 2000000.0]"),
        (raw([["2", "5"]]), "window is not two numbers: ['2', '5']"),
        (raw([[True, 5]]), "window is not two numbers: [True, 5]"),
        (raw([[1, 10**400]]), "window is not two numbers: [1, int]"),
        (raw([[1, 2, 3]]), "window is not two numbers: [1, 2, 3]"),
        (raw([[[1], 2]]), "window is not two numbers: [list, 2]"),
        (raw([[1, 2, 3, 4, 5]]), "window is not two numbers: list"),
        (raw([]), "no window: expected a list of [start, end], got []"),
        (raw("2 to 5"), "no window: expected a list of [start, end], got '2 to 5'"),
        (raw([[1, 2]] * 201), "more than 200 windows: 201"),
        (raw(query=" \n"), "empty query"),
        (raw(query=" . "), "empty query"),
        (raw(query=None), "no query: expected a string, got NoneType"),
        (raw(query="x" * 20_001), "query longer than 20,000 characters: 20,001"),
        (raw(query="a \ud800"), "query is not valid Unicode: 'a \\ud800'"),
        (raw(video=""), "unusable video: expected a printable name, got ''"),
        (raw(video="a\x00b"), "unusable video: expected a printable name, got 'a\\x00b'"),
        (raw(video=7.5), "no video: expected a string, got float"),
        *((raw(clip=clip), f"unusable clip: expected [start, end] in seconds of the file, got {shown}")
          for clip, shown in (
            ([40, 30], "[40, 30]"), ([30, None], "[30, NoneType]"), ([-1, 5], "[-1, 5]"), ("30 to 40", "'30 to 40'"),
            ([30, float("inf")], "[30, inf]"), ({"start": 30, "end": 40}, "dict"))),
    ],
)
def test_a_drop_has_a_reason(given_row: RawRow, reason: str) -> None:
    outcome = lint(given_row)
    assert isinstance(outcome, Dropped) and outcome.reason == reason and outcome.line == 1


def test_captions_that_cannot_be_used_are_left_out() -> None:
    captions = [
        {"start_s": 0, "end_s": 2, "text": " runs "},
        {"start_s": 3, "end_s": 3, "text": "no length"},
        {"start_s": 4, "end_s": 99, "text": "clipped"},
        {"start_s": 1, "end_s": 2, "text": " "},
        "nonsense",
    ]
    outcome = lint(raw(duration_s=10, captions=captions))
    assert isinstance(outcome, Repaired) and outcome.row.captions is not None
    assert [(c.start_s, c.end_s, c.text) for c in outcome.row.captions] == [(0, 2, "runs"), (4, 10, "clipped")]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
WINDOWS = st.lists(st.tuples(st.floats(-9, 30), st.floats(-9, 30)), min_size=1, max_size=3) | VALUES


@given(VALUES | st.just("v"), VALUES | st.text(max_size=8), WINDOWS, VALUES | st.floats(0, 20), VALUES)
def test_whatever_a_row_holds_a_usable_row_can_be_relied_on(
    video: Any, query: Any, windows: Any, duration_s: Any, rest: Any
) -> None:
    outcome = lint(RawRow(1, video, query, windows, rest, duration_s, rest, "train", rest, rest))
    if isinstance(outcome, Dropped):
        assert outcome.reason
        return
    assert outcome.row.video.strip() and normalise_query(outcome.row.query)
    for window in outcome.row.windows:
        assert 0 <= window.start_s < window.end_s <= (outcome.row.duration_s or 1e6)


def test_what_was_clipped_is_remembered() -> None:
    outcome = lint(raw(((9, 2), (-1, 4)), duration_s=8.5))
    assert isinstance(outcome, Repaired)
    assert outcome.row.windows == (Moment(2, 8.5), Moment(0, 4))
    assert outcome.row.unclipped == (Moment(2, 9), Moment(-1, 4))
    kept = lint(raw(((2, 9),), duration_s=9.0))
    assert isinstance(kept, Kept) and kept.row.unclipped is None


def test_linting_what_was_linted_changes_nothing() -> None:
    first = lint(raw(((9, 2), (4, 12)), query=" a ", duration_s=8.5))
    assert isinstance(first, Repaired)
    windows = tuple((w.start_s, w.end_s) for w in first.row.windows)
    second = lint(raw(windows, query=first.row.query, duration_s=first.row.duration_s))
    assert second == Kept(first.row)


@given(st.lists(st.sampled_from(["a", "b", "1", "2", "a#3", None, 2]), max_size=8))
def test_ids_are_unique_and_first_come_first_served(ids: list[Any]) -> None:
    outcomes = make_unique(lint(raw(row_id=row_id, line=line)) for line, row_id in enumerate(ids, 1))
    assert all(not isinstance(outcome, Dropped) for outcome in outcomes)
    names = [outcome.row.row_id for outcome in outcomes if not isinstance(outcome, Dropped)]
    assert len(set(names)) == len(ids)
    wanted = [str(line if row_id is None else row_id) for line, row_id in enumerate(ids, 1)]
    for index, outcome in enumerate(outcomes):
        assert isinstance(outcome, Repaired) == (names[index] != wanted[index])
        assert names[index] == wanted[index] or wanted[index] in names[:index]


def test_every_line_has_an_outcome(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.jsonl",
        row(qid="one", captions=[{"start_s": 0, "end_s": 1, "text": "barks"}]),
        row(query=" b"),
        "",
        "{not json",
        "[1, 2]",
        {"video": "v.mp4", "query": "x"},
        row(qid="one"),
        row(windows=[[11, 12]]),
        "[" * 100_000,
    )
    report = import_annotations(path, dataset="jsonl")
    assert [type(outcome) for outcome in report.outcomes] == [
        Kept,
        Repaired,
        *[Dropped] * 4,
        Repaired,
        Dropped,
        Dropped,
    ]
    counts = report.counts
    assert counts["lines"] == 9 == counts["kept"] + counts["repaired"] + counts["dropped"]
    assert (counts["drop: not JSON"], counts["drop: blank line"], counts["drop: key missing"]) == (2, 1, 1)
    assert [r.row_id for r in report.rows] == ["one", "2", "one#7"]
    assert [o.line for o in report.outcomes if isinstance(o, Dropped)] == [3, 4, 5, 6, 8, 9]
    assert report.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    json.dumps(report.as_dict())
    assert "line 6: dropped: key missing: windows" in report.table()


def test_policies(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", row(), row(windows=[[5, 2]]), row(windows=[[3, 3]]))
    assert len(import_annotations(path, dataset="jsonl").rows) == 2
    dropped = import_annotations(path, dataset="jsonl", policy="drop")
    assert len(dropped.rows) == 1
    assert dropped.counts["drop: would need repair"] == 1 and dropped.counts["lines"] == 3
    with pytest.raises(
        AnnotationError, match=r"2 of 3 lines are not fine: line 2: window swapped; line 3: .*no length"
    ):
        import_annotations(path, dataset="jsonl", policy="fail")
    fine = written(tmp_path / "b.jsonl", row(), row())
    assert import_annotations(fine, dataset="jsonl", policy="fail").counts["kept"] == 2


def test_bounds(tmp_path: Path) -> None:
    """A query of 10,000 characters is data; a line of more than 4 MiB is skipped over, and the next one is read."""
    path = tmp_path / "a.jsonl"
    long = json.dumps(row(query="x" * 10_000)).encode()
    path.write_bytes(b"\xef\xbb\xbf" + long + b"\r\n" + b"y" * (3 * MAX_LINE_BYTES) + b"\n\xff\n" + long)
    report = import_annotations(path, dataset="jsonl")
    assert [type(outcome) for outcome in report.outcomes] == [Kept, Dropped, Dropped, Kept]
    assert [o.reason for o in report.outcomes if isinstance(o, Dropped)] == [
        "line longer than 4,194,304 bytes",
        "not UTF-8: byte 1 of the line (Latin-1, perhaps)",
    ]
    assert len(report.rows[1].query) == 10_000
    assert report.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


HOSTILE = ["{query}", 'he says "so"\nand\tleaves', "a ## b", "</answer>", "\\n", "\u00e9\u4e16\u754c \U0001f600"]


def test_queries_survive(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", *(row(query=query) for query in HOSTILE))
    assert [r.query for r in import_annotations(path, dataset="jsonl").rows] == HOSTILE


CHARADES = """3MSZA 24.3 30.4##person turn a light on.
3MSZA 24.3 33.0##a ## b
3MSZA 30.0 2##reversed
NOLEN 1.0 99.0##length unknown
3MSZA 40 50##past the end
3MSZA 1##one time
3MSZA x y##no times
no marks
"""


def charades(tmp_path: Path, lengths: str = "id,length\n3MSZA,30.96\n") -> LintReport:
    (tmp_path / "c.txt").write_text(CHARADES)
    (tmp_path / "l.csv").write_text(lengths)
    return import_annotations(tmp_path / "c.txt", dataset="charades-sta", split="test", lengths=tmp_path / "l.csv")


def test_charades_lines(tmp_path: Path) -> None:
    report = charades(tmp_path)
    assert [(r.row_id, r.video, r.query, r.windows[0], r.split) for r in report.rows] == [
        ("1", "3MSZA", "person turn a light on.", Moment(24.3, 30.4), "test"),
        ("2", "3MSZA", "a ## b", Moment(24.3, 30.96), "test"),
        ("3", "3MSZA", "reversed", Moment(2.0, 30.0), "test"),
        ("4", "NOLEN", "length unknown", Moment(1.0, 99.0), "test"),
    ]
    assert [r.duration_s for r in report.rows] == [30.96, 30.96, 30.96, None]
    assert report.counts["drop: not a Charades-STA line"] == 3
    assert report.counts["drop: window starts at or past the duration"] == 1


@pytest.mark.parametrize(
    "lengths", ["", "a,b\n1,2\n", "id,length\n3MSZA,long\n", "id,length\n3MSZA\n", "id,length\nV,0\n"]
)
def test_bad_lengths_are_one_message(tmp_path: Path, lengths: str) -> None:
    with pytest.raises(AnnotationError, match="expected"):
        charades(tmp_path, lengths)


def test_the_sandbox_folder_is_enough(tmp_path: Path) -> None:
    written(tmp_path / "annotations.jsonl", row(events=[{"action": "blinks"}], split="val"))
    report = import_annotations(tmp_path, dataset="sandbox")
    assert report.rows[0].split == "val" and report.counts["kept"] == 1


def test_wrong_use_is_one_message(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", row())
    empty = written(tmp_path / "empty.jsonl")
    for message, arguments in [
        ("expected one of: charades-sta, jsonl, sandbox, activitynet", (path, {"dataset": "json"})),
        ("expected an annotation file, found none", (tmp_path / "absent", {"dataset": "jsonl"})),
        ("expected an annotation file, found a folder", (tmp_path, {"dataset": "jsonl"})),
        ("got an empty file", (empty, {"dataset": "jsonl"})),
        ("leave the file of lengths out", (path, {"dataset": "jsonl", "lengths": path})),
        ("expected repair, drop or fail", (path, {"dataset": "jsonl", "policy": "mend"})),
    ]:
        with pytest.raises(AnnotationError, match=message):
            import_annotations(arguments[0], **arguments[1])  # type: ignore[arg-type]
