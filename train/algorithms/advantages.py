"""Advantages: a rollout against the other rollouts of its group.

Guided and free rollouts of one group share mean and spread. Left out: any value function, any normalisation across
groups. Legend: B prompts, G rollouts of a group."""

from __future__ import annotations

from typing import Literal

import numpy as np

__all__ = ["group_advantages", "zero_variance"]

STD_FLOOR = 1e-6
"""Prevents a division by zero where all rollouts of a group earn the same."""


def group_advantages(rewards_BG: np.ndarray, *, scale: Literal["std", "none"] = "std") -> np.ndarray:
    """Advantages [B, G]: `A_i = (R_i - mean) / (std + 1e-6)`, std with Bessel's correction (GRPO, arXiv 2402.03300).

    Args: scale: "std" is GRPO; "none" leaves out the division, which is Dr. GRPO (arXiv 2503.20783).

    >>> group_advantages(np.array([[1.0, 2.0, 3.0]])).round(4).tolist()
    [[-1.0, 0.0, 1.0]]
    >>> group_advantages(np.array([[1.0, 2.0, 4.5]]), scale="none").tolist()
    [[-1.5, -0.5, 2.0]]
    >>> group_advantages(np.array([[0.1, 0.1, 0.1]])).tolist()
    [[0.0, 0.0, 0.0]]
    """
    assert rewards_BG.ndim == 2, f"rewards are [B, G], got {rewards_BG.shape}"
    # Equal rewards give exactly 0, even where their mean rounds (0.1 three times).
    equal_B1 = zero_variance(rewards_BG)[:, None]
    centred_BG = np.where(equal_B1, 0.0, rewards_BG - rewards_BG.mean(axis=1, keepdims=True))
    if scale == "none" or rewards_BG.shape[1] < 2:
        return np.asarray(centred_BG)
    return np.asarray(centred_BG / (rewards_BG.std(axis=1, ddof=1, keepdims=True) + STD_FLOOR))


def zero_variance(rewards_BG: np.ndarray) -> np.ndarray:
    """Which groups [B] hold equal rewards only, and so teach nothing.

    >>> zero_variance(np.array([[1.0, 1.0], [1.0, 2.0]])).tolist()
    [True, False]
    """
    return np.asarray(rewards_BG.max(axis=1) == rewards_BG.min(axis=1))
