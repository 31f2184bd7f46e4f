"""Pixels to features: the frozen vision tower of a model folder, alone. No language model is in memory, and none of its
tensors is read.
Legend: T frames, S temporal patches, P patches of one before merging, N tokens of one, C values of a patch, D width."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from taro.core.errors import ModelError
from taro.models.families import family_of
from taro.models.families.base import Family, PixelSettings
from taro.models.families.pixels import normalise, resize_frames, to_patches
from taro.models.features import EncoderFingerprint, FrameSampling, VideoFeatures, patch_times_s, resized_hw
from taro.models.fingerprint import encoder_fingerprint
from taro.models.folder import pixel_settings, read_config
from taro.models.resolve import base_of
from taro.models.weights import build, fill

__all__ = ["Encoder", "load_encoder"]


class Encoder:
    """A vision tower and how frames are shown to it. Made by `load_encoder`."""

    def __init__(self, folder: Path, config: Any, family: Family, tower: Any) -> None:
        self.folder, self.config, self.family, self.tower = folder, config, family, tower

    @property
    def weight(self) -> torch.Tensor:
        """One of the tower's: where it is and in which dtype."""
        weight: torch.Tensor = next(self.tower.parameters())
        return weight

    def encode(self, frames_THWC: np.ndarray, frame_times_s: np.ndarray, sampling: FrameSampling, *,
               duration_s: float) -> VideoFeatures:
        """Features of a clip from its sampled frames.

        Args:
            frames_THWC: uint8, T even.
            frame_times_s: true times [T], seconds from the start of the clip.
            sampling: decides the size at which frames are shown.
            duration_s: of the clip; the effective rate is T / duration_s, as the stock processor computes it.
        """
        pixels = self._pixels
        S = len(frames_THWC) // 2
        height, width = frames_THWC.shape[1:3]
        hw = resized_hw(height, width, S, sampling, factor=pixels.patch_size * pixels.merge)
        grid = (hw[0] // pixels.patch_size, hw[1] // pixels.patch_size)
        weight = self.weight
        frames = torch.from_numpy(np.ascontiguousarray(resize_frames(frames_THWC, hw))).to(weight.device)
        patches_SPC = to_patches(normalise(frames, mean=pixels.mean, std=pixels.std), patch_size=pixels.patch_size,
                                 merge=pixels.merge)
        with torch.no_grad():
            main, deep = self.family.encode(self.tower, patches_SPC.to(weight.dtype), grid)
        return VideoFeatures(main, patch_times_s(frame_times_s), (S, *grid), duration_s / S, deep)

    def fingerprint(self, sampling: FrameSampling, dtype: str) -> EncoderFingerprint:
        """What identifies the features; reads and hashes the tower's tensors on disk."""
        return encoder_fingerprint(self.folder, sampling, dtype)

    @cached_property
    def _pixels(self) -> PixelSettings:
        settings, vision = pixel_settings(self.folder), self.config.vision_config
        wanted = vision.patch_size, vision.spatial_merge_size
        if (settings.patch_size, settings.merge) != wanted:
            raise ModelError(f"{self.folder}: the processor file says patch_size {settings.patch_size}, merge_size "
                             f"{settings.merge}; the vision tower has {wanted[0]} and {wanted[1]}: copy the processor "
                             "files from the base model")
        return settings


def load_encoder(folder: str | Path, *, device: str | torch.device = "cpu",
                 dtype: torch.dtype = torch.float32) -> Encoder:
    """The frozen vision tower of a Hugging Face model folder; of its weights only the tower's are read. Raises
    ModelError: a missing or damaged file, an unknown family, tensors that do not fit the config."""
    folder = base_of(Path(folder))
    config = read_config(folder)
    family = family_of(config, folder)
    tower = build(folder, family, lambda: family.build_tower(config))
    fill({"tower": tower}, folder, family, device=torch.device(device), dtype=dtype)
    return Encoder(folder, config, family, tower.eval().requires_grad_(False))
