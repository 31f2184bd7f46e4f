"""The samples of a step, read while the step before it runs: the device does not wait for the disk.

One step ahead and no more, so that host memory holds the features of two steps; `data.reading: stream` holds besides
what is in its buffers (`taro.shards.lane_reader`). Samples are a function of (seed, step), so reading early changes
nothing. Left out: moving them to the device early."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from taro.shards.reader import Sample
from taro.train.data import TrainingData
from taro.train.ranks import ALONE, Ranks

__all__ = ["SamplesAhead"]


class SamplesAhead:
    """Reads this rank's samples of `steps` steps, each while the one before is worked on."""

    def __init__(self, data: TrainingData, steps: int, ranks: Ranks = ALONE) -> None:
        self._data, self._steps, self._ranks = data, steps, ranks
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="samples")
        self._next: tuple[int, Future[tuple[int, list[Sample]]]] | None = None

    def take(self, step: int) -> tuple[int, list[Sample]]:
        """(epoch, samples) of a step, as `TrainingData.samples`; begins to read those of the next. What is wrong with a
        sample is raised when its step comes."""
        waiting, self._next = self._next, None
        found = waiting[1].result() if waiting and waiting[0] == step else self._read(step)
        if step + 1 < self._steps:
            self._next = step + 1, self._pool.submit(self._read, step + 1)
        return found

    def _read(self, step: int) -> tuple[int, list[Sample]]:
        return self._data.samples(step, rank=self._ranks.rank, world=self._ranks.world,
                                  steps=self._steps)

    def close(self) -> None:
        """Ends the reading; what was read for a step that does not come is dropped."""
        self._next = None
        self._data.close()  # wakes a step that waits for its samples
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._data.close()
