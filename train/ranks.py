"""The processes of a run, each with a GPU of its own, and what they say to each other.

A run on one GPU is one rank of one, and every verb here is then a plain copy: nothing above asks how many there are.
Bytes and numbers travel as tensors, never as pickles. Every verb is a meeting: all ranks call it, in one order, or the
run waits. Prompt i of a step belongs to rank i mod world, so that every mini-batch is spread.
Left out: starting processes, and noticing dead ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

__all__ = ["ALONE", "Ranks"]


@dataclass(frozen=True)
class Ranks:
    """rank: of this process, of `world` in all; local: its GPU on this machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

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
        if dist.get_backend() == "gloo":
            dist.all_reduce(parts_WN)
            return parts_WN[self.rank]
        out_N = torch.empty_like(parts_WN[0])
        dist.reduce_scatter_tensor(out_N, parts_WN.view(-1))
        return out_N

    def all_gather(self, mine_N: torch.Tensor, every: torch.Tensor | None = None) -> torch.Tensor:
        """[world, N]: everyone's [N], of one dtype and length; in the memory of `every` [world * N] where it is
        given."""
        if self.world == 1:
            return (mine_N if every is None else every.copy_(mine_N))[None]
        every = mine_N.new_empty(self.world * len(mine_N)) if every is None else every
        dist.all_gather_into_tensor(every, mine_N.contiguous())
        return every.view(self.world, -1)

    def barrier(self) -> None:
        """Waits for all."""
        self.gather(b"")

    def _all(self, mine: torch.Tensor) -> list[torch.Tensor]:
        """Everyone's tensor of one shape, on the CPU."""
        device = torch.device("cuda", self.local) if dist.get_backend() == "nccl" else torch.device("cpu")
        mine = mine.to(device)
        every = [torch.empty_like(mine) for _ in range(self.world)]
        if mine.numel():
            dist.all_gather(every, mine)
        return [one.cpu() for one in every]


ALONE = Ranks()
"""one process"""
