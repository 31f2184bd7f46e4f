"""`generate`: rollouts, captions, validation, evaluation and `taro ground` all draw with it.

Which decoder draws is the policy's (`Policy.decoder`), a name of `DECODERS`: `grouped` (`taro.models.grouped`) calls
the stock layers; `fused` (`taro.models.decoder`) a layer body of its own, compiled on a GPU. Both are a
`Sampler`; their numbers differ by rounding. Legend: B prompts, G rollouts, R response tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from taro.models import grouped
from taro.models.decoder import generate as fused
from taro.models.decoder.rows import compute_dtype
from taro.models.policy import Policy
from taro.models.prompt import Prompt
from taro.models.sampler import Decoding, Forced, Rollouts, Sampler

__all__ = ["DECODERS", "generate", "sampler_of"]


def generate(policy: Policy, prompts: Sequence[Prompt], *, G: int, decoding: Decoding, forced: Forced | None = None,
             uniforms_BGR: np.ndarray | None = None, at_once: int | None = None) -> Rollouts:
    """G responses of a policy to each prompt: `Sampler`. Raises ValueError as it does."""
    return DECODERS[policy.decoder](policy, prompts, G=G, decoding=decoding, forced=forced, uniforms_BGR=uniforms_BGR,
                                    at_once=at_once)


def sampler_of(policy: Policy) -> Sampler:
    """`generate` over a policy."""
    return partial(generate, policy)


def _grouped(policy: Policy, prompts: Sequence[Prompt], *, G: int, decoding: Decoding, forced: Forced | None,
             uniforms_BGR: np.ndarray | None, at_once: int | None) -> Rollouts:
    """Batch after batch."""
    drawn = []
    for start in range(0, len(prompts), at_once or max(len(prompts), 1)):
        part = slice(start, start + (at_once or len(prompts)))
        drawn.append(grouped.generate(policy, prompts[part], G=G, decoding=decoding,
                                      forced=None if forced is None else forced[part],
                                      uniforms_BGR=None if uniforms_BGR is None else uniforms_BGR[part]))
    return Rollouts(*(torch.cat([getattr(one, name) for one in drawn]) for name in (
        "ids_BGR", "mask_BGR", "logprobs_BGR", "finished_BG", "forced_BG")))


def _fused(policy: Policy, prompts: Sequence[Prompt], *, G: int, decoding: Decoding, forced: Forced | None,
           uniforms_BGR: np.ndarray | None, at_once: int | None) -> Rollouts:
    """A prompt is admitted as another leaves."""
    cuda = policy.device.type == "cuda"
    flash = cuda and compute_dtype(policy) in (torch.bfloat16, torch.float16)
    how = fused.How(at_once=at_once, check_every=8 if cuda else 1, compiled=cuda,
                    prefix="flash_blocks" if flash else "plain")
    return fused.generate(policy, prompts, G=G, decoding=decoding, forced=forced, uniforms_BGR=uniforms_BGR, how=how)


DECODERS: dict[str, Callable[..., Rollouts]] = {"grouped": _grouped, "fused": _fused}
"""what draws, by name"""
