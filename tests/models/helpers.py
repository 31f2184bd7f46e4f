"""Policies, prompts and rollouts of the tiny models, for the tests of taro.models."""

from __future__ import annotations

import numpy as np
import torch

from taro.core.draws import uniforms
from taro.models.attention import causal
from taro.models.decoding import generate
from taro.models.features import FrameSampling
from taro.models.policy import Policy
from taro.models.prompt import Prompt
from taro.models.sampler import Decoding, Rollouts

SAMPLING = FrameSampling()
CASES = [(8, 120, 150, 4.0), (4, 56, 56, 2.0), (12, 84, 84, 7.3), (6, 200, 70, 30.0)]
"""frames, height, width, duration in seconds: several grids and rates"""


def make_frames(T: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (T, height, width, 3), dtype=np.uint8)


def make_prompt(policy: Policy, case: tuple[int, int, int, float], text: str) -> tuple[Prompt, np.ndarray]:
    T, height, width, duration_s = case
    frames = make_frames(T, height, width)
    features = policy.encode(frames, np.linspace(0, duration_s, T, endpoint=False), SAMPLING, duration_s=duration_s)
    return policy.prompt(features, text), frames


def sampled(policy: Policy, G: int = 3, R: int = 24) -> tuple[list[Prompt], Rollouts]:
    """Two groups, some rollouts with a forced prefix."""
    prompts = [make_prompt(policy, case, text)[0] for case, text in ((CASES[0], "when?"), (CASES[1], "a longer query"))]
    draws = np.stack([[uniforms(R, "test", b, g) for g in range(G)] for b in range(2)])
    forced = [[[65, 66, 67, 68, 69], [65], []], [[], [70, 71], [72]]]
    return prompts, generate(policy, prompts, G=G, decoding=Decoding(R), uniforms_BGR=draws, forced=forced)


def full_row_logprobs(policy: Policy, prompt: Prompt, ids_R: torch.Tensor) -> torch.Tensor:
    """The plain way: the whole prompt and one response as one causal row."""
    R = len(ids_R)
    tail = torch.arange(prompt.next_position, prompt.next_position + R).expand(3, R)
    positions = torch.cat([prompt.positions_3P, tail], 1)[:, None]
    ids = torch.cat([prompt.ids_P, ids_R])[None]
    hidden = policy.language_model(ids, positions, causal, video=prompt.video)[0, len(prompt.ids_P) - 1 : -1]
    logits = policy.language_model.head(hidden).float().masked_fill(policy.banned_V, float("-inf"))
    return torch.log_softmax(logits, -1).gather(-1, ids_R[:, None])[:, 0]
