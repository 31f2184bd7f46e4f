"""What a model family must provide, and the registry of those that taro knows.

A family is one module with one `Family` object: how its checkpoint names map to language model and tower, how frames
become features, how a prompt's tokens and positions are laid out. Everything else in taro is written against this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from taro.errors import ModelError
from taro.features import VideoFeatures

__all__ = ["Family", "PixelSettings", "family_of", "families"]


@dataclass(frozen=True)
class PixelSettings:
    """How frames are normalised and cut, from the model folder's own processor files."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch_size: int
    merge: int


@dataclass(frozen=True)
class Family:
    """One model family.

    name: as in shard sets' encoder names; model_type: of config.json.
    build_lm / build_tower: stock modules from a stock config, without weights.
    split_name: checkpoint tensor name -> ("lm" | "head" | "tower", name inside the module), or None to ignore.
    encode: (tower, pixels_SPC, (h, w)) -> (main [S, N, D], deepstack levels).
    video_ids: (features, token ids of the placeholders) -> token ids of a video in the prompt.
    positions: (config, before, after, features) -> positions [3, P], next position.
    vision_tokens: token strings that a policy must never emit.
    """

    name: str
    model_type: str
    build_lm: Callable[[Any], torch.nn.Module]
    build_tower: Callable[[Any], torch.nn.Module]
    split_name: Callable[[str], tuple[str, str] | None]
    encode: Callable[[Any, torch.Tensor, tuple[int, int]], tuple[torch.Tensor, tuple[torch.Tensor, ...]]]
    positions: Callable[[Any, int, int, VideoFeatures], tuple[torch.Tensor, int]]
    size_label: Callable[[Any], str]
    vision_tokens: tuple[str, ...]


def families() -> dict[str, Family]:
    """Every registered family by its `model_type`."""
    from taro.mllm.qwen2_5_vl import QWEN2_5_VL

    return {family.model_type: family for family in (QWEN2_5_VL,)}


def family_of(config: Any, folder: Path) -> Family:
    """The family of a loaded config; ModelError where taro does not know it."""
    known = families()
    if config.model_type not in known:
        raise ModelError(
            f"{folder}: model_type is {config.model_type!r}; taro knows {', '.join(sorted(known))}. "
            "docs/families.md tells what a new family needs."
        )
    return known[config.model_type]
