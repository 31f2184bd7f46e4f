"""GRPO (arXiv 2402.03300), the method's algorithm: group-relative advantages over their spread, a mean over tokens."""

from __future__ import annotations

import numpy as np
import torch

from taro.train.algorithms.advantages import group_advantages
from taro.train.algorithms.base import TokenLoss, Tokens
from taro.train.algorithms.losses import clip_acts, clipped_surrogate
from taro.train.config import LossConfig

__all__ = ["GRPO"]


class GRPO:
    """`A = (R - mean) / std` of the group; the clipped surrogate; the valid tokens of the mini-batch."""

    by_group = True

    def __init__(self, config: LossConfig) -> None:
        self._config = config

    def advantages(self, rewards_BG: np.ndarray) -> np.ndarray:
        """`group_advantages`, divided by the group's standard deviation."""
        return group_advantages(rewards_BG, scale="std")

    def token_loss(self, tokens: Tokens) -> TokenLoss:
        """`clipped_surrogate`."""
        knobs = self._config
        loss_BGR = clipped_surrogate(tokens.logprobs_BGR, tokens.old_BGR, tokens.advantages_BG, clip_low=knobs.clip_low,
                                     clip_high=knobs.clip_high, dual_clip=knobs.dual_clip)
        return TokenLoss(loss_BGR, clip_acts(tokens.logprobs_BGR, tokens.old_BGR, tokens.advantages_BG,
                                             clip_low=knobs.clip_low, clip_high=knobs.clip_high))

    def token_weights(self, mask_BGR: torch.Tensor) -> torch.Tensor:
        """Every token counts once."""
        return mask_BGR.new_ones((), dtype=torch.float32)

    def denominator(self, mask_BGR: torch.Tensor, *, max_new_tokens: int) -> float:
        """The number of valid tokens."""
        return float(mask_BGR.sum())
