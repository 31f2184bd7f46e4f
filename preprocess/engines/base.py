"""The seam between a job and where its slices run: `Engine`, and the `Worker` that every engine hands slices to.

An engine holds no state of its own: plan, locks, captions, ledgers and shards lie in the folder of the set. So engines
can be mixed, a slice that died with its worker can be run by another, and the bytes do not depend on who ran what."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from taro.models.resolve import resolve_model
from taro.preprocess.captioners.cache import CachedCaptioner, CaptionCache
from taro.preprocess.captioners.registry import METHODS
from taro.preprocess.clip import ClipModel
from taro.preprocess.drafts import Describer
from taro.preprocess.job import Job, begin
from taro.preprocess.ledger import slice_lock
from taro.preprocess.report import Progress
from taro.preprocess.slices import Models, SliceTask, run_slice
from taro.preprocess.todo import still_needed
from taro.preprocess.video.pool import DecodePool

__all__ = ["Engine", "SliceResult", "Worker"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SliceResult:
    """How a task ended. `made`: its shards were written; `problems`: why not, where clips of a slice that is made were
    not as the set has them; neither: another process holds the slice, or has done the task."""

    index: int
    made: bool
    problems: tuple[str, ...] = ()


class Engine(Protocol):
    """Runs the slices of a frozen job.

    Every task goes to a `Worker` of the job, once, in any order, on any number of machines that see the job's folders;
    a task whose worker died may go to another. What a worker raises ends the job: no further task is begun, and `run`
    raises it. `progress` is called from the calling thread, as workers load and as clips are finished, with the number
    of clips of all tasks as total. When `run` returns, each task's shards and ledger are on the disk, or its result
    says why not; results come in any order."""

    def run(self, job: Job, tasks: Sequence[SliceTask], progress: Callable[[Progress], None]) -> list[SliceResult]:
        """One result a task."""


class Worker:
    """Decoding processes and models of a job, loaded once, for tasks like `tasks`; a context manager. `heard` is called
    with how the captions go, where they come one by one."""

    def __init__(self, job: Job, tasks: Sequence[SliceTask], heard: Callable[[str], None] = lambda status: None
                 ) -> None:
        self._job, self._makes, self._stack = job, any(task.makes for task in tasks), ExitStack()
        self._heard = heard

    def __enter__(self) -> Worker:
        import torch

        config = self._job.config
        with ExitStack() as stack:
            before = torch.get_num_threads()
            stack.callback(torch.set_num_threads, before)
            torch.set_num_threads(config.threads or before)
            self._pool = stack.enter_context(DecodePool(config.workers, deadline_s=config.decode.deadline_s))
            self._pool.warm()
            self._models = _load(self._job, self._heard, describe=self._makes)
            begin(self._job)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, task: SliceTask, tick: Callable[[str], None]) -> SliceResult:
        """Does a task that nobody else is doing or has done; `tick` is called once a clip with its file."""
        with slice_lock(self._job.state, task.index) as held:
            if not held or not still_needed(self._job, task):
                log.info("slice %d is another process's", task.index)
                return SliceResult(task.index, made=False)
            problems = run_slice(self._job, task, self._models, self._pool, tick)
            return SliceResult(task.index, not problems, tuple(problems))


def _load(job: Job, heard: Callable[[str], None], *, describe: bool) -> Models:
    """Every model that the job needs, once; with `describe` those that captions come from, too."""
    import torch

    from taro.models.encoder import load_encoder

    config, caption, describer = job.config, job.config.caption, None
    encoder = load_encoder(resolve_model(config.policy), device=job.device, dtype=getattr(torch, job.dtype))
    if describe:
        method, captioner = METHODS[caption.method], None
        if method.captioner is not None:
            captioner = CachedCaptioner(method.captioner(caption, job.plan.captioner, encoder),
                                        CaptionCache(job.state / "journal"), batch=caption.batch,
                                        round_s=config.segment.round_s, heard=heard)
        clip = None if config.clip_model is None else ClipModel(config.clip_model, job.device)
        describer = Describer(config.segment, clip, captioner, method.given(caption))
    return Models(encoder, describer)
