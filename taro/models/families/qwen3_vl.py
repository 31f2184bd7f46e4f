"""Qwen3-VL: names, tower with deepstack levels, timestamp text, positions. Reference: transformers' `models/qwen3_vl`.

What differs from Qwen2.5-VL: time is text (`<12.5 seconds>` before each temporal patch), so each patch is a grid of
t = 1 in the positions; the tower has no windows, learned position embeddings interpolated to the frame's grid, and
further feature sets from its middle layers, which the first language layers add (language_model.VideoTokens). M-RoPE
is interleaved and queries and keys are normalised; both are the stock modules' own. Left out: the mixture-of-experts
models (another `model_type`).
Legend: S temporal patches, P patches of one (h * w), N = P / merge**2 tokens after merging, D width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from taro.models.families.base import QWEN_VISION_TOKENS, Family, qwen_size_label, qwen_split_name
from taro.models.families.positions import interleaved_positions, video_positions
from taro.models.families.tower import axial_rotary, patch_attention, patch_layout
from taro.models.features import VideoFeatures

__all__ = ["QWEN3_VL", "encode_with_levels"]

SIZES = {2048: "2b", 2560: "4b", 4096: "8b", 5120: "32b"}
"""hidden size of the language model -> the name of the released model"""


def _build_lm(config: Any) -> torch.nn.Module:
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

    lm: torch.nn.Module = Qwen3VLTextModel._from_config(config.text_config, attn_implementation="sdpa")
    return lm


def _build_tower(config: Any) -> torch.nn.Module:
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

    tower: torch.nn.Module = Qwen3VLVisionModel._from_config(config.vision_config, attn_implementation="sdpa")
    return tower


def encode_with_levels(visual: Any, pixels_SPC: torch.Tensor,
                       grid_hw: tuple[int, int]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Features [S, N, D] of temporal patches `pixels_SPC`, each `grid_hw` patches high and wide, and the deepstack
    levels, of the same shape each, in the order of the tower's layers.

    `visual` is the stock `Qwen3VLVisionModel`. S may span many clips of one frame size. Differentiable. Equal to the
    stock tower (test: 1e-5 in fp32)."""
    S, P, _ = pixels_SPC.shape
    merge = visual.spatial_merge_size
    cos, sin, corners_P4, weights_P4 = _places(visual, grid_hw, pixels_SPC.device)
    x = visual.patch_embed(pixels_SPC.reshape(S * P, -1)).view(S, P, -1)
    x = x + (visual.pos_embed.weight[corners_P4] * weights_P4[:, :, None]).sum(1).to(x.dtype)
    whole = [torch.arange(P, device=x.device)[None]]
    mergers = dict(zip(visual.deepstack_visual_indexes, visual.deepstack_merger_list, strict=True))
    levels = []
    for number, block in enumerate(visual.blocks):
        x = x + patch_attention(block.attn, block.norm1(x), cos, sin, whole)
        x = x + block.mlp(block.norm2(x))
        if number in mergers:
            levels.append(mergers[number](x.reshape(S * P, -1)).view(S, P // merge**2, -1))
    main: torch.Tensor = visual.merger(x.reshape(S * P, -1)).view(S, P // merge**2, -1)
    return main, tuple(levels)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _places(visual: Any, grid_hw: tuple[int, int], device: torch.device) -> tuple[torch.Tensor, ...]:
    """What depends on the frame's grid alone: rotary cos and sin [P, d]; the corners [P, 4] in the learned square of
    position embeddings around each patch, and their weights (bilinear, corners on corners). The weights' arithmetic is
    the stock tower's to the last bit, since bf16 features are compared bit for bit."""
    layout = patch_layout(*grid_hw, visual.spatial_merge_size, max(grid_hw))
    side = round(len(visual.pos_embed.weight) ** 0.5)
    taps, weights = [], []
    for index, size in zip((layout.rows, layout.cols), grid_hw, strict=True):
        at = torch.tensor(index, device=device).float() * (side - 1) / torch.tensor(max(size - 1, 1), device=device)
        low, offsets = at.floor(), torch.arange(2, device=device)
        taps.append((low.long()[:, None] + offsets).clamp(max=side - 1))
        weights.append(1 - (at[:, None] - low[:, None] - offsets).abs())
    corners_P4 = (taps[0][:, :, None] * side + taps[1][:, None]).flatten(1)
    weights_P4 = (weights[0][:, :, None] * weights[1][:, None]).flatten(1)
    return *axial_rotary(visual, layout, device), corners_P4, weights_P4


def _levels(config: Any) -> int:
    return len(config.vision_config.deepstack_visual_indexes)


def _video_text(features: VideoFeatures) -> tuple[str, ...]:
    """A timestamp and a start token before each patch's run, an end token after it."""
    stamps = [f"<{time:.1f} seconds><|vision_start|>" for time in features.times_S.tolist()]
    return stamps[0], *(f"<|vision_end|>{stamp}" for stamp in stamps[1:]), "<|vision_end|>"


def _positions(config: Any, lengths: Sequence[int], features: VideoFeatures) -> tuple[torch.Tensor, int]:
    _, h, w = features.grid_thw
    merge = config.vision_config.spatial_merge_size
    cell, extent = video_positions(0, (1, h, w), 0.0, tokens_per_second=0.0, merge=merge)
    return interleaved_positions(lengths, cell, extent)


def _refused(config: Any) -> list[str]:
    vision, found = config.vision_config, []
    if config.text_config.rope_parameters.get("mrope_interleaved", True) is not True:
        found.append("mrope_interleaved false; expected true")
    side = round(vision.num_position_embeddings**0.5)
    if side < 1 or side * side != vision.num_position_embeddings:
        found.append(f"vision_config.num_position_embeddings {vision.num_position_embeddings}; expected a square")
    levels = list(vision.deepstack_visual_indexes)
    if levels != sorted(set(levels)) or not all(0 <= level < vision.depth for level in levels):
        found.append(f"vision_config.deepstack_visual_indexes {levels!s:.60}; expected layers of the tower, ascending")
    if len(levels) > config.text_config.num_hidden_layers:
        found.append(f"{len(levels)} deepstack levels for {config.text_config.num_hidden_layers} language layers")
    return found


QWEN3_VL = Family(name="qwen3_vl", model_type="qwen3_vl", build_lm=_build_lm, build_tower=_build_tower,
                  split_name=qwen_split_name(), encode=encode_with_levels, levels=_levels, placeholder="<|video_pad|>",
                  video_token="<|video_pad|>", video_text=_video_text, positions=_positions,
                  size_label=qwen_size_label(SIZES), vision_tokens=QWEN_VISION_TOKENS, refused=_refused,
                  equal_steps=False)
