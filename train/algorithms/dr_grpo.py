"""Dr. GRPO (arXiv 2503.20783): GRPO without its two normalisations, by spread of the group and by length."""

from __future__ import annotations

import numpy as np
import torch

from taro.train.algorithms.advantages import group_advantages
from taro.train.algorithms.grpo import GRPO

__all__ = ["DrGRPO"]


class DrGRPO(GRPO):
    """`A = R - mean` of the group; GRPO's surrogate; a constant denominator."""

    def advantages(self, rewards_BG: np.ndarray) -> np.ndarray:
        """`group_advantages`, not divided."""
        return group_advantages(rewards_BG, scale="none")

    def denominator(self, mask_BGR: torch.Tensor, *, max_new_tokens: int) -> float:
        """`B * G * max_new_tokens`, whatever the lengths are."""
        return float(mask_BGR.shape[0] * mask_BGR.shape[1] * max_new_tokens)
