"""The contract of an algorithm, in three functions of a step's numbers.

An algorithm sees rewards and log-probs, no model and no video, so it is tested with numbers by hand. KL to the start
policy, guided rollouts, micro-batches and clipping of gradients are the same under every algorithm and are left out:
`taro.train.algorithms.losses.policy_loss` and `taro.train.update`. Legend: B prompts, G rollouts of a group, R response
tokens."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch

from taro.train.algorithms import ALGORITHMS
from taro.train.config import LossConfig

__all__ = ["Algorithm", "TokenLoss", "Tokens", "make_algorithm"]


@dataclass(frozen=True)
class Tokens:
    """Responses to some prompts. logprobs_BGR: under the policy now, with a gradient; old_BGR: under the policy that
    drew them; mask_BGR: valid tokens; entropy_BGR: of the policy now, with a gradient, where it is asked for. An
    algorithm finds 0 in both log-probs where a token is not valid."""

    logprobs_BGR: torch.Tensor
    old_BGR: torch.Tensor
    mask_BGR: torch.Tensor
    advantages_BG: torch.Tensor
    entropy_BGR: torch.Tensor | None = None

    def __post_init__(self) -> None:
        shapes = {tuple(x.shape) for x in (self.logprobs_BGR, self.old_BGR, self.mask_BGR)}
        assert len(shapes) == 1 and self.advantages_BG.shape == self.logprobs_BGR.shape[:2], (
            f"{shapes}, advantages {tuple(self.advantages_BG.shape)}")


class TokenLoss(NamedTuple):
    """loss_BGR: of every token, with a gradient; clipped_BGR: where a clip keeps the token from moving (logged)."""

    loss_BGR: torch.Tensor
    clipped_BGR: torch.Tensor


class Algorithm(Protocol):
    """See the module. Made from a `taro.train.config.LossConfig`."""

    by_group: bool
    """whether a group's advantages depend on its own rewards alone; then they may be asked for group by group"""

    def advantages(self, rewards_BG: np.ndarray) -> np.ndarray:
        """Advantages [B, G] of the whole step, from its total rewards."""

    def token_loss(self, tokens: Tokens) -> TokenLoss:
        """What each token of a free rollout costs. `tokens` may be any part of the step's prompts, so a token's loss
        must not depend on other prompts."""

    def token_weights(self, mask_BGR: torch.Tensor) -> torch.Tensor:
        """How much each token's loss counts in the sum over tokens, [B, G, R] or what broadcasts to it. KL, entropy and
        guided prefixes count alike."""

    def denominator(self, mask_BGR: torch.Tensor, *, max_new_tokens: int) -> float:
        """What the sum of the losses of a mini-batch is divided by: counted once, over the whole mini-batch. A sum over
        prompts, since each rank counts its own."""


def make_algorithm(config: LossConfig) -> Algorithm:
    """The algorithm that `config.kind` names."""
    module, _, name = ALGORITHMS[config.kind].partition(":")
    algorithm: Algorithm = getattr(importlib.import_module(module), name)(config)
    return algorithm
