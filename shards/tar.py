"""A plain tar shard: written so that equal records give equal bytes, read by a reader that accepts nothing else.

Every byte is decided: ustar headers, members in ascending order, mode 0644, owner 0 without name, mtime 0, zero padding
to 10,240 bytes. tarfile, webdataset, datasets and `tar` read it; a symlink, a device, a folder, a second name for the
same record, an extended header, or any other header than the one we would write is refused. The end is strict too, so
a shard cut anywhere is noticed."""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from taro.core.errors import ShardError
from taro.shards.format import BLOCK, KEY_LENGTH, MAX_BYTES

__all__ = ["TarMember", "TarWriter", "member_header", "read_header", "read_tar"]

RECORD = 20 * BLOCK
_MEMBER = re.compile(rf"([A-Za-z0-9_-]{{1,{KEY_LENGTH}}})\.(jpg|json|safetensors)")


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file in a shard: where its data begins (the header is the 512 bytes before), and how long it is."""

    key: str
    ext: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        """Its name in the tar."""
        return f"{self.key}.{self.ext}"


def member_header(name: str, size: int) -> bytes:
    """The 512 bytes that open a member: the only header that a shard may hold for this name and size."""
    match = _MEMBER.fullmatch(name)
    if match is None or not 0 <= size <= MAX_BYTES[match[2]]:
        most = ", ".join(f".{ext} of at most {limit:,} bytes" for ext, limit in MAX_BYTES.items())
        raise ShardError(f"{name[:120]!r} with {size:,} bytes cannot be a member of a shard: a key is 1 to "
                         f"{KEY_LENGTH} of A-Z a-z 0-9 _ -, then {most}")
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info.tobuf(tarfile.USTAR_FORMAT)


class TarWriter:
    """Appends members to an open file, hashing as it goes; `close` writes the end. Names must ascend."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._last: tuple[str, str] = ("", "")
        self.bytes = 0

    def add(self, key: str, ext: str, data: bytes) -> TarMember:
        """Writes one member and says where it lies."""
        if (key, ext) <= self._last:
            raise ShardError(f"{key}.{ext} comes after {'.'.join(self._last)}: add records in ascending order of key")
        self._put(member_header(f"{key}.{ext}", len(data)))
        member = TarMember(key, ext, self.bytes, len(data))
        self._put(data)
        self._put(bytes(-len(data) % BLOCK))
        self._last = (key, ext)
        return member

    def close(self) -> str:
        """Writes the end of the archive; returns the sha256 over all bytes in hex."""
        self._put(bytes(2 * BLOCK + -(self.bytes + 2 * BLOCK) % RECORD))
        return self._hash.hexdigest()

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.bytes += len(data)


def read_header(block: bytes, where: str) -> tuple[str, str, int]:
    """(key, ext, size) of a header block; ShardError unless it is exactly the header that we would write."""
    name = block[:100].split(b"\0", 1)[0].decode("ascii", "replace")
    match = _MEMBER.fullmatch(name)
    digits = block[124:135]
    if len(block) != BLOCK or match is None or re.fullmatch(rb"[0-7]{11}", digits) is None:
        raise ShardError(f"{where}: not the header of a shard's member (name {name[:120]!r}); a shard holds regular "
                         "files KEY.json, KEY.jpg, KEY.safetensors and nothing else; the file is damaged or "
                         "not a shard")
    size = int(digits, 8)
    if size > MAX_BYTES[match[2]]:
        raise ShardError(f"{where}: {name} is said to have {size:,} bytes, at most {MAX_BYTES[match[2]]:,} are read")
    if block != member_header(name, size):
        raise ShardError(f"{where}: the tar header of {name} is not the canonical one (mode 0644, owner 0, mtime 0, a "
                         "regular file, a right checksum); the file is damaged or was not written by taro")
    return match[1], match[2], size


def read_tar(file: BinaryIO, where: str) -> Iterator[tuple[TarMember, bytes]]:
    """Members and their data in order; the whole file is checked, to its last byte, if the iterator is run out."""
    last: tuple[str, str] = ("", "")
    offset = 0
    while True:
        block = file.read(BLOCK)
        at = f"{where}: byte {offset:,}"
        if len(block) != BLOCK:
            raise ShardError(f"{at}: the shard ends here, before its end mark; it is truncated, fetch or make it again")
        if not any(block):
            break
        key, ext, size = read_header(block, at)
        if (key, ext) <= last:
            raise ShardError(f"{at}: {key}.{ext} comes after {'.'.join(last)}; members must ascend")
        padded = size + -size % BLOCK
        data = _read_exactly(file, padded, f"{where}: record {key} at byte {offset + BLOCK:,}")
        if any(data[size:]):
            raise ShardError(f"{where}: record {key} at byte {offset + BLOCK:,}: bytes after the end of {key}.{ext}")
        yield TarMember(key, ext, offset + BLOCK, size), data[:size]
        last = (key, ext)
        offset += BLOCK + padded
    rest = file.read(RECORD + BLOCK)
    expected = BLOCK + -(offset + 2 * BLOCK) % RECORD
    if len(rest) != expected or any(rest):
        raise ShardError(f"{where}: byte {offset + BLOCK:,}: expected {expected} zero bytes and the end of the file; "
                         "the shard is damaged")


def _read_exactly(file: BinaryIO, size: int, where: str) -> bytes:
    """`size` bytes, read in pieces so that a header that lies about its size allocates no more than the file has."""
    pieces: list[bytes] = []
    missing = size
    while missing:
        piece = file.read(min(missing, 2**24))
        if not piece:
            raise ShardError(f"{where}: {size:,} bytes announced, the shard ends after {size - missing:,}; it is "
                             "truncated, fetch or make it again")
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)
