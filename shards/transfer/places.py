"""Remote places that a set is pushed to. One that takes a whole push at once, such as the hub's commit, is a row in
`TARGETS`; object stores and hub buckets take a file at a time."""

from __future__ import annotations

from collections.abc import Callable

from taro.core.errors import ShardError
from taro.core.places import shown_place
from taro.shards.remote.places import open_bucket, scheme_of
from taro.shards.transfer.target import Target

__all__ = ["TARGETS", "open_target"]


def _data_set(place: str, jobs: int, public: bool) -> Target:
    from taro.shards.transfer.hub_target import HubTarget

    return HubTarget(place, public=public, jobs=jobs)


TARGETS: dict[str, Callable[[str, int, bool], Target]] = {"hf://datasets": _data_set}
"""what a place begins with -> what opens it to push to: its place, files at a time, whether everybody may read it"""


def open_target(place: str, *, jobs: int, public: bool = False) -> Target:
    """A remote place to push to. ShardError where nothing can be pushed to such a place."""
    from taro.shards.transfer.bucket_target import BucketTarget

    opener = next((opener for start, opener in TARGETS.items() if place.startswith(f"{start}/")), None)
    if opener is not None:
        return opener(place, jobs, public)
    if scheme_of(place) not in {"s3", "gs", "az"} and not place.startswith("hf://buckets/"):
        raise ShardError(f"{shown_place(place)}: sets are pushed to folders, s3://, gs://, az://, hf://datasets/ and hf://buckets/")
    return BucketTarget(open_bucket(place), jobs=jobs)
