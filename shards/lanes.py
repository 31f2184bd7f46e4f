"""The order in which a set is trained on when it is read as a stream: by shards, in lanes, through shuffle buffers.

An epoch lays the shards one after the other in a drawn order and cuts this stream into lanes of equal length, as many
as a step has prompts. Prompt i of every step comes from lane i, through the lane's own shuffle buffer. The rank that
takes prompt i reads lane i: each rank reads its own part of the shards, and all take the same number of steps. Which
queries a step holds depends on (seed, epoch, shards, lanes, buffer) alone, whatever the number of ranks.

No data is needed to know the order: it is a permutation like that of `QueryOrder`, replayed from where the queries lie.
So a resume begins in the middle of a shard, and neither repeats nor skips a query.

How far a query travels: it is taken at most `room` - 1 steps before its place in its lane, and stays t steps or more in
a full buffer with probability (1 - 1 / room)^t, at most to the end of the lane.
What does not fill the lanes evenly (n modulo lanes) is the end of the epoch's order, shuffled among itself."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from taro.core.draws import rng
from taro.core.errors import MissingPackageError
from taro.shards.order import QueryOrder

__all__ = ["LaneOrder", "check_webdataset", "through_buffer"]


def check_webdataset() -> None:
    """Raises MissingPackageError where webdataset, which reads the lanes, is not installed."""
    if importlib.util.find_spec("webdataset") is None:
        raise MissingPackageError("data.reading=stream needs webdataset, which is not installed; pip install "
                                  "'taro-vtg[webdataset]', or set data.reading=indexed")


def through_buffer(count: int, room: int, generator: np.random.Generator) -> list[int]:
    """In which order `count` items leave a shuffle buffer that holds `room` of them: each item that comes in takes the
    place of one that is drawn; those left at the end leave in a drawn order.

    >>> sorted(through_buffer(5, 2, rng("example")))
    [0, 1, 2, 3, 4]
    """
    held = list(range(min(room, count)))
    places = generator.integers(0, max(len(held), 1), size=count - len(held)).tolist()
    order = []
    for item, place in enumerate(places, start=len(held)):
        order.append(held[place])
        held[place] = item
    return order + [held[place] for place in generator.permutation(len(held)).tolist()]


class LaneOrder(QueryOrder):
    """The order of the queries of one set over epochs. Lane `lanes`, one more than there are, is the uneven rest.
    `shard_N`: [n] the shard of each query, counted from 0.

    >>> order = LaneOrder([0, 0, 0, 1, 1, 1, 2], lanes=2, buffer=4, seed=0)
    >>> order.room, order.lane_of(0), order.lane_of(1), order.lane_of(5), order.lane_of(6)
    (2, 0, 1, 1, 2)
    >>> sorted(order.epoch(0).tolist())
    [0, 1, 2, 3, 4, 5, 6]
    """

    def __init__(self, shard_N: Sequence[int] | np.ndarray, *, lanes: int, buffer: int, seed: int) -> None:
        """Args: shard_N: [n] the shard of each query; lanes: of a step, one a prompt; buffer: queries in all lanes'
        buffers together."""
        super().__init__(len(shard_N), seed=seed)
        self.lanes = lanes
        self.room = max(1, buffer // lanes)
        self._length = self.n // lanes
        shards, self.shard_N = np.unique(np.asarray(shard_N), return_inverse=True)
        self._shards = len(shards)
        self._stream, self._where = lru_cache(maxsize=2)(self._by_shards), lru_cache(maxsize=2)(self._places)

    def lane_of(self, place: int) -> int:
        """Of which lane a place in an epoch's order is."""
        return place % self.lanes if place < self._length * self.lanes else self.lanes

    def reading(self, epoch: int, lane: int) -> tuple[np.ndarray, np.ndarray]:
        """(queries of a lane as they are read, the places in the epoch's order where each is taken)."""
        queries = self._stream(epoch)[lane * self._length : (lane + 1) * self._length if lane < self.lanes else None]
        return queries, self._where(epoch)[queries]

    def _by_shards(self, epoch: int) -> np.ndarray:
        """All queries, shard after shard in a drawn order, inside a shard as they lie there."""
        turn = np.empty(self._shards, dtype=np.int64)
        turn[rng("stream-shards", self.seed, epoch).permutation(self._shards)] = np.arange(self._shards)
        return np.argsort(turn[self.shard_N], kind="stable")

    def _places(self, epoch: int) -> np.ndarray:
        """The place of each query in the order of an epoch."""
        where = np.empty(self.n, dtype=np.int64)
        where[self.epoch(epoch)] = np.arange(self.n)
        return where

    def _permutation(self, epoch: int) -> np.ndarray:
        stream, L, length = self._stream(epoch), self.lanes, self._length
        order = np.empty(self.n, dtype=np.int64)
        for lane in range(L + 1):
            places = slice(lane, length * L, L) if lane < L else slice(length * L, None)
            part = stream[lane * length : (lane + 1) * length if lane < L else None]
            order[places] = part[through_buffer(len(part), self.room, rng("stream-buffer", self.seed, epoch, lane))]
        order.flags.writeable = False
        return order
