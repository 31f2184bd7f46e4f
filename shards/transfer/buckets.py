"""Remote places by the scheme of their URL, as a transfer opens them.

Another kind of place is a row in `BUCKETS`; one that takes a whole push at once, such as the hub's commit, is a row in
`TARGETS` too. Rows import what they need when they are used."""

from __future__ import annotations

from collections.abc import Callable

from taro.core.errors import ShardError
from taro.shards.remote.bucket import Bucket
from taro.shards.transfer.target import Target

__all__ = ["BUCKETS", "TARGETS", "open_bucket", "open_target"]


def _objects(place: str) -> Bucket:
    from taro.shards.remote.objects import ObjectBucket

    return ObjectBucket(place)


def _web(place: str) -> Bucket:
    from taro.shards.remote.http import HttpBucket

    return HttpBucket(place)


def _hub(place: str) -> Bucket:
    from taro.shards.remote.hub import open_hub

    return open_hub(place)


BUCKETS: dict[str, Callable[[str], Bucket]] = {
    "http": _web, "https": _web, "s3": _objects, "gs": _objects, "az": _objects, "hf": _hub}
"""scheme of a URL -> what opens a place of that scheme, or raises ShardError"""

def _data_set(place: str, jobs: int, public: bool) -> Target:
    from taro.shards.transfer.hub_target import HubTarget

    return HubTarget(place, public=public, jobs=jobs)


TARGETS: dict[str, Callable[[str, int, bool], Target]] = {"hf://datasets": _data_set}
"""what a place begins with -> what opens it to push to: its place, files at a time, whether everybody may read it"""


def open_bucket(place: str) -> Bucket:
    """A remote place. ShardError where no such places are known."""
    opener = BUCKETS.get(_scheme(place))
    if opener is None:
        raise ShardError(f"{place}: sets are pulled from folders and from {', '.join(f'{one}://' for one in BUCKETS)}")
    return opener(place)


def open_target(place: str, *, jobs: int, public: bool = False) -> Target:
    """A remote place to push to. ShardError where nothing can be pushed to such a place."""
    from taro.shards.transfer.bucket_target import BucketTarget

    opener = next((opener for start, opener in TARGETS.items() if place.startswith(f"{start}/")), None)
    if opener is not None:
        return opener(place, jobs, public)
    if _scheme(place) not in {"s3", "gs", "az"} and not place.startswith("hf://buckets/"):
        raise ShardError(f"{place}: sets are pushed to folders, s3://, gs://, az://, hf://datasets/ and hf://buckets/")
    return BucketTarget(open_bucket(place), jobs=jobs)


def _scheme(place: str) -> str:
    return place.partition("://")[0]
