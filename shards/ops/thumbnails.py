"""Paths shards without contact sheets: the same clips in the same slices, their JSON byte for byte.

Features and whatever else a set holds need not be copied for that: the shards of a slice hold the same keys still."""

from __future__ import annotations

from pathlib import Path

from taro.core.counting import OnProgress, counted
from taro.shards.format import ShardEntry
from taro.shards.manifest import read_sidecar
from taro.shards.reader import ShardSet
from taro.shards.writer import SliceWriter

__all__ = ["without_thumbnails"]


def without_thumbnails(shard_set: ShardSet, root: Path, *, progress: OnProgress | None = None) -> list[ShardEntry]:
    """Writes the set's paths shards without their contact sheets below `root`; returns what a manifest says of them."""
    made = []
    for entry in counted([one for one in shard_set.manifest.shards if one.kind == "paths"], progress):
        with SliceWriter(root, entry.index, kinds=["paths"]) as writer:
            for record in read_sidecar(shard_set.store, entry).records:
                writer.add_clip(shard_set.clip(record.key), None, {}, {})
            made += writer.commit()
    return made
