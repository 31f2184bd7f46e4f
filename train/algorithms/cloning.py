"""What a guided rollout is worth: weights of `-log pi`, since a prefix that the policy did not draw has no ratio.

Four ways, by the name that `loss.off_policy` takes; `mask` is the method's (TaRO, section 3.3). Legend: B prompts, G
rollouts of a group."""

from __future__ import annotations

from typing import Literal

import numpy as np

__all__ = ["OffPolicy", "cloning_weights"]

OffPolicy = Literal["mask", "clone", "awr", "raft"]

AWR_CLAMP = 20.0
"""Prevents exp(A / beta) from growing without bound where beta is small."""


def cloning_weights(advantages_BG: np.ndarray, *, mode: OffPolicy = "mask", beta: float = 1.0) -> np.ndarray:
    """Weights [B, G]: mask `1[A > 0] A`, clone `1[A > 0]`, awr `exp(A / beta)`, raft 1 for the best of the group if it
    is above the mean.

    >>> A = np.array([[-1.0, 0.0, 0.5, 0.5]])
    >>> cloning_weights(A).tolist(), cloning_weights(A, mode="raft").tolist()
    ([[0.0, 0.0, 0.5, 0.5]], [[0.0, 0.0, 1.0, 0.0]])
    """
    positive_BG = advantages_BG > 0
    if mode == "mask":
        return np.asarray(np.where(positive_BG, advantages_BG, 0.0))
    if mode == "clone":
        return np.asarray(positive_BG, dtype=np.float64)
    if mode == "awr":
        return np.asarray(np.exp(np.clip(advantages_BG / beta, -AWR_CLAMP, AWR_CLAMP)))
    best_BG = np.arange(advantages_BG.shape[1])[None, :] == advantages_BG.argmax(axis=1)[:, None]
    return np.asarray(best_BG & positive_BG, dtype=np.float64)
