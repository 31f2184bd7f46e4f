"""Ranks that are threads of one process: they meet as processes do, and cost nothing to start."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from taro.train.ranks import Ranks

T = TypeVar("T")


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    """`told`: what each said; a meeting that a rank misses ends after 30 s."""

    told: list[Any] = field(default_factory=list)
    barrier_of_all: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))

    def gather(self, data: bytes) -> list[bytes]:
        """As `Ranks.gather`."""
        return list(self._swap(data))

    def all_gather(self, mine_N: torch.Tensor) -> torch.Tensor:
        """As `Ranks.all_gather`."""
        return torch.stack(self._swap(mine_N.clone()))

    def reduce_scatter(self, parts_WN: torch.Tensor) -> torch.Tensor:
        """As `Ranks.reduce_scatter`."""
        return torch.stack(self._swap(parts_WN.clone()))[:, self.rank].sum(0)

    def _swap(self, mine: Any) -> list[Any]:
        self.told[self.rank] = mine
        self.barrier_of_all.wait(30)
        every = list(self.told)
        self.barrier_of_all.wait(30)
        return every


def on_ranks(world: int, work: Callable[[Ranks], T]) -> list[T | BaseException]:
    """What `work` returned, or raised, on each of `world` ranks."""
    told, barrier = [None] * world, threading.Barrier(world)
    with ThreadPoolExecutor(world) as pool:
        running = [pool.submit(work, ThreadRanks(rank, world, told=told, barrier_of_all=barrier))
                   for rank in range(world)]
        return [one.exception() or one.result() for one in running]
