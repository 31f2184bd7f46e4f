"""Rewards of the user's own: they reach totals, metrics and dumps, and what is no pure function is refused by name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from benchmarks.real_size import varies
from taro.core.errors import ConfigError
from taro.core.jsonl import read_jsonl
from taro.train.config import RewardConfig, TrainConfig
from taro.train.extra_rewards import EXAMPLES, check_extra, overlong
from taro.train.loop import train
from taro.train.run_dir import check_run

FUNCTIONS = '''
import itertools, random
def long(response): return response.tokens / 10
def right(response): return 1 if response.iou > 0.5 else 0
def true(response): return response.tokens > 3
def nothing(response): return None
def endless(response): return float("inf")
def chance(response): return random.random()
counter = itertools.count()
def counted(response): return float(next(counter))
def fails(response): return response.predicted[0]
def late(response):
    if response.key.startswith("clip"): raise LookupError("no such clip")
    return 0.0
number = 3
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with mine.py, where the run is started; nothing of it stays imported."""
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one != ""])
    yield tmp_path
    for name in ("mine", "broken"):
        sys.modules.pop(name, None)


def test_extra_rewards_reach_totals_metrics_and_dumps(here: Path, make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(length={"amount": 1}, reward={"extra": [["mine:long", 0.5], ["mine:right", -1.0]],
                                                       "overlong_tokens": 96})
    train(config)
    line = read_jsonl(config.out / "metrics.jsonl")[0]
    rows = read_jsonl(config.out / "rollouts" / "step-000000.jsonl")
    assert len(rows) == 8
    for row in rows:
        extra = row["extra"]
        assert list(extra) == ["long", "right", "overlong"] and extra["right"] == (row["iou"] > 0.5)
        assert extra["overlong"] == pytest.approx(-extra["long"] * 10 / 96)
        assert row["reward"] == pytest.approx(row["format"] + row["tiou"] + row["bonus"] + extra["long"] / 2
                                              - extra["right"] + extra["overlong"])
    for name in ("long", "right", "overlong"):
        assert line[f"extra/{name}"] == pytest.approx(np.mean([row["extra"][name] for row in rows]))
    assert line["reward"] == pytest.approx(np.mean([row["reward"] for row in rows]))
    assert line["extra/long"] * 10 == pytest.approx(line["length"])


@pytest.mark.parametrize(("name", "said"), [
    ("mine:true", "is True; expected a finite float"), ("mine:nothing", "is None; expected a finite float"),
    ("mine:endless", "is inf; expected a finite float"), ("mine:chance", "expected a pure function of the response"),
    ("mine:counted", "expected a pure function of the response"),
    ("mine:fails", "of clip example, query example raised TypeError"), ("mine:absent", "has no function absent"),
    ("mine:number", "has no function number"), ("nowhere_at_all:f", "cannot be imported from"),
    ("broken:f", "ZeroDivisionError")])
def test_what_is_no_reward_is_refused_before_anything_is_loaded(
        here: Path, make_config: Callable[..., TrainConfig], name: str, said: str) -> None:
    (here / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError) as refused:
        check_run(make_config(reward={"extra": [[name, 1.0]]}), resume=False)
    assert name.partition(":")[2] in str(refused.value) or name in str(refused.value)
    assert said in str(refused.value)


def test_a_function_that_fails_on_a_real_rollout_is_named_with_it(
        here: Path, make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(length={"amount": 1}, reward={"extra": [["mine:late", 1.0]]})
    check_extra(config.reward.extra)
    with pytest.raises(ConfigError, match=r"mine:late of clip clip-0\d, query q\d raised LookupError: no such clip; "
                                          "the response was '"):
        train(config)


@pytest.mark.parametrize(("reward", "said"), [
    ({"extra": [["mine", 1.0]]}, "expected module:function"), ({"extra": [["../mine:f", 1.0]]}, "module:function"),
    ({"extra": [["a:f", 1.0], ["b:f", 1.0]]}, "a name of its own"),
    ({"extra": [["a:overlong", 1.0]], "overlong_tokens": 4}, "a name of its own")])
def test_names_that_cannot_be_told_apart_are_refused(reward: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RewardConfig.model_validate(reward)


def test_more_overlong_tokens_than_a_response_has_are_refused(make_config: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ValidationError, match="are more tokens than a response may"):
        make_config(reward={"overlong_tokens": 97})
    assert [overlong(n, longest=96, cache=96) for n in (0, 48, 96)] == [0.0, -0.5, -1.0]


def test_the_reward_of_the_benchmark_differs_wherever_responses_do() -> None:
    """Even in one byte that is no letter; over many texts it is spread as evenly as chance."""
    values = [varies(replace(EXAMPLES[0], text="\x00" * 40 + chr(number))) for number in range(500)]
    assert len(set(values)) == 500 and all(0 <= value < 1 for value in values)
    assert np.std(values) == pytest.approx(12**-0.5, rel=0.1) and varies(EXAMPLES[0]) == varies(EXAMPLES[0])
