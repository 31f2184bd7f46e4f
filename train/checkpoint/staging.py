"""Host memory that a rank's pieces are copied to, so that training goes on while they are written.

The memory is taken once, in the background, while the first steps run, and reused by every checkpoint: chunks of 1 GiB,
touched, and with a GPU pinned (registered with CUDA), so that a copy runs at the speed of the bus. A copy is enqueued
on the training stream: updates that come later wait for it on the GPU, the host does not. In host memory are then the
bytes of this rank's pieces, once. Left out: what is written of it."""

from __future__ import annotations

import logging
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from taro.core.tensors import tensor_bytes
from taro.train.launch.place import ranks_here
from taro.train.optimizer.pieces import Piece

__all__ = ["Staging", "free_host_bytes", "staged_bytes"]

log = logging.getLogger(__name__)

CHUNK_BYTES = 2**30
"""a multiple of every element's size, so that no element lies in two chunks"""
KEPT_FREE = 0.1
"""of the free memory of a machine, which staging leaves alone"""


def staged_bytes(pieces: Sequence[Piece]) -> int:
    """Host memory that staging these pieces takes."""
    return sum(one.tensor.nbytes for one in pieces)


def free_host_bytes() -> int | None:
    """Memory that this rank may still take, by the system and by its control group: its part of what is free, since the
    ranks of a machine all ask. None where nobody says."""
    found = []
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    limit = _text("/sys/fs/cgroup/memory.max").strip()
    if limit.isdecimal():
        used = [int(line.split()[1]) for line in _text("/sys/fs/cgroup/memory.stat").splitlines()
                if line.startswith(("anon ", "shmem "))]
        found.append(max(int(limit) - sum(used), 0))
    return int(min(found) * (1 - KEPT_FREE)) // ranks_here(os.environ) if found else None


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


class Staging:
    """Host memory of `size_bytes`. `stage` fills it, `parts` gives its bytes once the copies are done."""

    def __init__(self, size_bytes: int, device: torch.device) -> None:
        self.size_bytes, self.device = size_bytes, device
        self._chunks: list[torch.Tensor] = []
        self._registered: list[int] = []
        self._copied: torch.cuda.Event | None = None
        self._error: OSError | MemoryError | None = None
        self._maker = threading.Thread(target=self._make, name="staging", daemon=True)
        self._maker.start()

    def ready(self) -> bool:
        """Waits until the memory is there; whether the system gave it."""
        self._maker.join()
        return self._error is None

    def stage(self, pieces: Sequence[Piece]) -> None:
        """Copies the pieces, one behind the other. On a GPU the copies are only enqueued: training may go on at once,
        `parts` waits for them."""
        assert self.ready()
        assert staged_bytes(pieces) == self.size_bytes
        at = 0
        for one in pieces:
            source = one.tensor.detach()
            start = 0
            while start < len(source):
                chunk, place = divmod(at, CHUNK_BYTES)
                end = min(len(source), start + (CHUNK_BYTES - place) // source.itemsize)
                taken = source[start:end]
                room = self._chunks[chunk][place : place + taken.nbytes].view(source.dtype)
                room.copy_(taken, non_blocking=True)
                start, at = end, at + taken.nbytes
        if self.device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record()

    def parts(self) -> Iterator[memoryview]:
        """What was staged, as bytes; the first waits until all is there."""
        if self._copied is not None:
            self._copied.synchronize()
        for chunk in self._chunks:
            yield tensor_bytes(chunk)

    def close(self) -> None:
        """Gives the memory back. Nobody may hold `parts` any more."""
        self._maker.join()
        for place in self._registered:
            torch.cuda.cudart().cudaHostUnregister(place)
        self._registered, self._chunks = [], []

    def _make(self) -> None:
        try:
            self._take()
        except (OSError, MemoryError) as error:
            self._error = error

    def _take(self) -> None:
        pin = self.device.type == "cuda"
        for start in range(0, self.size_bytes, CHUNK_BYTES):
            size = min(CHUNK_BYTES, self.size_bytes - start)
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                memory.madvise(mmap.MADV_HUGEPAGE)
            chunk = torch.frombuffer(memory, dtype=torch.uint8).zero_()  # touched now, not while training waits
            self._chunks.append(chunk)
            pin = pin and self._pinned(chunk)

    def _pinned(self, chunk: torch.Tensor) -> bool:
        with torch.cuda.device(self.device):
            code = int(torch.cuda.cudart().cudaHostRegister(chunk.data_ptr(), chunk.nbytes, 0))
        if code:
            log.warning("host memory for checkpoints could not be pinned (CUDA error %d): copying to it is slower; see "
                        "the limit of locked memory (ulimit -l)", code)
            return False
        self._registered.append(chunk.data_ptr())
        return True
