"""The reference of a run that trains adapters: its own policy with them off."""

from __future__ import annotations

import torch

from taro.models.adapters import adapters_off
from taro.models.policy import Policy
from taro.train.config import TrainConfig
from taro.train.reference import Reference
from taro.train.rollouts import RolloutBatch, score_prompts

__all__ = ["without_adapters"]


def without_adapters(config: TrainConfig, policy: Policy, *, bf16: bool) -> Reference | None:
    """The start policy of a run, which is its own policy with its adapters off; None where `loss.kl` is 0."""
    if config.loss.kl == 0:
        return None

    def scores(batch: RolloutBatch) -> torch.Tensor:
        with adapters_off(policy):
            return score_prompts(policy, batch.prompts, batch, bf16=bf16)

    return scores
