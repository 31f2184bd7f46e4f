"""What encodes: the fingerprint of a model folder's tower, and the tower loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from taro.models.features import EncoderFingerprint, FrameSampling

if TYPE_CHECKING:
    import torch

    from taro.models.policy import Policy

__all__ = ["encoder_fingerprint", "load_tower_policy"]


def load_tower_policy(folder: Path, device: torch.device, dtype: str) -> Policy:
    """A policy with its vision tower, frozen."""
    import torch

    from taro.models.load import load_policy

    return load_policy(folder, device=device, dtype=getattr(torch, dtype), tower=True)


def encoder_fingerprint(folder: Path, sampling: FrameSampling, dtype: str) -> tuple[EncoderFingerprint, int]:
    """(fingerprint of a model folder's tower, numbers a video token takes, all its levels), from its files alone."""
    from taro.models.families import family_of
    from taro.models.folder import read_config, tower_sha256

    config = read_config(folder)
    family = family_of(config, folder)
    fingerprint = EncoderFingerprint(
        family=family.name, model_id=folder.name, dtype=dtype, sampling=sampling,
        tower_sha256=tower_sha256(folder, family), size=family.size_label(config),
    )  # fmt: skip
    return fingerprint, int(config.text_config.hidden_size) * (1 + family.levels(config))
