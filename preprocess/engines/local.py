"""The default engine: one worker in this process, slice after slice; its decoding processes work ahead."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from taro.preprocess.engines.base import SliceResult, Worker
from taro.preprocess.job import Job
from taro.preprocess.report import Progress
from taro.preprocess.slices import SliceTask

__all__ = ["LocalEngine"]


class LocalEngine:
    """See `taro.preprocess.engines.base.Engine`."""

    def run(self, job: Job, tasks: Sequence[SliceTask], progress: Callable[[Progress], None]) -> list[SliceResult]:
        """One result a task, in order."""
        total, finished = sum(len(job.plan.slice_clips(task.index)) for task in tasks), 0

        def tick(note: str) -> None:
            nonlocal finished
            finished += 1
            progress(Progress("clips", finished, total, note))

        progress(Progress("models", 0, total))
        with Worker(job, tasks, lambda status: progress(Progress("captions", finished, total, status))) as worker:
            progress(Progress("clips", 0, total))
            return [worker.run(task, tick) for task in tasks]
