"""The start policy, to which the KL of the loss is measured: frozen, and never trained.

A reference is a function of a step's rollouts, so that the loop does not ask where its weights lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from taro.models.load import load_frozen
from taro.train.config import TrainConfig
from taro.train.rollouts import RolloutBatch, score_prompts

__all__ = ["Reference", "open_reference"]

Reference = Callable[[RolloutBatch], torch.Tensor]
"""a batch -> log-probs [B, G, R] of its responses under the start policy, on the CPU"""


def open_reference(config: TrainConfig, folder: Path, device: torch.device, *, bf16: bool) -> Reference | None:
    """The start policy of a run in the model folder `folder`; None where `loss.kl` is 0. Raises ModelError as
    `load_policy`."""
    if config.loss.kl == 0:
        return None
    policy = load_frozen(folder, device, bf16=bf16)

    def scores(batch: RolloutBatch) -> torch.Tensor:
        return score_prompts(policy, batch.prompts, batch, bf16=bf16)

    return scores
