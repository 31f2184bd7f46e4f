"""Protocols, breakdowns and comparisons: worked out by hand, and the properties that they must have."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taro.core.errors import AnnotationError, ConfigError
from taro.grounding.answers import ANSWER_PARSERS, parse_answer
from taro.grounding.moment import Moment, iou
from taro.grounding.protocols import PROTOCOLS, merged, protocol_named, set_iou
from taro.metrics.bootstrap import resampled_means_RM
from taro.metrics.compare import compare_predictions
from taro.metrics.scores import Prediction, evaluate_predictions

Pair = tuple[float, float]


def predict(
    span: Pair | None, *windows: Pair, video: str = "v", duration_s: float | None = 20.0, query_id: str = "q"
) -> Prediction:
    moment = None if span is None else Moment(*span)
    return Prediction(query_id, video, moment, tuple(Moment(*w) for w in windows), duration_s)


def test_every_protocol_reads_answers() -> None:
    assert set(PROTOCOLS) == set(ANSWER_PARSERS)


@pytest.mark.parametrize(
    ("protocol", "miou"),
    [("taro", 5 / 10), ("taro-official", 5 / 10), ("moment-detr", 5 / 10), ("clock", 5 / 10),
     ("time-r1", 4 / 10), ("timelens", 4 / 10), ("taro-train", 4 / 10),
     ("union", 9 / 10)],
)  # fmt: skip
def test_one_answer_under_every_protocol(protocol: str, miou: float) -> None:
    """Answer [0, 10]; windows [0, 4] and [5, 10]: best 5/10, first 4/10, all of it 9/10."""
    assert evaluate_predictions([predict((0, 10), (0, 4), (5, 10))], protocol=protocol).miou == pytest.approx(miou)


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_half_is_reached_or_must_be_exceeded(protocol: str) -> None:
    strict = {"time-r1", "union"}
    scores = evaluate_predictions([predict((0, 10), (5, 10))], protocol=protocol)
    assert scores.metrics["r1@0.5"] == (protocol not in strict)


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
@pytest.mark.parametrize("span", [(9.0, 2.0), (3.0, 3.0), None])
def test_no_time_is_no_score(protocol: str, span: Pair | None) -> None:
    assert evaluate_predictions([predict(span, (2, 9))], protocol=protocol).metrics == dict.fromkeys(
        ("miou", "r1@0.3", "r1@0.5", "r1@0.7"), 0.0
    )


TEXTS = {
    "<think>at 3s</think><answer>1.0s to 2.5s</answer>": {
        "taro": (1, 2.5), "union": (1, 2.5), "moment-detr": (1, 2.5), "time-r1": None, "taro-official": (1, 2.5),
        "timelens": (1, 2), "taro-train": (1, 2.5), "clock": (1, 2.5),
    },
    "<answer>1.0 and 2.5</answer>": {
        "taro": None, "union": None, "moment-detr": None, "time-r1": (1, 2.5), "taro-official": (1, 2.5),
        "timelens": (1, 2.5),
    },
    "It is at 00:01:05 - 00:01:10": {
        "taro": None, "union": None, "moment-detr": None, "time-r1": None, "taro-official": (1, 10),
        "timelens": (65, 70),
    },
    "<answer>9 to 4</answer>": {
        "taro": None, "union": None, "moment-detr": None, "time-r1": (9, 4), "taro-official": (4, 9),
        "timelens": (9, 4),
    },
    "<answer>1 to 2</answer> no, <answer>3 to 4</answer>": {
        "taro": (3, 4), "union": (3, 4), "moment-detr": (3, 4), "time-r1": (3, 4), "taro-official": (3, 4),
        "timelens": (1, 2),
    },
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_one_response_under_every_protocol(text: str) -> None:
    for protocol, expected in TEXTS[text].items():
        assert parse_answer(text, protocol=protocol) == (None if expected is None else Moment(*expected)), protocol


MOMENTS = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(lambda ends: Moment(float(min(ends)), float(max(ends))))


def seconds_of(windows: list[Moment]) -> set[int]:
    """Whole seconds that are covered: a brute force that shares nothing with the code."""
    return {second for w in windows for second in range(int(w.start_s), int(w.end_s))}


@given(MOMENTS, st.lists(MOMENTS, max_size=5))
def test_set_iou_counts_seconds(predicted: Moment, windows: list[Moment]) -> None:
    ours, theirs = seconds_of([predicted]), seconds_of(windows)
    expected = len(ours & theirs) / len(ours | theirs) if ours else 0.0
    assert set_iou([predicted], windows) == pytest.approx(expected)
    assert seconds_of(list(merged(windows))) == theirs
    assert sum(w.duration_s for w in merged(windows)) == len(theirs)


@given(MOMENTS, MOMENTS)
def test_one_window_that_is_touched_has_one_iou(predicted: Moment, window: Moment) -> None:
    assert set_iou([predicted], [window]) == pytest.approx(iou(predicted, window))


@given(st.sampled_from(sorted(PROTOCOLS)), st.lists(st.lists(MOMENTS, min_size=1, max_size=4), min_size=1, max_size=4),
       st.floats(0, 10), st.floats(10.5, 20))  # fmt: skip
def test_ious_over_arrays_are_those_of_single_moments(
    protocol: str, windows: list[list[Moment]], start_s: float, end_s: float
) -> None:
    rules = protocol_named(protocol)
    truths = [rules.truths(w, 20.0) for w in windows]
    constant = np.full(len(windows), 1.0)
    found = rules.constant_ious(start_s * constant, end_s * constant, truths)
    assert found == pytest.approx([rules.iou(Moment(start_s, end_s), t) for t in truths])


def test_an_unknown_protocol_is_answered() -> None:
    with pytest.raises(ConfigError, match="expected one of: taro, clock, time-r1"):
        protocol_named("iou")


def test_breakdown_by_hand() -> None:
    scores = evaluate_predictions(
        [
            predict((0, 10), (0, 10), duration_s=60.0),  # short, first third
            predict((0, 5), (0, 10), duration_s=60.0),
            predict((20, 40), (20, 40), duration_s=60.0),  # middle, middle
            predict(None, (60, 100), duration_s=100.0),  # long, last
            predict((0, 1), (0, 1), (3, 4)),
            predict((0, 1), (0, 1), duration_s=None),
        ]
    )
    length, position = scores.breakdown["length"], scores.breakdown["position"]
    assert {name: (part["queries"], part["miou"]) for name, part in length.items()} == {
        "short (0, 10] s": (3, pytest.approx(2.5 / 3)), "middle (10, 30] s": (1, 1.0), "long (30, ..) s": (1, 0.0),
        "several windows": (1, 1.0),
    }  # fmt: skip
    assert {name: part["queries"] for name, part in position.items()} == {
        "first third": 2, "middle third": 1, "last third": 1, "several windows": 1, "unknown": 1
    }  # fmt: skip
    assert "last third" in scores.breakdown_table() and json.dumps(scores.as_dict())


@given(st.lists(st.tuples(MOMENTS, MOMENTS), min_size=1, max_size=12))
def test_groups_share_out_the_queries(pairs: list[tuple[Moment, Moment]]) -> None:
    rows = [Prediction(str(i), "v", a, (b,), 20.0) for i, (a, b) in enumerate(pairs)]
    scores = evaluate_predictions(rows)
    for groups in scores.breakdown.values():
        assert sum(part["queries"] for part in groups.values()) == len(rows)
        total = sum(part["queries"] * part["miou"] for part in groups.values())
        assert total / len(rows) == pytest.approx(scores.miou)


def system(ends: list[float]) -> list[Prediction]:
    """One query a video; the answer [0, end] has IoU end / 10."""
    return [predict((0, end), (0, 10), video=f"v{i}", query_id=str(i)) for i, end in enumerate(ends)]


def test_a_system_against_itself_and_swapped() -> None:
    a, b = system([2, 4, 6, 8, 10, 3]), system([3, 5, 6, 9, 1, 4])
    same = compare_predictions(a, a)
    assert set(same.difference.values()) == {0.0} and same.p_value["miou"] == 1.0
    assert (same.better, same.equal, same.worse) == (0, 6, 0)
    forth, back = compare_predictions(a, b), compare_predictions(b, a)
    assert forth.difference["miou"] == pytest.approx(-0.5 / 6) == -back.difference["miou"]
    assert (forth.better, forth.equal, forth.worse) == (4, 1, 1) == (back.worse, back.equal, back.better)
    low, high = forth.intervals["miou"] or (0.0, 0.0)
    assert back.intervals["miou"] == pytest.approx((-high, -low))
    assert json.loads(json.dumps(forth.as_dict()))["queries"] == 6 and "lower in 1 queries" in forth.table()


def test_pairing_sees_what_two_intervals_cannot() -> None:
    """B is better by 0.05 everywhere, while queries differ by 0.9: the intervals of A and B overlap, that of the
    difference is a point."""
    ends = [0.5 + 0.09 * i for i in range(100)]
    a, b = system(ends), system([end + 0.5 for end in ends])
    first, second = (evaluate_predictions(rows).intervals["miou"] for rows in (a, b))
    assert first is not None and second is not None and first[1] > second[0]
    compared = compare_predictions(a, b)
    assert compared.intervals["miou"] == pytest.approx((0.05, 0.05)) and compared.p_value["miou"] == 2 / 1001


def test_the_difference_of_two_systems_is_drawn_once() -> None:
    """Resampled differences are differences of the resampled scores: both systems see the same videos."""
    generator = np.random.default_rng(0)
    a_QM, b_QM = generator.random((30, 2)), generator.random((30, 2))
    videos = [f"v{i % 11}" for i in range(30)]
    a, b, change = (resampled_means_RM(values, videos, 5) for values in (a_QM, b_QM, b_QM - a_QM))
    assert a is not None and b is not None and change is not None
    np.testing.assert_allclose(b - a, change, atol=1e-12)


def test_other_queries_cannot_be_compared() -> None:
    a = system([1, 2])
    for b in (system([1]), list(reversed(a)), []):
        with pytest.raises(AnnotationError, match="the same queries in the same order"):
            compare_predictions(a, b)
    one = compare_predictions(system([1]), system([2]))
    assert one.intervals["miou"] is None and one.p_value["miou"] is None and "-" in one.table()
