"""The processes of a run, each with a GPU of its own, and what they say to each other.

A run on one GPU is one rank of one, and every verb here is then a plain copy: nothing above asks how many there are.
Bytes and numbers travel as tensors, never as pickles. Every verb is a meeting: all ranks call it, in one order, or the
run waits. Prompt i of a step belongs to rank i mod world, so that every mini-batch is spread.
Left out: starting processes, and noticing dead ones (`taro.train.launch`)."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist

from taro.core.errors import TaroError, first_line, full_memory

__all__ = ["ALONE", "LostRankError", "Ranks"]


class LostRankError(TaroError):
    """A meeting that not every rank came to: another rank has failed, and knows why."""

REDUCE_SCATTER = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
ALL_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""by their newer names, where torch has them"""


@dataclass(frozen=True)
class Ranks:
    """rank: of this process, of `world` in all; local: its GPU on this machine; note: called with the phase that this
    rank begins, for whoever reports its failure."""

    rank: int = 0
    world: int = 1
    local: int = 0
    note: Callable[[str], None] = field(default=lambda _: None, compare=False, repr=False)

    @property
    def first(self) -> bool:
        """Whether this rank writes what the run has once: metrics, rollouts, messages."""
        return self.rank == 0

    def mine(self, numbers: int) -> range:
        """Which of `numbers` prompts, counted from 0, are this rank's."""
        return range(self.rank, numbers, self.world)

    def gather(self, data: bytes) -> list[bytes]:
        """The bytes of every rank, in rank order, on every rank."""
        if self.world == 1:
            return [data]
        lengths = self._all(torch.tensor([len(data)], dtype=torch.int64))
        longest = int(max(int(one) for one in lengths))
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else padded[:0]
        return [bytes(one[: int(length)].numpy().tobytes())
                for one, length in zip(self._all(padded), lengths, strict=True)]

    def all_of(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """float64 [world, ...]: everyone's values, of one shape."""
        mine = np.asarray(values, dtype=np.float64)
        return np.stack([np.frombuffer(one, dtype=np.float64).reshape(mine.shape)
                         for one in self.gather(mine.tobytes())])

    def sum(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """float64 sums over the ranks, added in rank order."""
        every = self.all_of(values)
        return np.asarray(sum(every[1:], every[0].copy()))

    def reduce_scatter(self, parts_WN: torch.Tensor) -> torch.Tensor:
        """[N]: this rank's row of the sum of everyone's [world, N]."""
        if self.world == 1:
            return parts_WN[0]
        with _meeting():
            if dist.get_backend() == "gloo":
                dist.all_reduce(parts_WN)
                return parts_WN[self.rank]
            out_N = torch.empty_like(parts_WN[0])
            REDUCE_SCATTER(out_N, parts_WN.view(-1))
            return out_N

    def all_gather(self, mine_N: torch.Tensor, every: torch.Tensor | None = None) -> torch.Tensor:
        """[world, N]: everyone's [N], of one dtype and length; in the memory of `every` [world * N] where it is
        given."""
        if self.world == 1:
            return (mine_N if every is None else every.copy_(mine_N))[None]
        every = mine_N.new_empty(self.world * len(mine_N)) if every is None else every
        with _meeting():
            ALL_GATHER(every, mine_N.contiguous())
        return every.view(self.world, -1)

    def any(self, mine: bool) -> bool:
        """Whether any rank says yes."""
        return bool(self.all_of([mine]).any())

    def check_same(self, what: str, data: bytes) -> None:
        """Raises TaroError where ranks hold different bytes."""
        every = self.gather(hashlib.sha256(data).digest())
        other = [rank for rank, one in enumerate(every) if one != every[0]]
        if other:
            raise TaroError(f"rank {other[0]} has other {what} than rank 0; expected the same on every rank: start all "
                            "with the same command, files and taro")

    def check_weights(self, named: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Raises TaroError where ranks hold different weights."""
        if self.world > 1:
            self.check_same("weights", repr([(name, _bits(tensor)) for name, tensor in named]).encode())

    def barrier(self) -> None:
        """Waits for all."""
        self.gather(b"")

    def _all(self, mine: torch.Tensor) -> list[torch.Tensor]:
        """Everyone's tensor of one shape, on the CPU."""
        device = torch.device("cuda", self.local) if dist.get_backend() == "nccl" else torch.device("cpu")
        mine = mine.to(device)
        every = [torch.empty_like(mine) for _ in range(self.world)]
        with _meeting():
            if mine.numel():
                dist.all_gather(every, mine)
            return [one.cpu() for one in every]


@contextlib.contextmanager
def _meeting() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if full_memory(error) is not None:
            raise
        raise LostRankError(f"another rank did not come to a meeting ({first_line(error)}); its own message, or the "
                            "log of its machine, says why. The same command with --resume goes on") from error


def _bits(tensor: torch.Tensor) -> int:
    """The sum of a tensor's bits as whole numbers: no order of adding changes it."""
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return int(tensor.detach().contiguous().view(kind).sum(dtype=torch.int64))


ALONE = Ranks()
"""one process"""
