"""Which features of a set a policy can read: those that its own vision tower made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taro.core.errors import ShardError
from taro.models.features import EncoderFingerprint

if TYPE_CHECKING:
    from taro.shards.reader import ShardSet

__all__ = ["check_encoder", "encoder_numbers"]


def check_encoder(shard_set: ShardSet, fingerprint: EncoderFingerprint, *, policy: str | None = None) -> str:
    """The name of the set's features that a policy with this fingerprint can be trained on; `policy`: how its user
    names it.

    ShardError with both fingerprints, what differs, and the command that would fix it, where there are none. What is
    compared is what decides the numbers: family, tower, dtype and sampling, not the model's name."""
    for held in shard_set.manifest.encoders:
        if encoder_numbers(held) == encoder_numbers(fingerprint) and held.name in shard_set.encoders:
            return held.name
    lines = []
    for held in shard_set.manifest.encoders:
        differ = [name for name, value in encoder_numbers(held).items() if value != encoder_numbers(fingerprint)[name]]
        lines.append(f"  set:    {held.name} ({held.model_id}, tower {held.tower_sha256[:16]}, {held.dtype}); "
                     f"differs in {', '.join(differ) or 'nothing, but its shards are missing'}")
    raise ShardError(f"{shard_set.place}: the features were not made by this policy's vision tower\n"
                     f"  policy: {fingerprint.name} ({fingerprint.model_id}, tower {fingerprint.tower_sha256[:16]}, "
                     f"{fingerprint.dtype})\n" + "\n".join(lines or ["  set:    no features"])
                     + "\nadd this policy's features with `taro preprocess RECIPE --set out="
                     f"{shard_set.place} --only features --policy {policy or fingerprint.model_id}`")


def encoder_numbers(fingerprint: EncoderFingerprint) -> dict[str, Any]:
    """What of a fingerprint decides the features' numbers: neither the model's name nor its revision."""
    return fingerprint.model_dump(include={"family", "tower_sha256", "dtype", "sampling"})
