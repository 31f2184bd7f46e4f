"""Checkpoints written while training goes on: staged to host memory, hashed and written by a thread of each rank.

`save` copies this rank's pieces and returns; a thread writes them with their hashes into a folder of a temporary name.
When every rank has written, rank 0 writes `state.json`, gives the folder its name and removes older checkpoints, in its
thread too. The ranks learn of each other's writing where they meet anyway: `poll`, once a step, is a message of a few
bytes, and none while nothing is written. So a checkpoint gets its name at most one step after its last byte.

One checkpoint is written at a time: `save` waits for the one before. What a thread meets (a full disk) is raised on
every rank by the next `poll`, `save` or `finish`, and nothing half-written is left.
Without staging (`background` false, or too little free memory) training waits, and one tensor at a time is in host
memory. Left out: several folders at once, a disk of each machine (`folder` is one place for all ranks)."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import torch

from taro.core.errors import TaroError
from taro.core.files import fsync, replace_folder, write_atomically
from taro.core.tensors import tensor_bytes
from taro.train.checkpoint.blocks import BLOCK_BYTES, write_blocks
from taro.train.checkpoint.pieces import Table, file_header, in_file_order, rank_file, rows_of
from taro.train.checkpoint.resume import Owner
from taro.train.checkpoint.staging import Staging, free_host_bytes, staged_bytes
from taro.train.checkpoint.state import Content, RunState, prune_checkpoints, step_folder, write_content
from taro.train.optimizer.pieces import Piece
from taro.train.ranks import ALONE, Ranks

__all__ = ["Saver", "save_checkpoint"]

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""(done, all)"""
MB = 10**6
TELL_S = 0.5
"""from one word of progress to the next"""


@dataclass
class _Job:
    """A checkpoint on its way. `work`: what this rank's thread does for it; `naming`: every rank has written, and what
    is left is state.json and the name."""

    temporary: Path
    state: RunState
    steps: int
    stop: Event
    work: Future[str]
    naming: bool = False

    @property
    def final(self) -> Path:
        """The folder that it becomes."""
        return self.temporary.with_name(step_folder(self.state.step))


class Saver:
    """Writes the checkpoints of a run into `folder`. All ranks call `save`, `poll` and `finish` at the same places.

    keep: newest checkpoints that stay; None: all. facts: what a run that goes on must have in common.
    background: false: training waits."""

    def __init__(self, folder: Path, owner: Owner, *, ranks: Ranks = ALONE, keep: int | None = None,
                 facts: Mapping[str, Any] | None = None, background: bool = True) -> None:
        self.folder, self.owner, self.ranks, self.keep, self.facts = folder, owner, ranks, keep, dict(facts or {})
        self.background = background
        self.newest: int | None = None
        """step of the newest checkpoint that this process has written or is writing"""
        self._job: _Job | None = None
        self._written = self._all = 0
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._staging: Staging | None = None
        self._prepare()

    def save(self, state: RunState, progress: Progress | None = None) -> None:
        """Begins the checkpoint of `state`; an older one of its step is replaced. Waits for the checkpoint before, then
        only for the copy of the tensors. `progress`: see `finish`. Raises OSError."""
        self.finish(progress)
        temporary = self.folder / f".tmp-{step_folder(state.step)}"
        pieces, stop, staging = in_file_order(self.owner.pieces()), Event(), self._prepare()
        if staging is not None and not staging.ready():
            log.warning("checkpoints are written while training waits: the system gave no memory to stage them")
            staging, self.background = None, False
        waits = self._begin(temporary, staged=staging is not None)
        parts: Iterable[memoryview] = (tensor_bytes(one.tensor) for one in pieces)
        if staging is not None:
            staging.stage(pieces)
            parts = staging.parts()
        self._written, self._all = 0, staged_bytes(pieces)
        work = self._thread.submit(self._write, temporary, pieces, parts, staged=staging is not None, stop=stop)
        self._job = _Job(temporary, copy(state), self.owner.steps, stop, work)
        self.newest = state.step
        if self.ranks.world == 1:  # nobody to wait for: the same thread goes on
            self._name(self._job, lambda: [work.result()])
        if waits:
            self.finish(progress)

    def poll(self) -> None:
        """Looks how far the ranks are, without waiting for a disk. Raises what one of them met."""
        job = self._job
        if job is None:
            return
        done = job.work.done()
        error = job.work.exception() if done else None
        every = self._meet({"done": job.work.result() if done and error is None else None}, error)
        if any(one["done"] is None for one in every):
            return
        if job.naming:
            self._job = None
        else:
            self._name(job, lambda: [one["done"] for one in every])

    def finish(self, progress: Progress | None = None) -> None:
        """Waits until the checkpoint under way has its name. `progress`: called now and then with the MB that this rank
        has handed to its disk, and all of them. Raises what a rank met."""
        while self._job is not None:
            while wait([self._job.work], None if progress is None else TELL_S).not_done:
                if progress is not None:
                    progress(self._written // MB, max(self._all // MB, 1))
            self.poll()

    def close(self) -> None:
        """Ends the thread and gives the memory back. One process finishes what it writes first; of several, others may
        be gone, so what is not whole is given up."""
        job, self._job = self._job, None
        if job is not None:
            if not job.naming:
                job.stop.set()
            wait([job.work])
            if job.work.exception() is not None or not job.naming:
                log.warning("%s was not written: %s", job.final.name, job.work.exception() or "the run stopped")
                shutil.rmtree(job.temporary, ignore_errors=True)
        self._thread.shutdown()
        if self._staging is not None:
            self._staging.close()
            self._staging = None

    def _prepare(self) -> Staging | None:
        """The host memory for this rank's pieces, begun to be taken in the background; None where training waits."""
        if not self.background:
            return None
        pieces = self.owner.pieces()
        size = staged_bytes(pieces)
        if self._staging is not None and self._staging.size_bytes != size:
            self._staging.close()
            self._staging = None
        if self._staging is None:
            free = free_host_bytes()
            if free is not None and size > free:
                log.warning("checkpoints are written while training waits: to stage %.1f GB takes as much host memory, "
                            "%.1f GB are free", size / 1e9, free / 1e9)
                self.background = False
                return None
            self._staging = Staging(size, pieces[0].tensor.device if pieces else torch.device("cpu"))
        return self._staging

    def _begin(self, temporary: Path, *, staged: bool) -> bool:
        """Makes the temporary folder; whether training waits, as it does where one rank stages nothing."""
        error = None
        if self.ranks.first:
            try:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            except OSError as caught:
                error = caught
        return not all(one["staged"] for one in self._meet({"staged": staged}, error))

    def _meet(self, mine: dict[str, Any], error: BaseException | None) -> list[dict[str, Any]]:
        """What every rank says. Where one has met an error, all remove what is half-written and raise it."""
        if self.ranks.world == 1 and error is None:
            return [mine]
        said = mine if error is None else {"error": _told(error)}
        every = [json.loads(one) for one in self.ranks.gather(json.dumps(said).encode())]
        met = [(rank, one["error"]) for rank, one in enumerate(every) if "error" in one]
        if not met:
            return every
        job, self._job, self.newest = self._job, None, None
        if job is not None:
            job.stop.set()
            wait([job.work])
            self.ranks.barrier()
            shutil.rmtree(job.temporary, ignore_errors=True)
        raise error or _untold(*met[0])

    def _write(self, temporary: Path, pieces: Sequence[Piece], parts: Iterable[memoryview], *, staged: bool,
               stop: Event) -> str:
        """Writes this rank's two files; the sha256 of its table. In the thread."""
        header = file_header(pieces)
        name = temporary / rank_file(self.ranks.rank, self.ranks.world, "safetensors")
        try:
            digests = write_blocks(name, itertools.chain([memoryview(header)], self._counted(parts)), stop=stop,
                                   ahead=None if staged else 1)  # each waiting block keeps a tensor in memory
            table = Table(tuple(rows_of(pieces)), len(header) + staged_bytes(pieces), tuple(digests)).as_json()
            write_atomically(name.with_suffix(".json"), table)
        except BaseException:
            name.unlink(missing_ok=True)  # a full disk needs its bytes
            raise
        return hashlib.sha256(table).hexdigest()

    def _counted(self, parts: Iterable[memoryview]) -> Iterator[memoryview]:
        """The parts, cut where they are large, counted as the one who writes comes back for the next."""
        for part in parts:
            for start in range(0, len(part), BLOCK_BYTES):
                yield part[start : start + BLOCK_BYTES]
                self._written += min(BLOCK_BYTES, len(part) - start)
            del part  # else it would live while the next one is read

    def _name(self, job: _Job, digests: Callable[[], list[str]]) -> None:
        """Lets rank 0's thread finish a checkpoint whose tables have these sha256."""
        job.naming = True
        if self.ranks.first:
            job.work = self._thread.submit(self._named, job, digests)

    def _named(self, job: _Job, digests: Callable[[], list[str]]) -> str:
        """state.json, the folder's name, and older checkpoints go. In the thread."""
        try:
            tables = {rank_file(rank, self.ranks.world, "json"): digest for rank, digest in enumerate(digests())}
            write_content(job.temporary, Content(job.state, tables, self.facts, job.steps))
            fsync(job.temporary)
        except BaseException:
            shutil.rmtree(job.temporary, ignore_errors=True)
            raise
        replace_folder(job.temporary, job.final)
        if self.keep is not None:
            prune_checkpoints(self.folder, keep=self.keep)
        return "named"


def save_checkpoint(folder: Path, owner: Owner, state: RunState, *, ranks: Ranks = ALONE,
                    facts: Mapping[str, Any] | None = None) -> Path:
    """Writes `folder`/step-N while the caller waits; returns it. Where the disk refuses, nothing of the new one is left
    and OSError is raised."""
    with contextlib.closing(Saver(folder, owner, ranks=ranks, facts=facts, background=False)) as saver:
        saver.save(state)
    return folder / step_folder(state.step)


def _told(error: BaseException) -> dict[str, Any]:
    """An error as the other ranks get it."""
    if isinstance(error, OSError) and error.errno is not None:
        return {"errno": error.errno, "text": os.strerror(error.errno), "file": error.filename and str(error.filename)}
    return {"errno": None, "text": f"{type(error).__name__}: {error}"}


def _untold(rank: int, error: dict[str, Any]) -> Exception:
    """The error of another rank, as it would be one's own."""
    if error["errno"] is not None:
        return OSError(error["errno"], error["text"], *([error["file"]] if error["file"] else []))
    return TaroError(f"rank {rank} could not write a checkpoint: {error['text']}")
