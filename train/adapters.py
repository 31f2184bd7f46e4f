"""A run that trains adapters: its policy, and its reference, which is the policy with its adapters off."""

from __future__ import annotations

from pathlib import Path

import torch

from taro.models.adapters import Lora, adapters_off, add_adapters
from taro.models.load import load_compute
from taro.models.policy import Policy
from taro.train.config import LoraConfig, TrainConfig
from taro.train.reference import Reference
from taro.train.rollouts import RolloutBatch, score_prompts

__all__ = ["load_with_adapters", "without_adapters"]


def load_with_adapters(config: LoraConfig, folder: Path, device: torch.device, *, seed: int, bf16: bool) -> Policy:
    """The policy of a folder, frozen, with adapters that are trained. Raises ModelError as `load_policy`, ConfigError
    as `add_adapters`."""
    policy = load_compute(folder, device, bf16=bf16)
    add_adapters(policy, Lora(**config.model_dump()), seed=seed)
    return policy


def without_adapters(config: TrainConfig, policy: Policy, *, bf16: bool) -> Reference | None:
    """The start policy of a run, which is its own policy with its adapters off; None where `loss.kl` is 0."""
    if config.loss.kl == 0:
        return None

    def scores(batch: RolloutBatch) -> torch.Tensor:
        with adapters_off(policy):
            return score_prompts(policy, batch.prompts, batch, bf16=bf16)

    return scores
