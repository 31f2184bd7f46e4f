"""The formulas of the loss: clipped policy gradient, KL to the start policy, and the sum over a batch.

The parts are values per token, [B, G, R]; `policy_loss` sums them over the valid tokens and divides by a denominator of
the whole mini-batch that the caller counts once, so the gradient depends neither on micro-batch size nor on padding.
Legend: B prompts, G rollouts, R response tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from taro.train.algorithms.base import Algorithm, Tokens

__all__ = ["LossParts", "clip_acts", "clipped_surrogate", "k3_kl", "policy_loss",
           "sequence_log_ratio"]

LOG_RATIO_CLAMP = 20.0
"""Prevents exp overflow where a token's probability moved by more than e^20 between two passes."""
KL_CLAMP = 10.0
"""Prevents one token with a vanishing probability from dominating the batch's KL; its gradient is 0 beyond."""


def _ratio(logprobs_BGR: torch.Tensor, old_BGR: torch.Tensor) -> torch.Tensor:
    return torch.exp((logprobs_BGR - old_BGR).clamp(-LOG_RATIO_CLAMP, LOG_RATIO_CLAMP))


def clipped_surrogate(logprobs_BGR: torch.Tensor, old_BGR: torch.Tensor, advantages_BG: torch.Tensor, *,
                      clip_low: float = 0.2, clip_high: float = 0.2,
                      dual_clip: float | None = 3.0) -> torch.Tensor:
    """Per-token PPO loss `max(-A r, -A clip(r, 1 - low, 1 + high))`, limited to `-A * dual_clip` where A < 0
    (None: not limited).

    Symbols: r = exp(log pi - log pi_old). Source: PPO (arXiv 1707.06347), dual clip (arXiv 1912.09729).

    >>> lp, old, A = torch.log(torch.tensor([[[1.5]]])), torch.zeros(1, 1, 1), torch.tensor([[1.0]])
    >>> round(clipped_surrogate(lp, old, A).item(), 4), round(clipped_surrogate(lp * 5, old, -A).item(), 4)
    (-1.2, 3.0)
    """
    A_BG1, ratio_BGR = advantages_BG.unsqueeze(-1), _ratio(logprobs_BGR, old_BGR)
    loss_BGR = torch.maximum(-A_BG1 * ratio_BGR, -A_BG1 * ratio_BGR.clamp(1 - clip_low, 1 + clip_high))
    if dual_clip is None:
        return loss_BGR
    return torch.where(A_BG1 < 0, torch.minimum(loss_BGR, -A_BG1 * dual_clip), loss_BGR)


@torch.no_grad()
def clip_acts(logprobs_BGR: torch.Tensor, old_BGR: torch.Tensor, advantages_BG: torch.Tensor, *, clip_low: float = 0.2,
              clip_high: float = 0.2) -> torch.Tensor:
    """bool [B, G, R]: where `r > 1 + high` and A > 0, or `r < 1 - low` and A < 0.

    >>> clip_acts(torch.log(torch.tensor([[[1.5, 1.1]]])), torch.zeros(1, 1, 2), torch.tensor([[1.0]])).tolist()
    [[[True, False]]]
    """
    A_BG1, ratio_BGR = advantages_BG.unsqueeze(-1), _ratio(logprobs_BGR, old_BGR)
    return ((ratio_BGR > 1 + clip_high) & (A_BG1 > 0)) | ((ratio_BGR < 1 - clip_low) & (A_BG1 < 0))


def sequence_log_ratio(logprobs_BGR: torch.Tensor, old_BGR: torch.Tensor, mask_BGR: torch.Tensor) -> torch.Tensor:
    """log s [B, G] = `1 / |o| * sum_t (log pi - log pi_old)`: the mean log-ratio of a response's valid tokens.

    Source: GSPO (arXiv 2507.18071), eq. 7.

    >>> lp, old = torch.tensor([[[0.3, 0.1, 9.0]]]), torch.zeros(1, 1, 3)
    >>> round(sequence_log_ratio(lp, old, torch.tensor([[[True, True, False]]])).item(), 4)  # (0.3 + 0.1) / 2
    0.2
    """
    sums_BG = torch.where(mask_BGR, logprobs_BGR - old_BGR, 0.0).sum(-1)
    return sums_BG / mask_BGR.sum(-1).clamp(min=1)


def k3_kl(logprobs_BGR: torch.Tensor, reference_BGR: torch.Tensor) -> torch.Tensor:
    """Per-token `exp(x) - x - 1`, x = log pi_ref - log pi: the k3 estimator of KL(pi || pi_ref), never negative.

    Source: http://joschu.net/blog/kl-approx.html ("low_var_kl" in the released code).

    >>> round(k3_kl(torch.tensor([[[0.0]]]), torch.tensor([[[-1.0]]])).item(), 4)  # e^-1 + 1 - 1
    0.3679
    """
    x_BGR = (reference_BGR - logprobs_BGR).clamp(-LOG_RATIO_CLAMP, LOG_RATIO_CLAMP)
    return (torch.exp(x_BGR) - x_BGR - 1).clamp(max=KL_CLAMP)


@dataclass(frozen=True)
class LossParts:
    """A micro-batch's share of the loss of its mini-batch, and token sums (not means) to log."""

    loss: torch.Tensor
    kl_sum: float
    clipped_sum: float
    """tokens of free rollouts whose ratio the clip acts on"""
    entropy_sum: float = 0.0


def policy_loss(algorithm: Algorithm, tokens: Tokens, guided_BG: torch.Tensor, cloning_BG: torch.Tensor,
                reference_BGR: torch.Tensor | None, *, kl: float = 0.01, entropy: float = 0.0,
                denominator: float) -> LossParts:
    """`sum over valid tokens of weight * ((guided ? -w log pi : the algorithm's loss) + kl * k3 - entropy * H), over
    denominator`; weight: `Algorithm.token_weights`; H: `tokens.entropy_BGR`.

    Args: cloning_BG: w, from `cloning_weights`; reference_BGR: log-probs under the start policy, None where kl is 0;
    denominator: from `Algorithm.denominator`, over the whole mini-batch."""
    mask_BGR = tokens.mask_BGR
    assert guided_BG.shape == cloning_BG.shape == mask_BGR.shape[:2], f"{tuple(guided_BG.shape)}, {mask_BGR.shape}"
    # Padding becomes a constant before any arithmetic, so that whatever stands there cannot reach loss or gradient.
    clean = replace(tokens, logprobs_BGR=torch.where(mask_BGR, tokens.logprobs_BGR, 0.0),
                    old_BGR=torch.where(mask_BGR, tokens.old_BGR, 0.0))
    free_BGR, clipped_BGR = algorithm.token_loss(clean)
    loss_BGR = torch.where(guided_BG.unsqueeze(-1), -cloning_BG.unsqueeze(-1) * clean.logprobs_BGR, free_BGR)
    kl_sum = 0.0
    if reference_BGR is not None:
        kl_BGR = k3_kl(clean.logprobs_BGR, torch.where(mask_BGR, reference_BGR, 0.0))
        kl_sum = float((kl_BGR.detach() * mask_BGR).sum())
        loss_BGR = loss_BGR + kl * kl_BGR
    entropy_sum = 0.0
    if tokens.entropy_BGR is not None:
        entropy_BGR = torch.where(mask_BGR, tokens.entropy_BGR, 0.0)
        entropy_sum = float(entropy_BGR.detach().sum())
        loss_BGR = loss_BGR - entropy * entropy_BGR
    clipped = float((clipped_BGR & mask_BGR & ~guided_BG.unsqueeze(-1)).sum())
    weighted_BGR = loss_BGR * algorithm.token_weights(mask_BGR) * mask_BGR
    return LossParts(weighted_BGR.sum() / denominator, kl_sum, clipped, entropy_sum)
