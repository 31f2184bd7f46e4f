"""Multimodal language models: families, positions, the one forward pass, grouped decoding, packed scoring."""

from __future__ import annotations

from taro.mllm.generate import Decoding, Rollouts, generate
from taro.mllm.policy import Policy, Prompt, export_checkpoint, load_policy
from taro.mllm.score import score

__all__ = [
    "Decoding",
    "Policy",
    "Prompt",
    "Rollouts",
    "export_checkpoint",
    "generate",
    "load_policy",
    "score",
]
