"""A GPU that fills up while a run trains: the message has the plan beside what was in use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from taro.core.errors import TaroError
from taro.train.config import TrainConfig
from taro.train.loop import train
from tests.gpu.test_training import world_shards

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
]


def test_a_full_gpu_is_told_with_the_plan(tmp_path: Path) -> None:
    """torch may take no more than what it holds when the first step begins."""
    world_shards(tmp_path / "shards", "policy")
    config = TrainConfig.model_validate({
        "policy": "sandbox:policy", "shards": str(tmp_path / "shards"), "out": str(tmp_path / "run"),
        "length": {"unit": "steps", "amount": 1}, "rollout": {"prompts": 4, "group": 8, "max_new_tokens": 512}})
    torch.cuda.empty_cache()
    try:
        with pytest.raises(TaroError, match="the GPU's memory is full in the phase") as stopped:
            train(config, on_start=lambda _: torch.cuda.set_per_process_memory_fraction(1e-4))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "compute weights" in str(stopped.value) and "by the run (at most" in str(stopped.value)
