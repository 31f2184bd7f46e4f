"""Remote places by the scheme of their URL, as a transfer opens them."""

from __future__ import annotations

from collections.abc import Callable

from taro.core.errors import ShardError
from taro.shards.remote.bucket import Bucket

__all__ = ["BUCKETS", "open_bucket"]

BUCKETS: dict[str, Callable[[str], Bucket]] = {}
"""scheme of a URL -> what opens a place of that scheme, or raises ShardError"""


def open_bucket(place: str) -> Bucket:
    """A remote place. ShardError where no such places are known."""
    opener = BUCKETS.get(place.partition("://")[0])
    if opener is None:
        raise ShardError(f"{place}: sets are copied between folders alone")
    return opener(place)
