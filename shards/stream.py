"""One pass over a set as a webdataset pipeline: media and labels joined by key.

For work that reads everything once (statistics, exports, pre-training); training has orders of its own, whose steps
and resumes are exact (`taro.shards.lanes`). The pipeline is an ordinary `webdataset.DataPipeline`: shards are split
over nodes and DataLoader workers, and `.compose(webdataset.shuffle(...))` and the rest apply. Members are read by our
own strict tar reader and must have the sidecar's sha256; webdataset's decoders, some of which unpickle, see none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from taro.core.errors import MissingPackageError, ShardError
from taro.shards.format import shard_path
from taro.shards.reader import ShardSet, check_times, open_shards, parse_clip
from taro.shards.store import Store
from taro.shards.tar import TarMember, read_tar
from taro.shards.tensors import unpack_features

if TYPE_CHECKING:
    import webdataset

__all__ = ["stream"]


def stream(place: str | Path | Store, encoder: str | None = None) -> webdataset.DataPipeline:
    """Samples `{"__key__", "__url__", "clip": ClipRecord, "jpg": bytes | None, "features": VideoFeatures}`, in order of
    the shards and of their keys. Raises MissingPackageError without webdataset, ShardError for a wrong set."""
    try:
        import webdataset as wds
    except ImportError:
        raise MissingPackageError("taro.shards.stream needs webdataset, which is not installed; pip install "
                                  "'taro-vtg[webdataset]'. taro.open_shards reads the same set without it") from None
    shard_set = open_shards(place, encoder)
    indices = [entry.index for entry in shard_set.manifest.shards if entry.kind == "paths"]
    urls = [f"{shard_set.place}/{shard_path('paths', index)}" for index in indices]
    return wds.DataPipeline(wds.SimpleShardList(urls), wds.split_by_node, wds.split_by_worker, _Join(shard_set))


class _Join:
    """The pipeline's stage from shards to samples; a class, so that a DataLoader can pickle it."""

    def __init__(self, shard_set: ShardSet) -> None:
        self.shard_set = shard_set

    def __call__(self, shards: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for shard in shards:
            yield from self._slice(int(Path(shard["url"]).stem.rpartition("-")[2]), shard["url"])

    def _slice(self, index: int, url: str) -> Iterator[dict[str, Any]]:
        store, encoder = self.shard_set.store, self.shard_set.encoder
        labels, media = shard_path("paths", index), shard_path(f"features/{encoder}", index)
        with store.open(labels) as labels_file, store.open(media) as media_file:
            features = self._members(media_file, f"features/{encoder}", index)
            jpg: bytes | None = None
            for member, data in self._members(labels_file, "paths", index):
                if member.ext == "jpg":
                    jpg = data
                    continue
                at, raw = next(features, (None, b""))
                where = f"{store.describe(media)}: record {member.key}"
                if at is None or at.key != member.key:
                    raise ShardError(f"{where}: expected here, got {at.key if at else 'the end of the shard'}; the "
                                     "kinds of the slice were made by different jobs")
                clip = parse_clip(data, f"{store.describe(labels)}: record {member.key} at byte {member.offset:,}")
                unpacked = unpack_features(raw, f"{where} at byte {at.offset:,}")
                check_times(clip, unpacked, where)
                yield {"__key__": member.key, "__url__": url, "clip": clip, "jpg": jpg, "features": unpacked}
                jpg = None
            if next(features, None) is not None:
                raise ShardError(f"{store.describe(media)}: more records than {store.describe(labels)} has")

    def _members(self, file: BinaryIO, kind: str, index: int) -> Iterator[tuple[TarMember, bytes]]:
        """The members of a shard with their bytes, each as the sidecar lists it."""
        shard = self.shard_set.store.describe(shard_path(kind, index))
        for at, data in read_tar(file, shard):
            record = self.shard_set.listed(kind, at.key)
            digests: dict[str, str] = {member.ext: member.sha256 for member in record.members} if record else {}
            if hashlib.sha256(data).hexdigest() != digests.get(at.ext):
                raise ShardError(f"{shard}: record {at.key} at byte {at.offset:,}: sha256 of {at.key}.{at.ext} is not "
                                 "the sidecar's; the shard is damaged, fetch it again or make it again (`taro shards "
                                 "verify` lists all damage)")
            yield at, data
