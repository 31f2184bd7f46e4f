"""Files written and checked in blocks, each with a sha256 of its own, so that hashing is never what a disk waits for.

One sha256 over a file runs on one core at 1.5 to 2 GB/s, less than what a good disk takes. Blocks of a file are hashed
by several threads while another writes; what a table lists of a file is the digest of each block. Whoever checks a file
may check any of its blocks, so the ranks of a run share the work. Left out: which blocks a rank checks."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event

from taro.core.files import open_regular
from taro.train.launch.place import ranks_here

__all__ = ["BLOCK_BYTES", "StoppedError", "blocks_of", "hash_threads", "wrong_blocks", "write_blocks"]

BLOCK_BYTES = 8 * 2**20
READ_BYTES = 2**20
"""held by each thread that checks"""
FORCE_BLOCKS = 32
"""after which what is written is forced to the disk, while more is written: 256 MB, so that little waits for the end"""


class StoppedError(Exception):
    """Writing was given up by whoever asked for it."""


def hash_threads() -> int:
    """Threads that hash beside the one that writes: of the cores that the ranks of this machine share, half."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // (2 * ranks_here(os.environ))))


def blocks_of(size_bytes: int) -> int:
    """Blocks of a file.

    >>> [blocks_of(n) for n in (0, 1, BLOCK_BYTES, BLOCK_BYTES + 1)]
    [0, 1, 1, 2]
    """
    return -(-size_bytes // BLOCK_BYTES)


def write_blocks(path: Path, parts: Iterable[memoryview], *, ahead: int | None, stop: Event) -> list[str]:
    """Writes the parts one after the other, forced to the disk; returns the sha256 of each block of the file.

    `ahead`: how many blocks may wait to be hashed, as each keeps its parts in memory; None: any number, of parts that
    stay in memory anyway. Raises OSError; StoppedError soon after `stop` is set."""
    waiting: deque[Future[str]] = deque()
    digests: list[str] = []
    with path.open("wb") as file, ThreadPoolExecutor(hash_threads(), "hash") as pool, ThreadPoolExecutor(1) as disk:
        forced: Future[None] | None = None
        try:
            for number, block in enumerate(_blocks(parts), 1):
                waiting.append(pool.submit(_digest, block))
                for piece in block:
                    if stop.is_set():
                        raise StoppedError
                    file.write(piece)
                while ahead is not None and len(waiting) > ahead:
                    digests.append(waiting.popleft().result())
                if number % FORCE_BLOCKS == 0 and (forced is None or forced.done()):
                    if forced is not None:
                        forced.result()  # what the disk refused then is not said again
                    forced = disk.submit(os.fsync, file.fileno())
            file.flush()
            if forced is not None:
                forced.result()
            os.fsync(file.fileno())
            return [*digests, *(one.result() for one in waiting)]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def wrong_blocks(path: Path, digests: Sequence[str], size_bytes: int, numbers: Iterable[int]) -> list[int]:
    """Those of the blocks `numbers` that are not what was written; all of them where the file has another size. Raises
    OSError."""
    with open_regular(path) as file, ThreadPoolExecutor(hash_threads() + 1, "check") as pool:
        handle, asked = file.fileno(), list(numbers)
        if os.fstat(handle).st_size != size_bytes or len(digests) != blocks_of(size_bytes):
            return asked or [0]
        found = pool.map(lambda number: _digest_of_block(handle, number), asked)
        return [number for number, digest in zip(asked, found, strict=True) if digest != digests[number]]


def _digest_of_block(handle: int, number: int) -> str:
    """The sha256 of a block, read a little at a time; of a short one at the end of a file."""
    digest, at, end = hashlib.sha256(), number * BLOCK_BYTES, (number + 1) * BLOCK_BYTES
    while at < end and (data := os.pread(handle, min(READ_BYTES, end - at), at)):
        digest.update(data)
        at += len(data)
    return digest.hexdigest()


def _blocks(parts: Iterable[memoryview]) -> Iterator[list[memoryview]]:
    """The bytes of all parts, cut into blocks; each is a list of pieces, none of them copied."""
    block: list[memoryview] = []
    room = BLOCK_BYTES
    for part in parts:
        start = 0
        while start < len(part):
            piece = part[start : start + room]
            block.append(piece)
            start, room = start + len(piece), room - len(piece)
            if not room:
                yield block
                block, room = [], BLOCK_BYTES
    if block:
        yield block


def _digest(block: list[memoryview]) -> str:
    digest = hashlib.sha256()
    for piece in block:
        digest.update(piece)
    return digest.hexdigest()
