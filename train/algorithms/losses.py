"""The losses of METHOD 3: clipped policy gradient, advantage-weighted cloning of guided rollouts, KL to the start.

Every function returns values per token, [B, G, R]; `policy_loss` sums them over the valid tokens and divides by a
denominator of the GLOBAL batch that the caller counts once, so the gradient depends neither on micro-batch size nor
on padding. Left out: entropy bonus (0 in the method). Legend: B prompts, G rollouts, R response tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

__all__ = ["LossParts", "clipped_surrogate", "cloning_weights", "k3_kl", "policy_loss"]

LOG_RATIO_CLAMP = 20.0
"""Prevents exp overflow where a token's probability moved by more than e^20 between two passes."""
KL_CLAMP = 10.0
"""Prevents one token with a vanishing probability from dominating the batch's KL; its gradient is 0 beyond."""
AWR_CLAMP = 20.0
"""Prevents exp(A / beta) from growing without bound where beta is small."""

OffPolicy = Literal["mask", "clone", "awr", "raft"]


def clipped_surrogate(logprobs_BGR: torch.Tensor, old_BGR: torch.Tensor, advantages_BG: torch.Tensor, *,
                      clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float = 3.0) -> torch.Tensor:
    """Per-token PPO loss `max(-A r, -A clip(r, 1 - low, 1 + high))`, limited to `-A * dual_clip` where A < 0.

    Symbols: r = exp(log pi - log pi_old). Source: METHOD 3; PPO (1707.06347), dual clip (1912.09729).

    >>> lp, old, A = torch.log(torch.tensor([[[1.5]]])), torch.zeros(1, 1, 1), torch.tensor([[1.0]])
    >>> round(clipped_surrogate(lp, old, A).item(), 4), round(clipped_surrogate(lp * 5, old, -A).item(), 4)
    (-1.2, 3.0)
    """
    A_BG1 = advantages_BG.unsqueeze(-1)
    ratio_BGR = torch.exp((logprobs_BGR - old_BGR).clamp(-LOG_RATIO_CLAMP, LOG_RATIO_CLAMP))
    loss_BGR = torch.maximum(-A_BG1 * ratio_BGR, -A_BG1 * ratio_BGR.clamp(1 - clip_low, 1 + clip_high))
    return torch.where(A_BG1 < 0, torch.minimum(loss_BGR, -A_BG1 * dual_clip), loss_BGR)


def k3_kl(logprobs_BGR: torch.Tensor, reference_BGR: torch.Tensor) -> torch.Tensor:
    """Per-token `exp(x) - x - 1`, x = log pi_ref - log pi: the k3 estimator of KL(pi || pi_ref), never negative.

    Source: METHOD 3 ("low_var_kl"); http://joschu.net/blog/kl-approx.html.

    >>> round(k3_kl(torch.tensor([[[0.0]]]), torch.tensor([[[-1.0]]])).item(), 4)  # e^-1 + 1 - 1
    0.3679
    """
    x_BGR = (reference_BGR - logprobs_BGR).clamp(-LOG_RATIO_CLAMP, LOG_RATIO_CLAMP)
    return (torch.exp(x_BGR) - x_BGR - 1).clamp(max=KL_CLAMP)


def cloning_weights(advantages_BG: np.ndarray, *, mode: OffPolicy = "mask", beta: float = 1.0) -> np.ndarray:
    """Weight [B, G] of `-log pi` of a guided rollout (METHOD 3): mask `1[A > 0] A`, clone `1[A > 0]`, awr
    `exp(A / beta)`, raft 1 for the best of the group if it is above the mean.

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


@dataclass(frozen=True)
class LossParts:
    """A micro-batch's share of the global loss, and token sums (not means) to log."""

    loss: torch.Tensor
    kl_sum: float
    clipped_sum: float
    """tokens of free rollouts whose ratio the clip acts on"""


def policy_loss(logprobs_BGR: torch.Tensor, old_BGR: torch.Tensor, reference_BGR: torch.Tensor | None,
                advantages_BG: torch.Tensor, cloning_BG: torch.Tensor, guided_BG: torch.Tensor,
                mask_BGR: torch.Tensor, *, denominator: float, kl: float = 0.01, clip_low: float = 0.2,
                clip_high: float = 0.2, dual_clip: float = 3.0) -> LossParts:
    """`sum over valid tokens of (guided ? -w log pi : surrogate) + kl * k3, over denominator` (METHOD 3).

    Args: cloning_BG: from `cloning_weights`, used where guided_BG; reference_BGR: None where kl is 0; denominator:
    the valid tokens of the global batch (grpo) or the constant B * G * max_new_tokens (dr_grpo).
    """
    shapes = {tuple(x.shape) for x in (logprobs_BGR, old_BGR, mask_BGR)}
    assert len(shapes) == 1 and advantages_BG.shape == cloning_BG.shape == guided_BG.shape == logprobs_BGR.shape[:2], (
        f"{shapes}, {tuple(advantages_BG.shape)}, {tuple(guided_BG.shape)}")
    # Padding becomes a constant before any arithmetic, so that whatever stands there cannot reach loss or gradient.
    current_BGR = torch.where(mask_BGR, logprobs_BGR, 0.0)
    old_BGR = torch.where(mask_BGR, old_BGR, 0.0)
    free_BGR = clipped_surrogate(current_BGR, old_BGR, advantages_BG, clip_low=clip_low, clip_high=clip_high,
                                 dual_clip=dual_clip)
    loss_BGR = torch.where(guided_BG.unsqueeze(-1), -cloning_BG.unsqueeze(-1) * current_BGR, free_BGR)
    kl_sum = 0.0
    if reference_BGR is not None:
        kl_BGR = k3_kl(current_BGR, torch.where(mask_BGR, reference_BGR, 0.0))
        kl_sum = float((kl_BGR.detach() * mask_BGR).sum())
        loss_BGR = loss_BGR + kl * kl_BGR
    loss = (loss_BGR * mask_BGR).sum() / denominator
    with torch.no_grad():
        ratio_BGR = torch.exp((current_BGR - old_BGR).clamp(-LOG_RATIO_CLAMP, LOG_RATIO_CLAMP))
        A_BG1 = advantages_BG.unsqueeze(-1)
        acts_BGR = ((ratio_BGR > 1 + clip_high) & (A_BG1 > 0)) | ((ratio_BGR < 1 - clip_low) & (A_BG1 < 0))
        clipped = float((acts_BGR & mask_BGR & ~guided_BG.unsqueeze(-1)).sum())
    return LossParts(loss, kl_sum, clipped)
