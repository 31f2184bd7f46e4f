"""Samples in the order of their lanes (`taro.shards.lanes`), read from the shards as a stream and ahead of their steps.

Each lane is a `webdataset.DataPipeline`: its shards in their order, then the samples of their records, read by our own
checked reader and never by webdataset's decoders. Threads fill the buffers of the lanes, a sample at a time and in
turn; a sample leaves its buffer when its step comes. Only what this rank takes from step `steps.start` on is read: a
rank reads its own part, and a run that goes on reads again no more than the buffers held.

Memory: at most `room` queries a lane, and the clip that is being read. Queries of a clip that are held together share
its features. What is wrong with a record is raised when it is asked for, or a sample of its lane that was not read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import groupby
from typing import Any

import numpy as np

from taro.shards.lanes import LaneOrder, check_webdataset
from taro.shards.mix import MixedOrder
from taro.shards.reader import QueryRef, Sample, ShardSet

__all__ = ["LaneReader", "Part"]

THREADS = 8
"""lanes that are read at once"""
CLIPS = 4
"""that a lane has a remote store fetch together"""

Place = tuple[int, int]
"""(epoch of a set's own order, place in it)"""


@dataclass(frozen=True)
class Part:
    """What a rank takes of a run: every `world`-th prompt from `rank` on, of `batch` a step, in `steps`."""

    batch: int
    steps: range
    rank: int = 0
    world: int = 1


@dataclass
class _Lane:
    """A lane that is being read. `held`: samples of its buffer; `running`: a thread reads for it; `ended`: nothing is
    left to read, or `error` says what is wrong."""

    samples: Iterator[tuple[Place, Sample]]
    room: int
    held: dict[Place, Sample] = field(default_factory=dict)
    running: bool = False
    ended: bool = False
    error: Exception | None = None


class _Shards:
    """The first stage: the shards of a lane in its order, each with the queries that are wanted of it there."""

    def __init__(self, order: LaneOrder, lane: int, epochs: range, wanted: Callable[[int], np.ndarray]) -> None:
        self._order, self._lane, self._epochs, self._wanted = order, lane, epochs, wanted

    def __call__(self) -> Iterator[dict[str, Any]]:
        for own in self._epochs:
            queries, places = self._order.reading(own, self._lane)
            wanted = self._wanted(own)[places]
            found = zip(queries[wanted].tolist(), places[wanted].tolist(), strict=True)
            for _, part in groupby(found, key=lambda one: int(self._order.shard_N[one[0]])):
                yield {"queries": [(query, (own, place)) for query, place in part]}


class _Records:
    """The second stage: the samples of each shard's queries, a clip at a time, in the order of their bytes."""

    def __init__(self, shard_set: ShardSet, refs: Sequence[QueryRef]) -> None:
        self._set, self._refs = shard_set, refs

    def __call__(self, shards: Iterable[dict[str, Any]]) -> Iterator[tuple[Place, Sample]]:
        for shard in shards:
            queries = [(self._refs[query], place) for query, place in shard["queries"]]
            clips = [list(part) for _, part in groupby(queries, key=lambda one: one[0].key)]
            for start in range(0, len(clips), CLIPS):
                some = clips[start : start + CLIPS]
                self._set.prefetch(ref for clip in some for ref, _ in clip)
                for clip in some:
                    refs, places = zip(*clip, strict=True)
                    yield from zip(places, self._set.samples(refs), strict=True)


class LaneReader:
    """The samples of one rank. `take` gives them in the order of the steps, each once."""

    def __init__(self, sets: Sequence[tuple[ShardSet, Sequence[QueryRef]]], order: MixedOrder, part: Part) -> None:
        """Args: sets: each with the queries that `order` counts."""
        check_webdataset()
        self.part = part
        self._sets, self._order = sets, order
        self._wanted = lru_cache(maxsize=2 * len(sets))(self._find_wanted)
        self._changed = threading.Condition()
        self._lanes: dict[tuple[int, int], _Lane] = {}
        self._closed = False
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="lanes")
        for at in range(len(sets)):
            begun = np.flatnonzero(self._wanted(at, self._epochs(at).start)).tolist()
            for lane in sorted({self._lane_order(at).lane_of(place) for place in begun}):
                self._fill(self._lane(at, lane))

    def take(self, at: int, own: int, place: int) -> Sample:
        """The sample of set `at` that its order has at `place` of epoch `own`. Waits until it is read; raises what its
        reading met."""
        lane = self._lane(at, self._lane_order(at).lane_of(place))
        self._fill(lane)
        with self._changed:
            self._changed.wait_for(lambda: (own, place) in lane.held or lane.ended or self._closed)
            if (own, place) not in lane.held:
                raise lane.error or CancelledError("closed while a sample was waited for")
            sample = lane.held.pop((own, place))
        self._fill(lane)
        return sample

    def close(self) -> None:
        """Ends the reading; what is held is dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for lane in self._lanes.values():
            lane.held.clear()

    def held(self) -> list[Sample]:
        """What the buffers hold now."""
        with self._changed:
            return [sample for lane in self._lanes.values() for sample in lane.held.values()]

    def _fill(self, lane: _Lane) -> None:
        """Sees to it that a thread reads for the lane while its buffer has room."""
        with self._changed:
            if not (lane.running or lane.ended or self._closed) and len(lane.held) < lane.room:
                lane.running = True
                self._pool.submit(self._read, lane)

    def _read(self, lane: _Lane) -> None:
        """Reads one sample of a lane, then lets others read theirs."""
        found, error = None, None
        try:
            found = next(lane.samples, None)
        except Exception as met:  # noqa: BLE001 - raised where the sample is taken
            error = met
        with self._changed:
            lane.running = False
            if found is None:
                lane.ended, lane.error = True, error
            else:
                lane.held[found[0]] = found[1]
            self._changed.notify_all()
        self._fill(lane)

    def _epochs(self, at: int) -> range:
        """The epochs of a set's own order that the steps draw from."""
        part, share, n = self.part, self._order.shares[at], self._order.orders[at].n
        steps_per_epoch = self._order.steps_per_epoch(part.batch)
        first, last = part.steps.start // steps_per_epoch, (part.steps.stop - 1) // steps_per_epoch
        return range(first * share // n, ((last + 1) * share - 1) // n + 1)

    def _lane_order(self, at: int) -> LaneOrder:
        order = self._order.orders[at]
        assert isinstance(order, LaneOrder)
        return order

    def _lane(self, at: int, number: int) -> _Lane:
        with self._changed:
            if (at, number) not in self._lanes:
                order, (shard_set, refs) = self._lane_order(at), self._sets[at]
                self._lanes[at, number] = _Lane(_samples(
                    _Shards(order, number, self._epochs(at), partial(self._wanted, at)),
                    _Records(shard_set, refs)), order.room)
            return self._lanes[at, number]

    def _find_wanted(self, at: int, own: int) -> np.ndarray:
        """[n] whether this rank takes each place of epoch `own` of a set's order."""
        part = self.part
        step, prompt = self._order.steps_of(at, own, part.batch)
        return np.asarray((step >= part.steps.start) & (step < part.steps.stop) & (prompt % part.world == part.rank))


def _samples(shards: _Shards, records: _Records) -> Iterator[tuple[Place, Sample]]:
    import webdataset

    return iter(webdataset.DataPipeline(shards, records))
