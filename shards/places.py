"""Where a set lies, as a user names it: a folder (`~` too) or a URL, and the store that reads it.

A place is a str everywhere, never a Path, which would make `hf:/` of `hf://`. Another kind of place is one row in
`STORES`; whoever takes a place takes an open store too."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from taro.core.errors import ShardError
from taro.core.places import expand_home
from taro.shards.remote.cache import default_cache
from taro.shards.remote.store import RemoteStore
from taro.shards.store import Store
from taro.shards.store_local import LocalStore

__all__ = ["STORES", "local_folder", "open_store"]


def _open_folder(place: str) -> Store:
    folder = local_folder(place)
    if folder is None or not folder.is_dir():
        raise ShardError(f"{place}: no such folder; expected a shard set, as `taro preprocess` writes it")
    return LocalStore(folder)


def _open_web(place: str) -> Store:
    from taro.shards.remote.http import HttpBucket

    return RemoteStore(HttpBucket(place), default_cache())


def _open_objects(place: str) -> Store:
    from taro.shards.remote.objects import ObjectBucket

    return RemoteStore(ObjectBucket(place), default_cache())


def _open_hub(place: str) -> Store:
    from taro.shards.remote.hub import open_hub

    return RemoteStore(open_hub(place), default_cache())


STORES: dict[str, Callable[[str], Store]] = {
    "": _open_folder, "http": _open_web, "https": _open_web,
    "s3": _open_objects, "gs": _open_objects, "az": _open_objects, "hf": _open_hub}
"""scheme of a URL, "" of a folder -> what opens a place of that scheme, or raises ShardError"""


def _scheme(place: str) -> str:
    found = re.match(r"([a-z][a-z0-9+.-]*)://", place)
    return found[1] if found else ""


def local_folder(place: str | Path) -> Path | None:
    """The folder that a place names, `~` resolved; None where it is a URL.

    >>> local_folder("sets/train"), local_folder("hf://datasets/owner/name")
    (PosixPath('sets/train'), None)
    """
    if _scheme(str(place)):
        return None
    return expand_home(place)


def open_store(place: str | Path | Store) -> Store:
    """The store of a place; one that is open already is given back. ShardError where no store reads such places, or
    nothing is there."""
    if not isinstance(place, str | Path):
        return place
    text = str(place)
    opener = STORES.get(_scheme(text))
    if opener is None:
        raise ShardError(f"{_scheme(text)}://...: no place that shards are read from; expected a folder or a URL that "
                         f"begins with {', '.join(f'{scheme}://' for scheme in STORES if scheme)}")
    return opener(text)
