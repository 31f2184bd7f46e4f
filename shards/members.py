"""The members of a shard, as its sidecar lists them: read, compared with what the sidecar says, and parsed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from taro.core.errors import ShardError
from taro.core.json import parse_model
from taro.grounding.records import ClipRecord
from taro.shards.format import BLOCK, MAX_ELEMENTS, MAX_JSON_BYTES, Member, SidecarRecord
from taro.shards.store import Piece, Store
from taro.shards.tar import read_header

__all__ = ["Accepted", "checked", "clip_of", "member_of", "parse_clip", "read_clips"]

MAX_ACCEPTED = 200_000
"""pieces that are remembered, about 400 bytes each"""


def parse_clip(data: bytes, where: str) -> ClipRecord:
    """KEY.json from its bytes; ShardError that opens with `where`."""
    return parse_model(ClipRecord, data, where, limit_bytes=MAX_JSON_BYTES, limit_elements=MAX_ELEMENTS["clip"])


def member_of(record: SidecarRecord, ext: str, shard: str) -> Member:
    """What the sidecar says of one member of a record; `shard`: its name for a message."""
    member = next((member for member in record.members if member.ext == ext), None)
    if member is None:
        raise ShardError(f"{shard}: record {record.key} has no .{ext}")
    return member


def read_clips(store: Store, name: str, records: list[SidecarRecord]) -> Iterator[ClipRecord]:
    """The clips of a paths shard, in the order of its sidecar, which is that of their bytes."""
    shard = store.describe(name)
    with store.open(name) as file:
        for record in records:
            member = member_of(record, "json", shard)
            file.seek(member.offset - BLOCK)
            read = memoryview(file.read(BLOCK + member.size))
            yield clip_of(record, *checked(read, shard, record.key, member))


def clip_of(record: SidecarRecord, data: memoryview, where: str) -> ClipRecord:
    """KEY.json, parsed and compared with what the sidecar says of it."""
    clip = parse_clip(bytes(data), where)
    if clip.key != record.key or len(clip.queries) != record.queries:
        raise ShardError(f"{where}: holds {clip.key} with {len(clip.queries)} queries, the sidecar says {record.key} "
                         f"with {record.queries}")
    return clip


class Accepted:
    """The pieces whose digests were found right, so that none is computed twice in a process while the file that holds
    it does not change. A worker that this is pickled to begins anew."""

    def __init__(self) -> None:
        self._right: dict[tuple[tuple[int, ...], str], None] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Accepted, ()

    def checked(self, piece: Piece, shard: str, key: str, member: Member) -> tuple[memoryview, str]:
        """The same as `checked`."""
        name = None if piece.stamp is None else (piece.stamp, member.sha256)
        found = checked(piece.data, shard, key, member, member.sha256 if name in self._right else piece.sha256)
        if name is not None:
            if len(self._right) >= MAX_ACCEPTED:
                self._right = {}
            self._right[name] = None
        return found


def checked(data: memoryview, shard: str, key: str, member: Member, sha256: str = "") -> tuple[memoryview, str]:
    """The data of a member that was read with its header, both checked, and how to name it in a message. Features of
    many megabytes are not copied for the sake of their header. `sha256`: of the data, where it is known."""
    where = f"{shard}: record {key} at byte {member.offset:,}"
    if len(data) != BLOCK + member.size:
        raise ShardError(f"{where}: {member.size:,} bytes expected, the shard ends before; it is truncated")
    if read_header(bytes(data[:BLOCK]), where) != (key, member.ext, member.size):
        raise ShardError(f"{where}: the header there does not name {key}.{member.ext} of {member.size:,} bytes; shard "
                         "and sidecar do not belong together")
    view = data[BLOCK:]
    if (sha256 or hashlib.sha256(view).hexdigest()) != member.sha256:
        raise ShardError(f"{where}: sha256 of {key}.{member.ext} is not the sidecar's; the shard is damaged, fetch it "
                         "again or make it again (`taro shards verify` lists all damage)")
    return view, where
