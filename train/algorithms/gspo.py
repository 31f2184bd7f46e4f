"""GSPO (arXiv 2507.18071): one importance ratio a response, clipped as a whole, and a mean over responses.

Every token of a response has the same loss and weighs 1 / its length, so KL, entropy and guided prefixes are means over
a response too. Left out: GSPO-token, its variant with an advantage of each token: where a response has one, it is the
same."""

from __future__ import annotations

import torch

from taro.train.algorithms.base import TokenLoss, Tokens
from taro.train.algorithms.grpo import GRPO
from taro.train.algorithms.losses import clip_acts, clipped_surrogate, sequence_log_ratio

__all__ = ["GSPO"]


class GSPO(GRPO):
    """Objective (5) of the paper; GRPO's advantages (eq. 6)."""

    def token_loss(self, tokens: Tokens) -> TokenLoss:
        """`clipped_surrogate` of the ratio s of the response (eq. 7), the same for each of its tokens."""
        knobs, shape = self._config, tokens.mask_BGR.shape
        log_s_BG1 = sequence_log_ratio(tokens.logprobs_BGR, tokens.old_BGR, tokens.mask_BGR).unsqueeze(-1)
        before_BG1 = torch.zeros_like(log_s_BG1)
        loss_BG1 = clipped_surrogate(log_s_BG1, before_BG1, tokens.advantages_BG, clip_low=knobs.clip_low,
                                     clip_high=knobs.clip_high, dual_clip=knobs.dual_clip)
        acts_BG1 = clip_acts(log_s_BG1, before_BG1, tokens.advantages_BG, clip_low=knobs.clip_low,
                             clip_high=knobs.clip_high)
        return TokenLoss(loss_BG1.expand(shape), acts_BG1.expand(shape))

    def token_weights(self, mask_BGR: torch.Tensor) -> torch.Tensor:
        """`1 / |o|`."""
        return 1 / mask_BGR.sum(-1, keepdim=True).clamp(min=1).float()

    def denominator(self, mask_BGR: torch.Tensor, *, max_new_tokens: int) -> float:
        """The number of responses with a valid token."""
        return float(mask_BGR.any(-1).sum())
