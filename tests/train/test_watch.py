"""A run that learns nothing says so once, with the likely cause; one that learns says nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taro.core.jsonl import read_jsonl
from taro.train.config import TrainConfig
from taro.train.loop import train
from taro.train.watch import WINDOW, Watch
from tests.train.conftest import Tiny

GOOD = {"guided": 0.5, "guided_fallbacks": 0, "zero_variance": 0.2, "grad_norm": 1.0, "entropy": 0.8, "format": 0.9,
        "truncated": 0.0, "reward": 1.0}


def said(*lines: dict[str, Any]) -> list[str]:
    watch = Watch()
    return [text for line in lines for text in watch.see({**GOOD, **line})]


@pytest.mark.parametrize(("line", "expected"), [
    ({"guided": 0.0, "guided_fallbacks": 8}, "with captions, or set"),
    ({"zero_variance": 1.0, "grad_norm": 0.0, "format": 0.0}, "the form that is asked for"),
    ({"zero_variance": 1.0, "grad_norm": 0.0, "truncated": 0.9}, "rollout.max_new_tokens"),
    ({"zero_variance": 1.0, "grad_norm": 0.0}, "rollout.temperature"),
    ({"grad_norm": 0.0}, "clip_fraction"),
])
def test_a_sign_is_said_once_after_enough_steps_in_a_row(line: dict[str, Any], expected: str) -> None:
    assert said(*[line] * (WINDOW - 1)) == [] == said(*[line, line, {}, line, line] * 4), "not in a row"
    (text,) = said({}, {}, *[line] * 30)
    assert expected.lower() in text.lower()


def test_entropy_that_falls_to_nothing_is_said_and_low_from_the_start_is_not() -> None:
    (text,) = said(*[{"entropy": 0.8 * 0.5**step} for step in range(20)])
    assert "fell from" in text and "loss.kl" in text
    assert said(*[{"entropy": 0.05}] * 30) == []
    assert said(*[{"entropy": float("nan")}] * 30) == [], "no token was drawn"


@given(st.lists(st.fixed_dictionaries({
    "zero_variance": st.floats(0, 0.99), "grad_norm": st.floats(1e-6, 1e3), "entropy": st.floats(0.5, 2.0),
    "guided": st.floats(0.1, 1.0), "guided_fallbacks": st.integers(0, 100)}), max_size=30))
def test_a_run_that_learns_says_nothing(lines: list[dict[str, Any]]) -> None:
    assert said(*lines) == []


def test_real_runs_say_it_in_the_log_and_write_what_it_is_read_from(
        tiny: Tiny, make_config: Callable[..., TrainConfig], caplog: pytest.LogCaptureFixture) -> None:
    """The base of the tiny policy writes noise: no response has the form, so all groups are equal."""
    config = make_config(policy=str(tiny.policy.parent / "base"), rollout={"max_new_tokens": 16,
                         "min_free_tokens": 4}, length={"amount": WINDOW + 1})
    with caplog.at_level(logging.WARNING, logger="taro"):
        train(config)
    texts = [record.getMessage() for record in caplog.records if "the last" in record.getMessage()]
    assert len(texts) == 1 and "equal rewards" in texts[0], texts
    rows = read_jsonl(config.out / "metrics.jsonl")
    assert all(row["length_min"] <= row["length"] <= row["length_max"] == 16 for row in rows)
    assert all(row["reward_std"] == 0 and row["entropy"] > 1 for row in rows), "random weights are near uniform"
