"""A shard set opened for a policy: with the features of its own vision tower, and with frame variants where asked for.

Features of another tower have the right shapes and mean nothing, so a set is compared with the policy's files by their
fingerprints before anything is loaded. Left out: which queries are trained on (`taro.train.data`)."""

from __future__ import annotations

from pathlib import Path

from taro.core.errors import ConfigError
from taro.models.features import FrameSampling
from taro.models.fingerprint import encoder_fingerprint
from taro.models.resolve import model_name
from taro.shards.encoders import check_encoder
from taro.shards.reader import ShardSet, open_shards
from taro.shards.variants import VariantSettings

__all__ = ["open_encoded_shards", "with_variants"]


def open_encoded_shards(path: str | Path, policy: Path, *, encoder: str | None = None) -> ShardSet:
    """A shard set with the features that the vision tower in the folder `policy` made; of the weights the tower's are
    hashed, none is loaded. Raises ShardError where the set has none of this tower."""
    shard_set = open_shards(path, encoder=encoder)
    held = list(shard_set.manifest.encoders)
    if encoder is not None:
        held = [fingerprint for fingerprint in held if fingerprint.name == shard_set.encoder]
    sampling, dtype = (held[0].sampling, held[0].dtype) if held else (FrameSampling(), "float32")
    ours = encoder_fingerprint(policy, sampling, dtype)  # reads and hashes the tower's tensors, once
    for fingerprint in held:
        mine = ours.model_copy(update={"sampling": fingerprint.sampling, "dtype": fingerprint.dtype})
        if mine.hex8 == fingerprint.hex8:
            return shard_set.reading(fingerprint.name)
    check_encoder(shard_set, ours, policy=model_name(policy))  # raises, naming both fingerprints
    raise AssertionError("check_encoder accepts a fingerprint that no encoder of the set has")


def with_variants(shard_set: ShardSet, *, dt_s: float | None = None) -> tuple[ShardSet, VariantSettings]:
    """The same set, its samples with frame variants, and how those were made. Raises ConfigError where it has none, or
    none of `dt_s` (None: any)."""
    found, root, wanted = shard_set.variant_settings(), shard_set.place, 3.0 if dt_s is None else dt_s
    command = (f"`taro preprocess RECIPE --set out={root} --only variants --set variants.count=4 --set "
               f"variants.dt_s={wanted:g}` (it needs the videos)")
    if found is None:
        raise ConfigError(f"{root}: the disruption frame needs frame variants of {shard_set.encoder}, and the set has "
                          f"none; make them with {command}, or use another disruption")
    if dt_s is not None and found.dt_s != dt_s:
        raise ConfigError(f"{root}: its frame variants shuffle frames within {found.dt_s:g} s, reward.dt_s is "
                          f"{dt_s:g}; set reward.dt_s={found.dt_s:g}, or make others with {command}")
    return shard_set.reading(shard_set.encoder, variants=True), found
