"""One tiny policy and one tiny shard set for all tests of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from taro.models.load import load_policy
from taro.train.config import TrainConfig
from tests.train.tiny import tiny_policy, tiny_shards


@dataclass(frozen=True)
class Tiny:
    policy: Path
    shards: Path

    def settings(self, out: Path, **changes: dict[str, Any]) -> dict[str, Any]:
        """A run of 6 steps, 2 prompts x 4 rollouts, 2 guided steps, checkpoints every 2; sections can be changed."""
        data: dict[str, Any] = {
            "policy": str(self.policy), "shards": str(self.shards), "out": str(out),
            "length": {"unit": "steps", "amount": 6},
            "curriculum": {"unit": "steps", "amount": 2},
            "rollout": {"prompts": 2, "group": 4, "max_new_tokens": 96, "min_free_tokens": 48},
            "optimizer": {"lr": 1e-3, "weight_decay": 0.0},
            "checkpoint": {"every": 2},
        }
        for name, section in changes.items():
            data[name] = {**data.get(name, {}), **section} if isinstance(section, dict) else section
        return data

    def config(self, out: Path, **changes: Any) -> TrainConfig:
        return TrainConfig.model_validate(self.settings(out, **changes))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    policy = tiny_policy(folder)
    return Tiny(policy, tiny_shards(folder / "shards", load_policy(policy)))


@pytest.fixture
def make_config(tiny: Tiny, tmp_path: Path) -> Callable[..., TrainConfig]:
    return lambda **changes: tiny.config(tmp_path / "run", **changes)
