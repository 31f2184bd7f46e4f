"""Queries drawn by a normal density at their difficulty."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from taro.core.errors import ConfigError
from taro.grounding.records import CandidatePaths, QueryRecord
from taro.shards.reader import QueryRef, open_shards
from taro.train.config import TrainConfig
from taro.train.data import TrainingData, _drawn_by_difficulty, select
from taro.train.settings.data import Gaussian


def refs(difficulties: list[float | None]) -> list[QueryRef]:
    return [QueryRef(f"clip-{at}", QueryRecord(id=f"q{at}", text="ab", split="train", windows_s=[(0.0, 1.0)],
                                               difficulty=one, paths=CandidatePaths()))
            for at, one in enumerate(difficulties)]


def test_what_is_drawn_follows_the_density() -> None:
    """Of 20,000 queries of all difficulties in [0, 1] 1,000 follow the Gaussian cut to [0, 1]: mean and spread within
    four standard errors of its own, to which drawing without repeats adds little."""
    every = refs(list(np.linspace(0, 1, 20_000)))
    drawn = np.array([ref.query.difficulty for ref in _drawn_by_difficulty(
        every, Gaussian(mean=0.05, std=0.2, queries=1000), seed=3)])
    x = np.linspace(0, 1, 100_001)
    density = np.exp(-((x - 0.05) / 0.2) ** 2 / 2)
    mean = float((x * density).sum() / density.sum())
    spread = float(np.sqrt((x**2 * density).sum() / density.sum() - mean**2))
    assert len(drawn) == 1000 and abs(drawn.mean() - mean) < 4 * spread / 1000**0.5 + 0.01 * mean
    assert abs(drawn.std() - spread) < 0.1 * spread


def test_draws_are_named() -> None:
    """The same queries whatever their order; others with another seed; those
    without difficulty never; in the order of the set."""
    every, knobs = refs([*np.linspace(0, 1, 500), None, None]), Gaussian(mean=0.3, std=0.1, queries=50)
    drawn = _drawn_by_difficulty(every, knobs, seed=0)
    ids = [ref.query.id for ref in drawn]
    assert ids == sorted(ids, key=lambda one: int(one[1:])) and len(set(ids)) == 50
    assert {ref.query.id for ref in _drawn_by_difficulty(every[::-1], knobs, seed=0)} == set(ids)
    assert {ref.query.id for ref in _drawn_by_difficulty(every, knobs, seed=1)} != set(ids)
    assert len(_drawn_by_difficulty(every, Gaussian(mean=-1e9, std=1e-3, queries=400), seed=0)) == 400, "far away"


def test_a_set_without_difficulties_is_told(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(data={"gaussian": {"mean": 0.0, "std": 1.0, "queries": 4}})
    source = config.sources[0]
    assert source.gaussian == Gaussian(mean=0.0, std=1.0, queries=4)
    found = select(source, open_shards(source.path), seed=0)
    assert len(found.refs) == 0 and found.left_out["gaussian"] == 6
    with pytest.raises(ConfigError, match="the filter gaussian has 0 queries"):
        TrainingData([found], prompts=2)
