"""Answers of several windows: read, scored as the time that they hold, ranked for mAP, and one window as ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taro.core.errors import AnnotationError
from taro.grounding.answers import ANSWER_PARSERS, parse_answer, parse_answers
from taro.grounding.moment import Moment, iou
from taro.grounding.prompts import load_template
from taro.grounding.protocols import set_iou
from taro.metrics.answers import AnswerRow, predictions, read_answers, score_rows, write_answers
from taro.metrics.examples import Example
from taro.metrics.predictions import Annotations, evaluate_file
from taro.metrics.scores import Prediction, evaluate_predictions
from taro.pages.answers import answers_page
from taro.train.config import RewardConfig
from taro.train.report.data import row_iou
from taro.train.rewards import rewards, timestamp_aware_iou, timestamp_aware_set_iou

MOMENTS = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(lambda ends: Moment(float(ends[0]), float(ends[1])))
TWO = "<answer>2.0s to 5.5s, 8.0s to 9.0s</answer>"


@pytest.mark.parametrize(("text", "windows"), [
    (TWO, [(2, 5.5), (8, 9)]),
    ("<answer>2.00 to 5.50 and 8.00 to 9.00 seconds</answer>", [(2, 5.5), (8, 9)]),
    ("<answer>2s to 3s\n8s to 9s; 1s to 4s</answer>", [(2, 3), (8, 9), (1, 4)]),
    ("<answer>2s to 3s, 4s to 1s</answer>", []), ("<answer>2s to 3s, 1 to 4 minutes</answer>", []),
    ("<answer>1s to 2s</answer> no: <answer>3s to 4s</answer>", [(3, 4)]),
    ("<answer>never</answer>", []), ("2.0s to 5.5s", []),
])
def test_windows_are_read_in_their_order(text: str, windows: list[tuple[float, float]]) -> None:
    found = parse_answers(text)
    assert [(w.start_s, w.end_s) for w in found] == windows
    assert parse_answer(text, protocol="multi-window") == (found[0] if found else None)


@given(st.text("0123456789.s to,<>answer/\n", max_size=200), st.sampled_from(sorted(ANSWER_PARSERS)))
def test_the_first_window_is_the_protocols_own_answer(text: str, protocol: str) -> None:
    text = f"<answer>{text}</answer>"
    found = parse_answers(text, protocol=protocol)
    assert parse_answer(text, protocol=protocol) == (found[0] if found else None)
    assert len(found) <= (100 if protocol in ("multi-window", "moment-detr") else 1)


def test_an_answer_of_a_thousand_windows_is_cut() -> None:
    assert len(parse_answers("<answer>" + "1s to 2s, " * 1000 + "</answer>")) == 100


def seconds_of(windows: list[Moment]) -> set[int]:
    return {second for w in windows for second in range(int(w.start_s), int(w.end_s))}


@given(st.lists(MOMENTS, max_size=4), st.lists(MOMENTS, max_size=4))
def test_set_iou_counts_seconds(answers: list[Moment], windows: list[Moment]) -> None:
    ours, theirs = seconds_of(answers), seconds_of(windows)
    assert set_iou(answers, windows) == pytest.approx(len(ours & theirs) / len(ours | theirs) if ours else 0.0)
    assert set_iou(answers[::-1], [*windows, *windows]) == set_iou(answers, windows)


@given(MOMENTS, MOMENTS)
def test_with_one_window_each_nothing_changes(answer: Moment, window: Moment) -> None:
    if window.duration_s > 0:
        assert set_iou([answer], [window]) == pytest.approx(iou(answer, window))
        assert timestamp_aware_set_iou([answer], [window], 20.0) == pytest.approx(
            timestamp_aware_iou(answer, [window], 20.0))


def test_the_reward_wants_all_windows_and_no_more() -> None:
    truth, D = [Moment(0, 2), Moment(6, 10)], 20.0
    whole = timestamp_aware_set_iou(truth, truth, D)
    part = timestamp_aware_set_iou(truth[:1], truth, D)
    padded = timestamp_aware_set_iou([*truth, Moment(12, 20)], truth, D)
    assert whole == 1.0 and part == pytest.approx(2 / 6 * (1 - 8 / 20)) and padded == pytest.approx(6 / 14 * 0.5)
    assert timestamp_aware_set_iou([Moment(float("inf"), 3)], truth, D) == 0.0
    assert timestamp_aware_set_iou([Moment(5, 500)], truth, D) == 0.0


def test_rewards_under_both_protocols() -> None:
    import numpy as np

    text = f"<think>\nso\n</think>\n{TWO}"
    truth = [[Moment(2, 5.5), Moment(8, 9)]]
    several_windows = RewardConfig(protocol="multi-window")
    several = rewards([[text]], truth, [10.0], np.array([[0.1]]), several_windows)
    single = rewards([[text]], truth, [10.0], np.array([[0.1]]))
    assert several.total_BG.tolist() == single.total_BG.tolist() == [[2.0]]
    assert several.answers_BG == (((Moment(2, 5.5), Moment(8, 9)),),) and single.answers_BG == ()
    half = rewards([["<answer>2.0s to 5.5s</answer>"]], truth, [10.0], np.array([[0.1]]), several_windows)
    assert half.iou_BG[0, 0] == pytest.approx(3.5 / 4.5)


def scored(folder: Path, protocol: str, **answer: Any) -> Any:
    (folder / "a.jsonl").write_text(json.dumps(
        {"qid": 1, "video": "v", "query": "q", "windows": [[2, 5.5], [8, 9]], "duration": 10}) + "\n")
    (folder / "p.jsonl").write_text(json.dumps({"qid": 1, **answer}) + "\n")
    return evaluate_file(folder / "p.jsonl", Annotations(folder / "a.jsonl", "jsonl"), protocol=protocol)


@pytest.mark.parametrize("answer", [
    {"text": TWO}, {"predicted": [[2, 5.5], [8, 9]]},
    {"pred_relevant_windows": [[8, 9, 0.1], [2, 5.5, 0.9]]}])
def test_a_file_may_answer_several_windows(tmp_path: Path, answer: dict[str, Any]) -> None:
    assert scored(tmp_path, "multi-window", **answer).scores.miou == 1.0
    assert scored(tmp_path, "taro", **answer).scores.miou == 1.0  # the first is the better window itself
    assert scored(tmp_path, "union", **answer).scores.miou == pytest.approx(3.5 / 4.5)
    ranked = scored(tmp_path, "moment-detr", **answer).ranked
    assert ranked.maps["mAP"] == 1.0  # one window alone could find half of them
    assert scored(tmp_path, "moment-detr", predicted=[2, 5.5]).ranked.maps["mAP"] == 0.5


@pytest.mark.parametrize("predicted", [[[1, 2], [3]], [[1, 2], None], [1, [2, 3]], [[1, "2"]], [[1, 2]] * 1001])
def test_a_list_of_something_else_is_refused(tmp_path: Path, predicted: Any) -> None:
    with pytest.raises(AnnotationError, match="in seconds, or null, or a list of up to 1,000 windows"):
        scored(tmp_path, "multi-window", predicted=predicted)


def test_answers_of_a_policy_go_out_and_come_back(tmp_path: Path) -> None:
    windows = (Moment(2, 5.5), Moment(8, 9))
    row = AnswerRow("k", "1", "q", "v.mp4", "0" * 64, TWO, Moment(2, 5.5), windows, 10.0, 9, True, windows)
    write_answers([row], tmp_path / "rows.jsonl")
    assert read_answers(tmp_path / "rows.jsonl") == [row]
    assert (row_iou(row, "multi-window"), row_iou(row, "union")) == (1.0, pytest.approx(3.5 / 4.5))
    assert evaluate_predictions(predictions([row]), protocol="multi-window").miou == 1.0
    shown = answers_page([Example(predictions([row])[0], "q")], scores=score_rows([row]), protocol="multi-window")
    assert "2.00s to 5.50s, 8.00s to 9.00s" in shown
    plain = Prediction("1", "v", Moment(2, 5.5), row.windows, 10.0)
    assert evaluate_predictions([plain], protocol="multi-window").miou == pytest.approx(3.5 / 4.5)


@pytest.mark.parametrize(("text", "timestamps"), [(TWO, None), (f"<think>at 3.0s</think>{TWO}", 1.0)])
def test_a_policy_and_the_file_of_its_answers_score_the_same(tmp_path: Path, text: str,
                                                             timestamps: float | None) -> None:
    windows = (Moment(2, 5.5), Moment(8, 9))
    row = AnswerRow("k", "1", "q", "v", "0" * 64, text, Moment(2, 5.5), windows, 10.0, 9, True, windows)
    of_policy, of_file = score_rows([row], protocol="taro"), scored(tmp_path, "taro", text=text).scores
    assert of_policy.timestamps == of_file.timestamps == timestamps  # none of an answer alone, not 0 %
    assert (of_policy.metrics, of_policy.first_span) == (of_file.metrics, of_file.first_span)


def test_our_example_for_several_windows_is_read() -> None:
    template = load_template("taro-multi")
    for text in (template.text, template.no_think_text or ""):
        assert parse_answers(text) == (Moment(8.2, 11.0), Moment(21.5, 24.0))
