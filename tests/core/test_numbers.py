"""A number is read whole, whatever prints it, or not at all."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taro.annotations import Dropped, import_annotations
from taro.annotations.taro_authors import caption_items
from taro.core.numbers import MAX_DIGITS, number, read_count, read_number
from taro.grounding.answers import parse_answer, reasoning_stats
from taro.grounding.moment import Moment
from taro.grounding.prompts import parse_captions

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TIMES = st.floats(0, 1e6).flatmap(lambda start: st.tuples(st.just(start), st.floats(0, 1e6))).map(sorted).filter(
    lambda ends: ends[0] < ends[1])


@given(FLOATS)
def test_whatever_a_float_prints_is_one_number(value: float) -> None:
    assert re.fullmatch(number(signed=True), repr(value)) and read_number(f" {value!r}\n") == value


@given(TIMES)
def test_times_come_back_from_every_reader(ends: list[float]) -> None:
    """The text that Python prints for two floats, in an answer, a reasoning, a caption of ours and of the authors'."""
    start_s, end_s = ends
    said, moment = f"{start_s!r}s to {end_s!r}s", Moment(start_s, end_s)
    assert parse_answer(f"<answer>{said}</answer>") == parse_answer(said, protocol="clock") == moment
    assert reasoning_stats(f"From {said}, it blinks.").spans == (moment,)
    assert [c.moment for c in parse_captions(f"From {said}, it blinks.")] == [moment]
    assert caption_items(f"From {said}, it blinks.") == [{"start_s": start_s, "end_s": end_s, "text": "it blinks."}]


NOT_WHOLE = ["1,200", "1.2.3", "0:12", "1_000", "1\u20090", "9" * (MAX_DIGITS + 1), "0." + "1" * (MAX_DIGITS + 1),
             "1e9999", "\uff11\uff12", "1\uff12", "\u0661\u0662", "1\u00bd",
             "1/2", "0x10", "1e5e5", "--1", "nan", "inf", ""]


@pytest.mark.parametrize("text", NOT_WHOLE)
def test_anything_else_is_refused_and_never_cut(text: str) -> None:
    assert read_number(text) is None
    assert parse_answer(f"<answer>{text}s to 99999s</answer>") is None
    assert parse_answer(f"<answer>0s to {text}s</answer>") is None
    assert parse_captions(f"From 0s to {text}s, a dog") == []
    assert caption_items(f"From 0s to {text}s, a dog") == [f"From 0s to {text}s, a dog"]


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("12", 12), ("9" * 20, 10**20 - 1), ("1" * 21, None),
                                             ("-1", None), ("1.0", None), ("\uff11", None), ("", None)])
def test_counts(text: str, value: int | None) -> None:
    assert read_count(text) == value


@given(st.lists(TIMES, min_size=1, max_size=5))
def test_annotation_files_keep_numbers_of_any_length(tmp_path_factory: pytest.TempPathFactory,
                                                     windows: list[list[float]]) -> None:
    folder = tmp_path_factory.mktemp("numbers")
    rows = [{"path": "a.mp4", "question": "a dog", "answer": f"{s!r}-{e!r}"} for s, e in windows]
    (folder / "tvg.json").write_text(json.dumps(rows))
    (folder / "sta.txt").write_text("".join(f"A {s!r} {e!r}##a dog\n" for s, e in windows))
    for path, dataset in ((folder / "tvg.json", "tvgbench"), (folder / "sta.txt", "charades-sta")):
        report = import_annotations(path, dataset=dataset)
        assert [row.windows for row in report.rows] == [(Moment(s, e),) for s, e in windows], dataset


def test_answers_of_eighteen_decimals_are_rows(tmp_path: Path) -> None:
    answers = ["9.944375536211354-45.94437553621135", f"0.{'0' * 17}1-5", "1e-05 - 3.25", "9" * 41 + "-5", "1,2-3"]
    rows = [{"path": "a.mp4", "question": "a dog", "answer": answer} for answer in answers]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    report = import_annotations(tmp_path / "a.json", dataset="tvgbench")
    assert [row.windows[0] for row in report.rows] == [
        Moment(9.944375536211354, 45.94437553621135), Moment(1e-18, 5.0), Moment(1e-05, 3.25)]
    assert [o.reason[:24] for o in report.outcomes if isinstance(o, Dropped)] == ["answer is not START-END:"] * 2
    assert math.isclose(report.rows[1].windows[0].start_s, 1e-18)


def test_a_charades_line_is_two_plain_numbers(tmp_path: Path) -> None:
    lines = ["A 1_0 20##a", "A nan 20##a", "A \uff11 20##a", "A 1 2 3##a", "A 1##a", "A 1e1 20##a"]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    assert [row.windows for row in import_annotations(tmp_path / "a.txt", dataset="charades-sta").rows] == [
        (Moment(10.0, 20.0),)]
