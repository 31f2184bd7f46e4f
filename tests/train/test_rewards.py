"""Rewards: cases computed by hand, bounds and symmetries over many draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taro.grounding.moment import Moment
from taro.train.config import RewardConfig
from taro.train.rewards import format_reward, log_prob_drop, rewards, sensitivity_bonus, timestamp_aware_iou

SECONDS = st.floats(0, 100)


def response(start_s: float, end_s: float) -> str:
    answer = f"<answer>{start_s:.2f}s to {end_s:.2f}s</answer>"
    return f"<think>\nFrom {start_s}s to {end_s}s, it blinks.\n</think>\n{answer}"


@pytest.mark.parametrize(("predicted", "window", "duration_s", "expected"), [
    (Moment(2, 8), Moment(2, 8), 10, 1.0),
    (Moment(0, 10), Moment(2, 8), 10, 0.6 * 0.8 * 0.8),
    (Moment(4, 8), Moment(2, 8), 10, 4 / 6 * 0.8),
    (Moment(8, 2), Moment(2, 8), 10, 0.0),  # reversed
    (Moment(5, 5), Moment(2, 8), 10, 0.0),  # nothing in common with anything
    (Moment(5, 500), Moment(5, 10), 30, 0.0),  # the released code pays -0.155
    (Moment(2, 10), Moment(2, 99), 10, 1.0),  # ground truth clipped to the video
    (Moment(math.nan, 3), Moment(2, 8), 10, 0.0),
    (None, Moment(2, 8), 10, 0.0),
])
def test_timestamp_aware_iou_by_hand(predicted: Moment | None, window: Moment, duration_s: float,
                                     expected: float) -> None:
    assert timestamp_aware_iou(predicted, [window], duration_s) == pytest.approx(expected)


@given(SECONDS, SECONDS, SECONDS, SECONDS, st.floats(0.1, 100))
def test_timestamp_aware_iou_is_in_0_1_and_never_above_iou(
        a: float, b: float, c: float, d: float, duration_s: float) -> None:
    from taro.grounding.moment import iou

    window = Moment(min(c, d), max(c, d))
    value = timestamp_aware_iou(Moment(a, b), [window], duration_s)
    assert 0.0 <= value <= iou(Moment(a, b), window.clip(duration_s)) + 1e-12


def test_the_best_of_several_windows_counts() -> None:
    far, near = Moment(0, 1), Moment(5, 7)
    assert timestamp_aware_iou(Moment(5, 7), [far, near], 10) == 1.0


@pytest.mark.parametrize(("text", "expected"), [
    (response(1, 2), 1.0),
    ("\n" + response(1, 2) + " \n", 1.0),
    ("x" + response(1, 2), 0.0),
    (response(1, 2).replace("</think>", "</think></think>"), 0.0),
    ("<answer>1s to 2s</answer><think></think>", 0.0),
    ("", 0.0),
])
def test_format_wants_each_tag_once_and_nothing_else(text: str, expected: float) -> None:
    assert format_reward(text) == expected


def test_drop_is_zero_where_nothing_is_disrupted_and_nan_without_tokens() -> None:
    p = np.log(np.random.default_rng(0).random((2, 3, 5)))
    over = np.ones((2, 3, 5), dtype=bool)
    over[0, 0] = False
    d = log_prob_drop(p, p, over)
    assert math.isnan(d[0, 0])
    assert (d.reshape(-1)[1:] == 0).all()
    bonus = sensitivity_bonus(d, np.ones((2, 3)))
    assert (bonus == 0).all(), "no drop is above the mean where all are equal"


def test_two_rollouts_of_one_group_get_different_bonuses() -> None:
    """docs/method.md, difference 1: the released code gives the bonus to all passing rollouts of a group or to none."""
    p = np.log(np.array([[[0.9, 0.9], [0.9, 0.9], [0.9, 0.9]]]))
    q = np.log(np.array([[[0.1, 0.1], [0.8, 0.8], [0.05, 0.05]]]))
    over = np.ones((1, 3, 2), dtype=bool)
    parts = rewards([[response(2, 6), response(2, 6), response(7, 9)]], [[Moment(2, 6)]], [10.0],
                    log_prob_drop(p, q, over))
    assert parts.bonus_BG.tolist() == [[0.3, 0.0, 0.0]]  # sensitive and right; right only; sensitive only
    assert parts.total_BG[0, 0] == pytest.approx(2.3) and parts.total_BG[0, 1] == pytest.approx(2.0)


def test_tokens_outside_the_reasoning_do_not_move_the_drop() -> None:
    p, q = np.zeros((1, 1, 4)), np.array([[[-1.0, -1.0, -50.0, -50.0]]])
    over = np.array([[[True, True, False, False]]])
    assert log_prob_drop(p, q, over).tolist() == [[1.0]]


@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(0, 1)), min_size=2, max_size=8))
def test_permuting_a_group_permutes_its_bonuses(group: list[tuple[float, float]]) -> None:
    drop, iou = np.array([[g[0] for g in group]]), np.array([[g[1] for g in group]])
    order = np.random.default_rng(len(group)).permutation(len(group))
    np.testing.assert_array_equal(sensitivity_bonus(drop[:, order], iou[:, order]),
                                  sensitivity_bonus(drop, iou)[:, order])


def test_gate_margin_and_missing_drops() -> None:
    drop, iou = np.array([[0.5, 0.1, np.nan]]), np.array([[0.7, 0.9, 0.9]])
    assert sensitivity_bonus(drop, iou).tolist() == [[0.3, 0, 0]]  # mean 0.3 over the two that have a drop
    assert sensitivity_bonus(drop, iou, gate=">").tolist() == [[0, 0, 0]]
    assert sensitivity_bonus(drop, iou, margin=0.3).tolist() == [[0, 0, 0]]
    assert sensitivity_bonus(np.full((1, 3), np.nan), np.ones((1, 3))).tolist() == [[0, 0, 0]]


def test_parts_sum_to_the_total_and_no_think_accepts_an_answer_alone() -> None:
    text = "<answer>2.00s to 6.00s</answer>"
    drop = np.array([[0.0]])
    assert rewards([[text]], [[Moment(2, 6)]], [10.0], drop).total_BG.tolist() == [[1.0]]
    parts = rewards([[text]], [[Moment(2, 6)]], [10.0], drop, RewardConfig(no_think=True, drop_over="response"))
    assert parts.total_BG.tolist() == (parts.format_BG + parts.tiou_BG + parts.bonus_BG).tolist() == [[2.0]]
