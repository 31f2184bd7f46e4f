"""Metrics against numbers worked out by hand, and the properties that a score must have."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taro.core.errors import AnnotationError, ConfigError
from taro.grounding.answers import reasoning_stats
from taro.grounding.moment import Moment
from taro.metrics.scores import PROTOCOLS, Prediction, evaluate_predictions, first_span_hit


def predict(
    span: tuple[float, float] | None,
    *windows: tuple[float, float],
    video: str = "v",
    duration_s: float | None = 20.0,
    reasoning: str | None = None,
    missing: bool = False,
    query_id: str = "q",
) -> Prediction:
    moment = None if span is None else Moment(*span)
    return Prediction(query_id, video, moment, tuple(Moment(*w) for w in windows), duration_s, reasoning, missing)


def test_four_queries_by_hand() -> None:
    """IoUs: 5/10, 0, 6/10 (the second window), 1; so mIoU 2.1/4, R1@.3 3/4, R1@.5 3/4, R1@.7 1/4."""
    scores = evaluate_predictions(
        [
            predict((0, 10), (5, 10)),
            predict((0, 5), (5, 10)),
            predict((0, 10), (15, 20), (2, 8)),
            predict((3, 4), (3, 4)),
        ]
    )
    assert scores.miou == pytest.approx(2.1 / 4)
    assert [scores.metrics[f"r1@{t}"] for t in (0.3, 0.5, 0.7)] == [0.75, 0.75, 0.25]


@pytest.mark.parametrize(("protocol", "at_half"), [("taro", 1), ("time-r1", 0), ("taro-official", 1), ("timelens", 1)])
def test_a_threshold_is_reached_or_passed(protocol: str, at_half: int) -> None:
    assert evaluate_predictions([predict((0, 10), (5, 10))], protocol=protocol).metrics["r1@0.5"] == at_half


@pytest.mark.parametrize(("protocol", "expected"), [("taro", 1.0), ("time-r1", 0.0), ("timelens", 0.0)])
def test_which_window_counts(protocol: str, expected: float) -> None:
    assert evaluate_predictions([predict((6, 8), (0, 5), (6, 8))], protocol=protocol).miou == expected


@pytest.mark.parametrize(("protocol", "expected"), [("taro", 1.0), ("time-r1", 10 / 15)])
def test_ground_truth_is_clipped_by_taro_alone(protocol: str, expected: float) -> None:
    assert evaluate_predictions([predict((10, 20), (10, 25))], protocol=protocol).miou == pytest.approx(expected)


def test_an_answer_outside_the_video_is_not_helped_by_clipping() -> None:
    assert evaluate_predictions([predict((5, 500), (5, 20))]).miou == pytest.approx(15 / 495)
    assert evaluate_predictions([predict((9, 2), (2, 9))]).miou == 0.0
    assert evaluate_predictions([predict((3, 3), (2, 9))]).miou == 0.0


def test_missing_and_unparsable_are_misses_and_are_listed() -> None:
    scores = evaluate_predictions(
        [
            predict((0, 10), (0, 10), query_id="a"),
            predict(None, (0, 10), query_id="b", missing=True),
            predict(None, (0, 10), query_id="c"),
            predict(None, (0, 10), query_id="d"),
        ]
    )
    assert scores.miou == 0.25
    assert scores.missing == ("b",) and scores.unparsable == ("c", "d")
    assert scores.answered["miou"] == pytest.approx(1 / 3)
    data = json.loads(json.dumps(scores.as_dict()))
    assert (data["queries"], data["missing"], data["unparsable"], data["protocol"]) == (4, 1, 2, "taro")
    assert "missing 1 (b); unparsable 2 (c, d)" in scores.table()


def test_baselines_by_hand() -> None:
    """Both windows are the first quarter: the whole video has IoU 1/4, the quarter itself is on the grid: 1."""
    scores = evaluate_predictions([predict((0, 1), (0, 5)), predict((0, 1), (0, 10), duration_s=40.0)])
    assert scores.baselines["whole video"] == {"miou": 0.25, "r1@0.3": 0.0, "r1@0.5": 0.0, "r1@0.7": 0.0}
    assert scores.baselines["best constant window"]["miou"] == pytest.approx(1.0)
    assert scores.constant_window == (0.0, 0.25)
    assert "0.00 to 0.25 of the duration, searched on these queries" in scores.table()


MOMENTS = st.tuples(st.floats(0, 20), st.floats(0, 20)).map(lambda pair: (min(pair), max(pair)))


@given(st.lists(MOMENTS, min_size=1, max_size=4), st.sampled_from(sorted(PROTOCOLS)))
def test_the_whole_video_baseline_is_the_score_of_predicting_it(
    windows: list[tuple[float, float]], protocol: str
) -> None:
    scores = evaluate_predictions([predict((0, 20), *windows)], protocol=protocol)
    assert scores.metrics == pytest.approx(scores.baselines["whole video"])
    assert scores.baselines["best constant window"]["miou"] >= scores.miou - 1e-12


def test_no_baseline_where_a_duration_is_unknown() -> None:
    scores = evaluate_predictions([predict((0, 1), (0, 1)), predict((0, 1), (0, 1), duration_s=None)])
    assert scores.baselines == {} and "no baselines" in scores.table()


def many(videos: int, each: int) -> list[Prediction]:
    """Queries of a video are all right or all wrong, so a video is worth one draw however many queries it has."""
    return [predict((0, 10) if v % 2 else (15, 20), (0, 10), video=f"v{v}") for v in range(videos) for _ in range(each)]


def test_the_interval_is_over_videos() -> None:
    """Half the videos are right: the standard error is sqrt(1/4 / videos), whatever the number of queries."""
    for each in (1, 25):
        interval = evaluate_predictions(many(100, each)).intervals["miou"]
        assert interval is not None
        assert interval[0] == pytest.approx(0.5 - 1.96 * 0.05, abs=0.02)
        assert interval[1] == pytest.approx(0.5 + 1.96 * 0.05, abs=0.02)


def test_the_interval_is_a_function_of_the_seed() -> None:
    rows = [predict((0, v + 1), (0, 20), video=f"v{v}") for v in range(20)]
    first, again = (evaluate_predictions(rows, bootstrap_seed=3).intervals for _ in range(2))
    assert first == again
    assert first != evaluate_predictions(rows, bootstrap_seed=4).intervals


def test_one_video_has_no_interval() -> None:
    scores = evaluate_predictions(many(1, 4))
    assert set(scores.intervals.values()) == {None}
    assert scores.table().splitlines()[3].split()[-4:] == ["-"] * 4


def test_reasoning_statistics_by_hand() -> None:
    scores = evaluate_predictions(
        [
            predict((0, 5), (0, 5), reasoning="From 0.0s to 4.0s, here"),  # IoU .8: right
            predict((0, 5), (0, 5), reasoning="From 4.0s to 9.0s, then 0.0s to 5.0s"),  # the first is wrong
            predict((0, 5), (0, 5), reasoning="it happens early"),
            predict(None, (0, 5), reasoning=None),
            predict(None, (0, 5), missing=True),  # no response: in no share
        ]
    )
    assert scores.timestamps == 0.5 and scores.first_span == 0.25
    assert evaluate_predictions([predict((0, 5), (0, 5))]).timestamps is None


def test_a_response_is_cut_to_its_reasoning() -> None:
    response = "<think>it is early</think><answer>0.00s to 5.00s</answer>"
    assert evaluate_predictions([predict((0, 5), (0, 5), reasoning=response)]).timestamps == 0.0


def test_first_span_at_its_threshold() -> None:
    assert first_span_hit(reasoning_stats("0.0s to 10.0s"), [Moment(50, 60), Moment(5, 10)])
    assert not first_span_hit(reasoning_stats("0.0s to 10.1s"), [Moment(5, 10)])


def test_wrong_use_is_answered() -> None:
    with pytest.raises(ConfigError, match="expected one of: taro, clock, time-r1"):
        evaluate_predictions([predict((0, 1), (0, 1))], protocol="iou")
    with pytest.raises(AnnotationError, match="nothing to evaluate"):
        evaluate_predictions([])
