"""One pass over a set as a webdataset pipeline: media and labels joined by key.

For work that reads everything once (statistics, exports, pre-training); training has orders of its own, whose steps
and resumes are exact (`taro.shards.lanes`). The pipeline is an ordinary `webdataset.DataPipeline`: shards are split
over nodes and DataLoader workers, and `.compose(webdataset.shuffle(...))` and the rest apply. Members are read by our
own strict tar reader, never by webdataset's decoders, some of which unpickle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taro.core.errors import MissingPackageError, ShardError
from taro.shards.format import shard_path
from taro.shards.reader import ShardSet, check_times, open_shards, parse_clip
from taro.shards.store import Store
from taro.shards.tar import read_tar
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
            features = read_tar(media_file, store.describe(media))
            jpg: bytes | None = None
            for member, data in read_tar(labels_file, store.describe(labels)):
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
