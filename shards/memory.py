"""Memory of records, used again: the system clears each page that it gives, which takes longer than reading a record
from the page cache into memory that is there already.

A block goes back when nothing lies in it any more: no view, no tensor. It is the process's own, also after a fork.
Left out: a block for several records."""

from __future__ import annotations

import mmap
import weakref
from collections import deque

import numpy as np

__all__ = ["record_memory"]

LEAST_BYTES = 2**20
"""of a block; smaller pieces are ordinary memory"""
IDLE_BYTES = 2**29
"""of all blocks that wait to be used again, of a process"""
_idle: deque[mmap.mmap] = deque()


def record_memory(size: int) -> memoryview:
    """Memory for `size` bytes, which may be written; what it holds is left from another use. No more than twice as
    much is taken."""
    if size < LEAST_BYTES:
        return np.empty(size, np.uint8).data
    block = _taken(size)
    whole = np.frombuffer(block, np.uint8)
    weakref.finalize(whole, _give_back, block).atexit = False
    return whole.data[:size]


def _taken(size: int) -> mmap.mmap:
    for _ in range(len(_idle)):
        try:
            block = _idle.pop()  # the one used last, which may be in the processor's cache
        except IndexError:  # another thread took it
            break
        if size <= len(block) <= 2 * size:
            return block
        _idle.appendleft(block)
    return mmap.mmap(-1, -(-size // LEAST_BYTES) * LEAST_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _give_back(block: mmap.mmap) -> None:
    """Called in whichever thread drops the last view, so without a lock; what goes beyond the limit is freed."""
    if len(block) + sum(map(len, [*_idle])) <= IDLE_BYTES:
        _idle.append(block)
