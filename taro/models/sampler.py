"""What a sampler is: whatever draws responses to prompts. decoding.py has the one that taro uses.
Legend: B prompts, G rollouts of a prompt, R response tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from taro.models.prompt import Prompt

__all__ = ["Decoding", "Forced", "Rollouts", "Sampler"]

Forced = Sequence[Sequence[Sequence[int]]]
"""[B][G] token ids that a response must begin with (guided phase)"""


@dataclass(frozen=True)
class Decoding:
    """temperature 0 is greedy; top_k (tokens, 0: all), top_p and repetition_penalty change what is sampled, never the
    log-probs returned."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    top_k: int = 0


@dataclass(frozen=True)
class Rollouts:
    """ids_BGR: tokens, forced prefix first, end token included, padded; mask_BGR: valid ones; logprobs_BGR: fp32, at
    the sampling temperature, 0 where invalid; finished_BG: ended by itself; forced_BG: length of the forced prefix."""

    ids_BGR: torch.Tensor
    mask_BGR: torch.Tensor
    logprobs_BGR: torch.Tensor
    finished_BG: torch.Tensor
    forced_BG: torch.Tensor

    def __post_init__(self) -> None:
        assert self.ids_BGR.shape == self.mask_BGR.shape == self.logprobs_BGR.shape
        assert self.finished_BG.shape == self.forced_BG.shape == self.ids_BGR.shape[:2]


class Sampler(Protocol):
    """Draws responses from one policy, as it is at the time of the call.

    An implementation keeps to this: a response is a function of its prompt, its forced prefix and its own draws, not of
    what else is in the batch; the forced prefix opens the response, stands in `ids_BGR` and counts in
    `max_new_tokens`; tokens of `Policy.banned_V` never occur; log-probs are those that `logprobs.score` gives for the
    same tokens, at `decoding.temperature` (1 where that is 0), whatever top_k, top_p and repetition_penalty did."""

    def __call__(self, prompts: Sequence[Prompt], *, G: int, decoding: Decoding, forced: Forced | None = None,
                 uniforms_BGR: np.ndarray | None = None, at_once: int | None = None) -> Rollouts:
        """G responses to each prompt.

        Args:
            forced: tokens that responses must begin with; None is none.
            uniforms_BGR: draws from [0, 1), one per token; needed unless decoding is greedy.
            at_once: prompts whose keys and values are held at a time; None: those of all.

        Raises ValueError where forced, uniforms and G do not fit each other."""
