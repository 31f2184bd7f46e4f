"""Remote places by the scheme of their URL: what reads them, for stores and for transfers alike.

Another kind of place is a row in `BUCKETS`. Rows import what they need when they are used."""

from __future__ import annotations

import re
from collections.abc import Callable

from taro.core.errors import ShardError
from taro.core.places import shown_place
from taro.shards.remote.bucket import Bucket

__all__ = ["BUCKETS", "open_bucket", "scheme_of"]


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


def scheme_of(place: str) -> str:
    """The scheme of a URL, "" of a folder.

    >>> scheme_of("hf://datasets/owner/name"), scheme_of("sets/train")
    ('hf', '')
    """
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", place)
    return found[1].lower() if found else ""


def open_bucket(place: str) -> Bucket:
    """A remote place. ShardError where no such places are known."""
    opener = BUCKETS.get(scheme_of(place))
    if opener is None:
        raise ShardError(f"{shown_place(place)}: sets are pulled from folders and from "
                         f"{', '.join(f'{one}://' for one in BUCKETS)}")
    return opener(place)
