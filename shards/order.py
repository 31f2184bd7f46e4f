"""Which queries a step takes: a pure function of (seed, step), so a resume needs nothing but the step's number.

Every epoch is a fresh permutation of all queries. A step takes `batch` of them over all ranks, each rank an equal,
contiguous part, so ranks always take the same number of steps and the union over ranks does not depend on how many
there are. What does not fill a batch at the end of an epoch is left out of that epoch (2,500 queries at 16 a step:
156 steps and 4 left out; three epochs are the 468 steps of the paper); another permutation leaves out others, and
`left_out` says how many."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from taro.core.draws import rng
from taro.core.errors import ConfigError

__all__ = ["QueryOrder", "share_of_step"]


def share_of_step(step: int, batch: int, rank: int, world: int, *, steps_per_epoch: int) -> tuple[int, slice]:
    """(epoch, part of its order) that `rank` of `world` takes at `step`; `batch` counts all ranks together. Raises
    ConfigError where the ranks' parts would not be equal.

    >>> share_of_step(5, 4, 1, 2, steps_per_epoch=2)
    (2, slice(6, 8, None))
    """
    if batch % world or not 0 <= rank < world:
        raise ConfigError(f"a batch of {batch} queries cannot be split evenly over {world} ranks (rank {rank}); "
                          f"make the prompts per step a multiple of {world}")
    epoch, within = divmod(step, steps_per_epoch)
    share = batch // world
    start = within * batch + rank * share
    return epoch, slice(start, start + share)


class QueryOrder:
    """The order of `n` queries over epochs; `epoch` gives one, the rest follows from it.

    >>> order = QueryOrder(10, seed=0)
    >>> order.steps_per_epoch(4), order.left_out(4)
    (2, 2)
    >>> epoch, whole = order.step(5, 4)
    >>> halves = [order.step(5, 4, rank=rank, world=2)[1] for rank in (0, 1)]
    >>> epoch, halves[0] + halves[1] == whole
    (2, True)
    """

    def __init__(self, n: int, *, seed: int) -> None:
        if n < 1:
            raise ConfigError("the selection holds no query; check the shard set, the split and the filters")
        self.n = n
        self.seed = seed
        self._epoch = lru_cache(maxsize=2)(self._permutation)

    def epoch(self, epoch: int) -> np.ndarray:
        """The permutation [n] of one epoch."""
        return self._epoch(epoch)

    def steps_per_epoch(self, batch: int) -> int:
        """Whole batches in an epoch."""
        if not 1 <= batch <= self.n:
            raise ConfigError(f"a batch of {batch} queries from {self.n} draws an epoch: lower the prompts per step to "
                              f"1..{self.n}, or add queries or draws")
        return self.n // batch

    def left_out(self, batch: int) -> int:
        """Queries of an epoch that its steps do not take."""
        return self.n - self.steps_per_epoch(batch) * batch

    def step(self, step: int, batch: int, rank: int = 0, world: int = 1) -> tuple[int, list[int]]:
        """(epoch, indices of the queries) that `rank` of `world` takes at `step`; `batch` counts all ranks together."""
        epoch, part = share_of_step(step, batch, rank, world, steps_per_epoch=self.steps_per_epoch(batch))
        return epoch, [int(index) for index in self.epoch(epoch)[part]]

    def _permutation(self, epoch: int) -> np.ndarray:
        order = rng("query-order", self.seed, epoch).permutation(self.n)
        order.flags.writeable = False
        return order
