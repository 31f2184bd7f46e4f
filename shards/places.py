"""Where a set lies, as a user names it: a folder (`~` too) or a URL, and the store that reads it.

A place is a str everywhere, never a Path, which would make `hf:/` of `hf://`. Another kind of remote
place is one row in `taro.shards.remote.places`; whoever takes a place takes an open store too."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from taro.core.errors import ShardError
from taro.core.places import expand_home, shown_place
from taro.shards.remote.cache import Cache, default_cache
from taro.shards.remote.places import BUCKETS, open_bucket, scheme_of
from taro.shards.remote.store import RemoteStore
from taro.shards.store import Store
from taro.shards.store_local import LocalStore

__all__ = ["STORES", "local_folder", "open_fresh", "open_store"]


def _open_folder(place: str) -> Store:
    folder = local_folder(place)
    if folder is None or not folder.is_dir():
        raise ShardError(f"{shown_place(place)}: no such folder; expected a shard set, as `taro preprocess` writes it")
    return LocalStore(folder)


def _open_remote(place: str) -> Store:
    return RemoteStore(open_bucket(place), default_cache())


STORES: dict[str, Callable[[str], Store]] = {"": _open_folder, **dict.fromkeys(BUCKETS, _open_remote)}
"""scheme of a URL, "" of a folder -> what opens a place of that scheme, or raises ShardError"""


def local_folder(place: str | Path) -> Path | None:
    """The folder that a place names, `~` resolved; None where it is a URL.

    >>> local_folder("sets/train"), local_folder("hf://datasets/owner/name")
    (PosixPath('sets/train'), None)
    """
    if scheme_of(str(place)):
        return None
    return expand_home(place)


def open_store(place: str | Path | Store) -> Store:
    """The store of a place; one that is open already is given back. ShardError where no store reads such places, or
    nothing is there."""
    if not isinstance(place, str | Path):
        return place
    text = str(place)
    opener = STORES.get(scheme_of(text))
    if opener is None:
        raise ShardError(f"{scheme_of(text)}://...: no place that shards are read from; expected a folder or a URL "
                         f"that begins with {', '.join(f'{scheme}://' for scheme in STORES if scheme)}")
    return opener(text)


@contextlib.contextmanager
def open_fresh(place: str | Path | Store) -> Iterator[Store]:
    """`open_store` for who wants to know what lies at a place now: nothing comes from the cache. What is fetched is
    kept in a folder of its own beside the cache, for the block."""
    cache = default_cache()
    if not isinstance(place, str | Path) or scheme_of(str(place)) not in BUCKETS or not cache.limit_bytes:
        yield open_store(place)
        return
    cache.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fresh-", dir=cache.folder.parent) as folder:
        yield RemoteStore(open_bucket(str(place)), Cache(Path(folder), cache.limit_bytes))
