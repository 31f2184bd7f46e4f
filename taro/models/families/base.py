"""What a model family must provide.

A family is one module with one `Family` object: how its checkpoint names map to language model and tower, how frames
become features, how a prompt's tokens and positions are laid out. Everything else in taro is written against this;
docs/families.md walks through it. What every family here shares, and the rest of taro relies on: two frames make a
temporal patch, a temporal patch is encoded on its own, positions are M-RoPE, and the language model has `embed_tokens`,
`layers`, `norm` and `rotary_emb` as transformers' Qwen models have.
Legend: S temporal patches, P patches of one before merging, N tokens of one, C values of a patch, D width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from taro.models.features import VideoFeatures

__all__ = ["Family", "PixelSettings", "QWEN_VISION_TOKENS", "qwen_size_label", "qwen_split_name"]


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
    build_lm / build_tower: (config) -> stock modules, without weights.
    split_name: checkpoint tensor name -> ("lm" | "head" | "tower", name inside the module), or None to ignore.
    encode: (tower, pixels [S, P, C], (h, w)) -> (main [S, N, D], deepstack levels, each [S, N, D]; none is fine).
    levels: (config) -> how many deepstack levels `encode` gives.
    placeholder: what the chat template writes where a video goes, and the prompt replaces.
    video_token: the token that each feature of the video stands at.
    video_text: (features) -> the texts around the video's tokens: n + 1 texts for n runs of equal length, in order.
    positions: (config, tokens of each of those texts, the prompt's own text counted in, features) -> positions [3, P]
        of the whole prompt, and the position of the token after it.
    size_label: (config) -> short name of the size, such as 7b.
    vision_tokens: token strings that a policy must never emit.
    refused: (config) -> what of it this family does not compute, a phrase each, beyond `taro.models.config_checks`.
    equal_steps: whether the model reads times from positions at equal steps, not from the patches' true times.
    """

    name: str
    model_type: str
    build_lm: Callable[[Any], torch.nn.Module]
    build_tower: Callable[[Any], torch.nn.Module]
    split_name: Callable[[str], tuple[str, str] | None]
    encode: Callable[[Any, torch.Tensor, tuple[int, int]], tuple[torch.Tensor, tuple[torch.Tensor, ...]]]
    levels: Callable[[Any], int]
    placeholder: str
    video_token: str
    video_text: Callable[[VideoFeatures], tuple[str, ...]]
    positions: Callable[[Any, Sequence[int], VideoFeatures], tuple[torch.Tensor, int]]
    size_label: Callable[[Any], str]
    vision_tokens: tuple[str, ...]
    refused: Callable[[Any], list[str]]
    equal_steps: bool = True


QWEN_VISION_TOKENS = ("<|video_pad|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")


def qwen_size_label(sizes: dict[int, str]) -> Callable[[Any], str]:
    """`size_label` of a family whose released models differ in the language model's width; other widths are `d64`."""

    def label(config: Any) -> str:
        width = config.text_config.hidden_size
        return sizes.get(width, f"d{width}")

    return label


def qwen_split_name(*language_model: str) -> Callable[[str], tuple[str, str] | None]:
    """`split_name` of Qwen's checkpoints, for the names that transformers loads: `model.visual.` and
    `model.language_model.` (Qwen3-VL as released, and files of transformers 5), each also without `model.`.

    Args:
        language_model: further prefixes of the language model, such as `model.` (Qwen2.5-VL as released).
    """
    parts = {"model.visual.": "tower", "visual.": "tower", "lm_head.": "head", "model.language_model.": "lm",
             "language_model.": "lm", **dict.fromkeys(language_model, "lm")}

    def split_name(name: str) -> tuple[str, str] | None:
        found = next((prefix for prefix in parts if name.startswith(prefix)), None)
        return None if found is None else (parts[found], name.removeprefix(found))

    return split_name
