"""Qwen2.5-VL: names, tower, positions. Reference: transformers' `models/qwen2_5_vl`, but for positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from taro.models.families.base import QWEN_VISION_TOKENS, Family, qwen_size_label, qwen_split_name
from taro.models.families.positions import interleaved_positions, video_positions
from taro.models.families.tower import encode_patches
from taro.models.features import VideoFeatures

__all__ = ["QWEN2_5_VL"]

SIZES = {2048: "3b", 3584: "7b", 5120: "32b", 8192: "72b"}
"""hidden size of the language model -> the name of the released model"""


def _build_lm(config: Any) -> torch.nn.Module:
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

    lm: torch.nn.Module = Qwen2_5_VLTextModel._from_config(config.text_config, attn_implementation="sdpa")
    return lm


def _build_tower(config: Any) -> torch.nn.Module:
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    stock = Qwen2_5_VisionTransformerPretrainedModel
    tower: torch.nn.Module = stock._from_config(config.vision_config, attn_implementation="sdpa")
    return tower


def _encode(tower: Any, pixels_SPC: torch.Tensor, hw: tuple[int, int]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    return encode_patches(tower, pixels_SPC, hw), ()


def _video_text(features: VideoFeatures) -> tuple[str, ...]:
    """One run of tokens, nothing around it: the chat template has the start and end tokens."""
    return "", ""


def _positions(config: Any, lengths: Sequence[int], features: VideoFeatures) -> tuple[torch.Tensor, int]:
    vision = config.vision_config
    cell, extent = video_positions(0, features.grid_thw, features.seconds_per_patch,
                                   tokens_per_second=vision.tokens_per_second, merge=vision.spatial_merge_size)
    return interleaved_positions(lengths, cell, extent)


def _refused(config: Any) -> list[str]:
    text, vision = config.text_config, config.vision_config
    width, found = text.hidden_size // max(text.num_attention_heads, 1), []
    if text.hidden_size % max(text.num_attention_heads, 1) or getattr(text, "head_dim", None) not in (None, width):
        found.append(f"{text.num_attention_heads} heads and head_dim {getattr(text, 'head_dim', None)!s:.20} for a "
                     f"width of {text.hidden_size}; expected heads that share the width")
    if text.rope_parameters.get("mrope_interleaved"):
        found.append("mrope_interleaved true; expected false")
    if vision.window_size < vision.spatial_merge_size * vision.patch_size:
        found.append(f"vision_config.window_size {vision.window_size}; expected at least a merged patch, "
                     f"{vision.spatial_merge_size * vision.patch_size}")
    return found


QWEN2_5_VL = Family(name="qwen2_5_vl", model_type="qwen2_5_vl", build_lm=_build_lm, build_tower=_build_tower,
                    split_name=qwen_split_name("model."), encode=_encode, levels=lambda config: 0,
                    placeholder="<|video_pad|>", video_token="<|video_pad|>", video_text=_video_text,
                    positions=_positions, size_label=qwen_size_label(SIZES), vision_tokens=QWEN_VISION_TOKENS,
                    refused=_refused)
