"""moment-detr: mAP and highlights against numbers worked out by hand, and the properties of average precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taro.annotations.rows import Saliency
from taro.core.errors import AnnotationError
from taro.grounding.moment import Moment
from taro.metrics.predictions import Annotations, FileEvaluation, compare_files, evaluate_file
from taro.metrics.ranked import (
    MAP_THRESHOLDS,
    RankedPrediction,
    average_precisions,
    evaluate_ranked,
    highlight_precision,
    highlight_scores,
    voc_precision,
)
from taro.metrics.scores import Prediction

M = Moment


def test_thresholds() -> None:
    assert MAP_THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@pytest.mark.parametrize(
    ("right", "positives", "expected"),
    [
        ([], 2, 0.0),
        ([False, False], 2, 0.0),
        ([True, True], 2, 1.0),
        ([True], 2, 0.5),
        ([False, True], 1, 0.5),
        ([True, False, True], 2, (1 + 2 / 3) / 2),
        ([False, True, True], 2, 2 / 3),  # the envelope lifts 1/2 to 2/3
        ([False, False, True, True, True], 4, 3 / 5 * 3 / 4),
        ([True], 0, 0.0),
    ],
)
def test_average_precision_by_hand(right: list[bool], positives: int, expected: float) -> None:
    assert voc_precision(right, positives) == pytest.approx(expected)


def test_iou_decides_at_which_thresholds() -> None:
    """IoU 8/10: right up to 0.8, wrong above; so seven of ten thresholds."""
    assert average_precisions([M(0, 8)], [M(0, 10)]) == [1.0] * 7 + [0.0] * 3


def test_a_ground_truth_is_matched_once() -> None:
    """The second answer finds the only window taken: a false positive. After all is found it costs nothing; before the
    other window is found it does."""
    assert average_precisions([M(0, 10), M(0, 10)], [M(0, 10)])[0] == 1.0
    values = average_precisions([M(0, 10), M(0, 10), M(20, 30)], [M(0, 10), M(20, 30)])
    assert values[0] == pytest.approx((1 + 2 / 3) / 2)


def test_the_best_free_window_is_taken() -> None:
    """The first answer fits B better than A and leaves A for the second."""
    a, b = M(0, 10), M(2, 12)
    assert average_precisions([M(2, 11), M(0, 10)], [a, b])[0] == 1.0


def test_a_reversed_window_holds_no_time() -> None:
    """The published code divides 0 by 0 for one as long as a ground-truth window, and counts it as right."""
    assert average_precisions([M(30, 23)], [M(2, 9)]) == average_precisions([M(9, 2)], [M(2, 9)]) == [0.0] * 10
    assert average_precisions([M(30, 23), M(2, 9)], [M(2, 9)])[0] == 0.5


WINDOW = st.tuples(st.integers(0, 30), st.integers(1, 20)).map(lambda w: M(float(w[0]), float(w[0] + w[1])))


@given(st.lists(WINDOW, min_size=1, max_size=5), st.lists(WINDOW, max_size=8))
def test_properties_of_average_precision(windows: list[Moment], ranked: list[Moment]) -> None:
    values = average_precisions(ranked, windows)
    assert all(0 <= value <= 1 + 1e-12 for value in values)
    far = M(1000, 1001)
    assert average_precisions([*ranked, far], windows) == pytest.approx(values), "a last miss costs nothing"
    behind = average_precisions([far, *ranked], windows)
    assert all(late <= value + 1e-12 for late, value in zip(behind, values, strict=True)), "a first one may"
    distinct = list(dict.fromkeys(windows))
    assert average_precisions(distinct, distinct) == pytest.approx([1.0] * 10)
    more = average_precisions(ranked, [*windows, far])
    assert more == pytest.approx([value * len(windows) / (len(windows) + 1) for value in values])


def query(name: str, windows: list[Moment], ranked: list[tuple[Moment, float]], **more: Any) -> RankedPrediction:
    best = max(ranked, key=lambda pair: pair[1])[0] if ranked else None
    answer = Prediction(name, f"v{name}", best, tuple(windows), 150.0, missing=not ranked)
    return RankedPrediction(answer, tuple(ranked), **more)


def test_map_by_hand() -> None:
    """a: short window found second, 1/2. b: long window found, 1; its middle one not: AP 1/2 over both. c: nothing."""
    scores = evaluate_ranked(
        [
            query("a", [M(0, 10)], [(M(50, 60), 0.9), (M(0, 10), 0.1)]),
            query("b", [M(0, 100), M(120, 140)], [(M(0, 100), 0.5)]),
            query("c", [M(0, 4)], []),
        ]
    )
    assert scores.maps == {
        "mAP": pytest.approx((0.5 + 0.5 + 0) / 3), "mAP@0.5": pytest.approx(1 / 3), "mAP@0.75": pytest.approx(1 / 3),
        "short": pytest.approx((0.5 + 0) / 2), "middle": 0.0, "long": 1.0,
    }  # fmt: skip
    assert scores.queries == {"short": 2, "middle": 1, "long": 1}
    assert scores.top.metrics["r1@0.7"] == pytest.approx(1 / 3) and scores.top.missing == ("c",)
    assert scores.highlights == {} and scores.intervals["middle"] is None
    assert json.loads(json.dumps(scores.as_dict()))["map"]["long"] == 1.0
    table = scores.table()
    assert "short (2 queries)" in table and "best constant window" in table and "protocol moment-detr" in table


def test_lengths_are_open_below_and_closed_above() -> None:
    windows = [M(0, 10), M(0, 10.5), M(0, 30), M(0, 31), M(0, 151)]
    scores = evaluate_ranked([query(str(i), [w], [(w, 1.0)]) for i, w in enumerate(windows)])
    assert scores.queries == {"short": 1, "middle": 2, "long": 1}


def test_only_ten_windows_count_and_scores_rank_them() -> None:
    wrong = [(M(100 + i, 101 + i), 0.5) for i in range(10)]
    late = evaluate_ranked([query("a", [M(0, 10)], [*wrong, (M(0, 10), 0.4)])])
    first = evaluate_ranked([query("a", [M(0, 10)], [*wrong, (M(0, 10), 0.6)])])
    assert (late.maps["mAP"], first.maps["mAP"]) == (0.0, 1.0)


@given(st.permutations([(M(0, 10), 0.9), (M(20, 30), 0.5), (M(40, 50), 0.1)]))
def test_the_order_of_a_file_does_not_matter(ranked: list[tuple[Moment, float]]) -> None:
    assert evaluate_ranked([query("a", [M(20, 30)], ranked)]).maps["mAP"] == 0.5


@pytest.mark.parametrize(
    ("relevant", "numbers", "expected"),
    [
        ([0, 0, 0], [1, 2, 3], 0.0),
        ([1, 1, 1], [1, 2, 3], 1.0),
        ([1, 0, 0], [3, 2, 1], 1.0),
        ([0, 1, 0], [3, 2, 1], 0.5),
        ([1, 0, 1], [3, 2, 1], (1 + 2 / 3) / 2),
        ([0, 1, 1], [3, 2, 1], 2 / 3),  # the envelope
        ([1, 1, 0, 0], [1, 1, 1, 1], 0.5),  # all at once: one recall level
        ([1, 1, 0, 1], [2, 2, 1, 0], (1 + 3 / 4) / 2),  # two of three found at one threshold count once
    ],
)
def test_highlight_precision_by_hand(relevant: list[int], numbers: list[float], expected: float) -> None:
    found = highlight_precision(np.array(relevant, dtype=bool), np.array(numbers, dtype=float))
    assert found == pytest.approx(expected)


def test_highlights_by_hand() -> None:
    """Six seconds, three clips; annotators say (4, 1), (2, 2), nothing. Best number: clip 1."""
    saliency = Saliency((0, 1), ((4, 1), (2, 2)))
    assert highlight_scores([0.2, 0.9, 0.5], saliency, 6.0, mark=2) == (pytest.approx((5 / 6 + 1) / 2), 1.0)
    assert highlight_scores([0.2, 0.9, 0.5], saliency, 6.0, mark=4) == (pytest.approx((1 / 3 + 0) / 2), 0.0)
    assert highlight_scores([0.2, 0.9], saliency, 6.0, mark=2)[0] == 1.0, "what has no number has 0"
    assert highlight_scores([0.0, 0.0, 0.0, 9.0], saliency, 6.0, mark=2)[1] == 0.0, "a clip past the video"
    assert highlight_scores([], saliency, 6.0, mark=2) == (0.0, 0.0)


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.permutations(range(8)))
def test_only_the_order_of_numbers_matters(relevant: list[bool], numbers: list[int]) -> None:
    relevant_C, numbers_C = np.array(relevant), np.array(numbers[: len(relevant)], dtype=float)
    value = highlight_precision(relevant_C, numbers_C)
    assert highlight_precision(relevant_C, numbers_C * 3 - 7) == pytest.approx(value)
    order = np.argsort(-numbers_C)
    assert voc_precision(list(relevant_C[order]), int(relevant_C.sum())) == pytest.approx(value), "no ties: VOC's AP"


LINES = [
    {"qid": 1, "query": "a dog", "vid": "v1", "duration": 6, "relevant_windows": [[0, 4]], "relevant_clip_ids": [0, 1],
     "saliency_scores": [[4, 1], [2, 2]]},
    {"qid": 2, "query": "a cat", "vid": "v2", "duration": 6, "relevant_windows": [[2, 4]], "relevant_clip_ids": [1],
     "saliency_scores": [[4, 4]]},
]  # fmt: skip


def scored(folder: Path, *rows: Any, protocol: str = "moment-detr") -> FileEvaluation:
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, LINES)))
    (folder / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return evaluate_file(folder / "p.jsonl", Annotations(folder / "a.jsonl", "qvhighlights"), protocol=protocol)


ANSWERS: list[dict[str, Any]] = [
    {"qid": 1, "query": "a dog", "vid": "v1", "pred_relevant_windows": [[0, 1, 0.2], [0, 4, 0.8]],
     "pred_saliency_scores": [0.2, 0.9, 0.5]},
    {"qid": 2, "query": "a cat", "vid": "v2", "pred_relevant_windows": [[2, 4], [0, 1]],
     "pred_saliency_scores": [9, 1, 0]},
]  # fmt: skip


def test_a_file_in_their_form(tmp_path: Path) -> None:
    found = scored(tmp_path, *ANSWERS)
    assert found.ranked is not None and found.ranked.maps["mAP"] == 1.0 and found.scores.miou == 1.0
    assert found.ranked.highlights["HL mAP >= 2"] == pytest.approx(((5 / 6 + 1) / 2 + 0.5) / 2)
    assert found.ranked.highlights["HL Hit@1 >= 2"] == 0.5
    assert "HL Hit@1 >= 4" in found.table() and found.as_dict()["map"]["short"] == 1.0


def test_their_form_answers_other_protocols_with_its_best_window(tmp_path: Path) -> None:
    found = scored(tmp_path, *ANSWERS, protocol="time-r1")
    assert found.ranked is None and found.scores.miou == 1.0


def test_what_is_not_answered_is_a_miss(tmp_path: Path) -> None:
    found = scored(tmp_path, ANSWERS[0])
    assert found.ranked is not None and found.ranked.maps["mAP"] == 0.5 and found.scores.missing == ("2",)
    assert found.ranked.highlights["HL Hit@1 >= 2"] == 0.5
    empty = scored(tmp_path, ANSWERS[0], {"qid": 2, "pred_relevant_windows": []})
    assert empty.ranked is not None and empty.ranked.maps["mAP"] == 0.5 and empty.scores.unparsable == ("2",)


def test_an_answer_alone_is_a_list_of_one(tmp_path: Path) -> None:
    alone = scored(tmp_path, {"qid": 1, "predicted": [0, 4]})
    listed = scored(tmp_path, {"qid": 1, "pred_relevant_windows": [[0, 4, 0.3]]})
    assert alone.ranked is not None and listed.ranked is not None and alone.ranked.maps == listed.ranked.maps
    assert alone.ranked.maps["mAP"] > 0 and alone.ranked.highlights == {}


@pytest.mark.parametrize(
    "row",
    [{"pred_relevant_windows": [[0, 1, "x"]]}, {"pred_relevant_windows": "0 to 1"}, {"pred_relevant_windows": [[1]]},
     {"pred_relevant_windows": [[0, 1, 1]] * 1001}, {"pred_relevant_windows": [[0, float("nan"), 1]]},
     {"pred_relevant_windows": [], "pred_saliency_scores": [None]},
     {"pred_relevant_windows": [], "pred_saliency_scores": [float("inf")]}],
)  # fmt: skip
def test_a_wrong_line_is_one_message(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(AnnotationError, match=r"line 1: expected .*(finite)"):
        scored(tmp_path, {"qid": 1} | row)


def test_two_files_are_compared(tmp_path: Path) -> None:
    scored(tmp_path, *ANSWERS)
    (tmp_path / "b.jsonl").write_text(json.dumps({"qid": 1, "predicted": [0, 2]}))
    truth = Annotations(tmp_path / "a.jsonl", "qvhighlights")
    found = compare_files(tmp_path / "p.jsonl", tmp_path / "b.jsonl", truth)
    assert found.comparison.difference["miou"] == pytest.approx((0.5 + 0) / 2 - 1) and found.comparison.worse == 2
    assert found.as_dict()["annotations"]["kept"] == 2 and "B against A" in found.table()
    assert set(found.comparison.difference) == {"miou", "r1@0.3", "r1@0.5", "r1@0.7"}
    ranked = compare_files(tmp_path / "p.jsonl", tmp_path / "b.jsonl", truth, protocol="moment-detr").comparison
    assert ranked.a["mAP"] == 1.0 and ranked.difference["mAP"] == pytest.approx(ranked.b["mAP"] - 1)
    assert "HL mAP >= 4" not in ranked.difference, "b has no numbers for highlights"
    both = compare_files(tmp_path / "p.jsonl", tmp_path / "p.jsonl", truth, protocol="moment-detr")
    assert both.comparison.difference["HL Hit@1 >= 4"] == 0.0 and "HL mAP >= 4" in both.table()
