"""The default engine: one worker in this process, slice after slice; its decoding processes work ahead."""

from __future__ import annotations

import itertools
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
        total = sum(len(job.plan.slice_clips(task.index)) for task in tasks)
        finished = itertools.count(1)
        progress(Progress("models", 0, total))
        with Worker(job, tasks) as worker:
            progress(Progress("clips", 0, total))
            return [worker.run(task, lambda note: progress(Progress("clips", next(finished), total, note)))
                    for task in tasks]
