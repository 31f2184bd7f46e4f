"""Which queries a step takes from several sets, mixed by weight: like `QueryOrder`, a pure function of (seed, step).

An epoch is a fixed number of draws. Each set gets its share of them exactly (largest remainders), so a mixture is not
only right on average; where its draws fall in the epoch is a shuffle that depends on (seed, epoch) alone. A set is
drawn from in its own `QueryOrder`, one permutation after the other, and goes on in the next epoch where it stopped: no
query of a set comes a second time before all of them came once, whether the set is drawn from twice an epoch or a
tenth of one. Batches and ranks are as in order.py; with one set the order is that of `QueryOrder`.

Indices count through all sets, the second set's queries after the first's. Left out: weights that change over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from taro.core.draws import rng
from taro.core.errors import ConfigError
from taro.shards.order import QueryOrder, share_of_step

__all__ = ["MixedOrder"]


class MixedOrder(QueryOrder):
    """The order of the queries of several sets over epochs of `n` draws.

    >>> order = MixedOrder([6, 30], [2, 1], seed=0, draws=12)
    >>> order.shares
    [8, 4]
    >>> epoch, whole = order.step(4, 4)
    >>> halves = [order.step(4, 4, rank=rank, world=2)[1] for rank in (0, 1)]
    >>> epoch, halves[0] + halves[1] == whole
    (1, True)
    >>> order.place(5), order.place(6)
    ((0, 5), (1, 0))
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], *, seed: int, draws: int | None = None,
                 names: Sequence[str] = (), make: Callable[[int, int], QueryOrder] | None = None) -> None:
        """`sizes`: queries of each set after its filters; `weights`: of each set, in any unit; `draws`: an epoch's,
        as many as all sets have queries where it is None; `names`: of the sets, for messages; `make`: gives the order
        of a set by (its number, its seed), `QueryOrder` where it is None."""
        if not sizes or len(sizes) != len(weights):
            raise ConfigError(f"{len(sizes)} sets and {len(weights)} weights; expected one weight for each of one or "
                              "more sets")
        if not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise ConfigError(f"weights {list(weights)}: expected finite numbers over 0; leave a set out to draw "
                              "nothing from it")
        self.sizes = list(sizes)
        total = sum(sizes) if draws is None else draws
        if total < 1:
            raise ConfigError(f"{total} draws an epoch from sets of {list(sizes)} queries; expected at least one "
                              "draw: check the sets, the split and the filters")
        super().__init__(total, seed=seed)
        self.shares = _shares(weights, self.n)
        if not all(self.shares):
            empty = self.shares.index(0)
            raise ConfigError(f"weights {list(weights)}: of {self.n} draws an epoch set "
                              f"{names[empty] if names else empty + 1} gets none; raise its weight or the draws an "
                              "epoch, or leave the set out")
        # The first set has the seed itself, so that one set is drawn from as QueryOrder does.
        seeds = [seed, *(int(rng("mixed-order", seed, at).integers(2**62)) for at in range(1, len(sizes)))]
        self.orders = [QueryOrder(size, seed=own) if make is None else make(at, own)
                       for at, (size, own) in enumerate(zip(sizes, seeds, strict=True))]
        self._starts = np.cumsum([0, *sizes[:-1]])

    def place(self, index: int) -> tuple[int, int]:
        """(set, query in the set) of an index."""
        at = int(np.searchsorted(self._starts, index, side="right")) - 1
        return at, index - int(self._starts[at])

    def draws_of(self, step: int, batch: int) -> list[tuple[int, int, int]]:
        """(set, epoch of the set's own order, place in it) of each prompt of a step: what `step` draws them by."""
        epoch, part = share_of_step(step, batch, 0, 1, steps_per_epoch=self.steps_per_epoch(batch))
        labels = self._labels(epoch)
        found = []
        for position, at in enumerate(labels[part].tolist(), start=part.start):
            drawn = epoch * self.shares[at] + int(np.count_nonzero(labels[:position] == at))
            found.append((at, *divmod(drawn, self.orders[at].n)))
        return found

    def steps_of(self, at: int, own: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """(step, number of its prompt) that takes each place of epoch `own` of a set's order; step -1 where the place
        is left over at the end of an epoch of the mixture: `draws_of` the other way round."""
        n, share, steps = self.orders[at].n, self.shares[at], self.steps_per_epoch(batch)
        drawn = np.arange(own * n, (own + 1) * n)
        position = np.empty(n, dtype=np.int64)
        for epoch in range(int(drawn[0]) // share, int(drawn[-1]) // share + 1):
            here = drawn // share == epoch
            position[here] = np.flatnonzero(self._labels(epoch) == at)[drawn[here] - epoch * share]
        step = np.where(position < steps * batch, drawn // share * steps + position // batch, -1)
        return step, position % batch

    def _labels(self, epoch: int) -> np.ndarray:
        """[n] the set of each draw of an epoch."""
        labels = np.repeat(np.arange(len(self.sizes)), self.shares)
        return rng("mixed-labels", self.seed, epoch).permutation(labels) if len(self.sizes) > 1 else labels

    def _permutation(self, epoch: int) -> np.ndarray:
        labels = self._labels(epoch)
        drawn = np.empty(self.n, dtype=np.int64)
        for at, (order, share) in enumerate(zip(self.orders, self.shares, strict=True)):
            drawn[labels == at] = self._starts[at] + _stretch(order, epoch * share, share)
        drawn.flags.writeable = False
        return drawn


def _stretch(order: QueryOrder, start: int, count: int) -> np.ndarray:
    """`count` indices from place `start` of a set's permutations, laid end to end."""
    first, last = start // order.n, (start + count - 1) // order.n
    whole = np.concatenate([order.epoch(own) for own in range(first, last + 1)])
    return np.asarray(whole[start - first * order.n :][:count])


def _shares(weights: Sequence[float], draws: int) -> list[int]:
    """Draws of each set: `draws` in proportion to the weights, what rounding leaves to the largest remainders."""
    relative = [weight / max(weights) for weight in weights]  # so that no sum overflows
    exact = [weight / math.fsum(relative) * draws for weight in relative]
    shares = [math.floor(share) for share in exact]
    order = sorted(range(len(weights)), key=lambda at: (shares[at] - exact[at], at))
    for at in order[: draws - sum(shares)]:
        shares[at] += 1
    return shares
