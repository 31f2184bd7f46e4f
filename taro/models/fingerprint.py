"""What identifies a folder's vision tower, from its files alone: nothing is built, only the tower is read."""

from __future__ import annotations

from pathlib import Path

from taro.models.families import family_of
from taro.models.features import EncoderFingerprint, FrameSampling
from taro.models.folder import read_config
from taro.models.resolve import base_of, model_id
from taro.models.tensors import tower_sha256

__all__ = ["encoder_fingerprint", "token_width"]


def encoder_fingerprint(folder: Path, sampling: FrameSampling, dtype: str) -> EncoderFingerprint:
    """Of the features that the tower makes with this sampling and dtype; of a folder in the hub's cache with its
    commit. Raises ModelError."""
    folder = base_of(folder)
    config = read_config(folder)
    family, (name, revision) = family_of(config, folder), model_id(folder)
    return EncoderFingerprint(family=family.name, model_id=name, revision=revision, dtype=dtype, sampling=sampling,
                              tower_sha256=tower_sha256(folder, family), size=family.size_label(config))


def token_width(folder: Path) -> int:
    """Numbers that a video token takes, all its levels. Raises ModelError."""
    folder = base_of(folder)
    config = read_config(folder)
    return int(config.text_config.hidden_size) * (1 + family_of(config, folder).levels(config))
