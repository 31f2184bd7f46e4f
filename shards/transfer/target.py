"""The seam between a push and the place that it goes to: what lies there, and one call that sends what is missing.

A push compares and orders; a `Target` moves. A kind of place is one class with these methods: `BucketTarget`
for object stores and hub buckets, `HubTarget` for data sets of a hub. A folder of this machine needs none: there a push
is a pull from the other side.

Left out: removing what lies at a place, but for `remove` of a send that appears at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from taro.core.errors import ShardError
from taro.core.files import file_sha256
from taro.shards.store_local import LocalStore

__all__ = ["Held", "OnMoved", "OnProgress", "Outgoing", "Progress", "Target"]


@dataclass(frozen=True, slots=True)
class Held:
    """A file that lies at a place: its bytes, and its sha256 where the place knows it."""

    size: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A file to send: its name in the set, where it lies here, its bytes and the sha256 that the manifest says."""

    name: str
    path: Path
    size: int
    sha256: str

    def check(self) -> None:
        """Reads the file; ShardError where its bytes are not those of the manifest."""
        store = LocalStore(self.path.parents[self.name.count("/")])
        with store.open(self.name) as file:
            digest = file_sha256(file)
        if digest != self.sha256:
            raise ShardError(f"{self.path}: its sha256 is not the manifest's, so it is not sent; `taro shards verify` "
                             "lists what is wrong with the set")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a transfer is: files and bytes that have moved, of those that have to."""

    files: int
    of_files: int
    bytes: int
    of_bytes: int


OnProgress = Callable[[Progress], None]
OnMoved = Callable[[int, int], None]
"""called by whoever moves, from any thread: so many more files are finished, so many more bytes have moved. Raises
where the transfer is to stop; let that pass"""


class Target(Protocol):
    """A place that a set is pushed to. Failures are ShardErrors without secrets."""

    @property
    def place(self) -> str:
        """How its user names it, without any secret."""

    @property
    def at_once(self) -> bool:
        """Whether all files of one `send` appear together, and what lay there before can be read on under a revision
        of its own. Only such a place may have files changed or removed."""

    @property
    def revision(self) -> str | None:
        """What `have` told of, or what the last `send` made, where the place has revisions."""

    def have(self) -> Mapping[str, Held]:
        """What lies there, by name; {} where there is nothing yet, or no such place."""

    def read(self, name: str, *, limit_bytes: int) -> bytes:
        """A small file that lies there, whole; ShardError where it is longer than the limit."""

    def send(self, files: Sequence[Outgoing], remove: Sequence[str], moved: OnMoved) -> None:
        """Sends the files, each checked before (`Outgoing.check`, or where the place's own protocol tells its sha256).

        Each file appears whole or not at all. `files` are in an order that is safe, manifest.json last: no file may
        appear before one whose bytes it vouches for, which is the shard before its sidecar, and all before the
        manifest. ShardError where manifest.json at the place is another than when `have` was called. `remove`: names
        to remove in the same moment; empty unless `at_once`."""
