"""The learning rate falls as it should, through a whole run, and a run that is resumed may not change where it ends."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
from pydantic import ValidationError

from taro.core.errors import ConfigError
from taro.core.jsonl import read_jsonl
from taro.train.config import OptimizerConfig, TrainConfig
from taro.train.loop import train
from taro.train.run_dir import check_folder, write_facts
from taro.train.schedules import learning_rate


@pytest.mark.parametrize(("schedule", "middle"), [("linear", 0.55), ("cosine", 0.55)])
def test_both_falls_are_half_way_in_the_middle_and_never_below_the_end(schedule: str, middle: float) -> None:
    knobs = OptimizerConfig.model_validate({"lr": 1.0, "min_lr": 0.1, "warmup_steps": 2, "schedule": schedule})
    rates = [learning_rate(knobs, step, 12) for step in range(12)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[7] == pytest.approx(middle)
    assert all(a > b > 0.1 for a, b in itertools.pairwise(rates[2:]))
    assert learning_rate(knobs, 40, 12) == pytest.approx(0.1)


def test_a_warm_up_longer_than_the_run_is_all_of_it() -> None:
    knobs = OptimizerConfig(lr=1.0, warmup_steps=8, schedule="cosine")
    assert [learning_rate(knobs, step, 4) for step in range(4)] == [0.125, 0.25, 0.375, 0.5]


def test_a_run_follows_its_schedule(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(length={"amount": 3}, optimizer={"lr": 1e-3, "min_lr": 1e-4, "schedule": "cosine"})
    train(config)
    rates = [row["lr"] for row in read_jsonl(config.out / "metrics.jsonl") if "lr" in row]
    assert rates == pytest.approx([1e-4 + 9e-4 * (1 + math.cos(math.pi * step / 3)) / 2 for step in range(3)])


def test_the_length_may_change_only_where_no_rate_depends_on_it(make_config: Callable[..., TrainConfig]) -> None:
    for schedule, refused in (("constant", False), ("linear", True)):
        config = make_config(optimizer={"schedule": schedule}, length={"amount": 6})
        config.out.mkdir(exist_ok=True)
        write_facts(config, {})
        longer = make_config(optimizer={"schedule": schedule}, length={"amount": 8})
        if refused:
            with pytest.raises(ConfigError, match=r"Changed: length.amount: 6 -> 8"):
                check_folder(longer, resume=True)
        else:
            check_folder(longer, resume=True)


@pytest.mark.parametrize("knobs", [{"min_lr": 1e-7}, {"min_lr": 1e-3, "schedule": "linear"}])
def test_an_end_that_nothing_reaches_is_refused(knobs: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="where schedule linear or cosine ends"):
        OptimizerConfig.model_validate({"lr": 1e-6, **knobs})
