"""Transfers at the same time: a few threads, one count of what has moved, and an end as soon as one fails.

The threads are daemons: who interrupts a command does not wait until a shard of gigabytes has gone through. Whatever
they leave half done has no final name."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

from taro.shards.transfer.target import OnProgress, Progress

__all__ = ["JOBS", "Counter", "StoppedError", "in_parallel"]

JOBS = 8
"""files at a time, unless the user says otherwise"""


class StoppedError(Exception):
    """Another file of the transfer failed, or the user has stopped it."""


class Counter:
    """What has moved of a transfer, from any thread; raises StoppedError once the transfer is to end."""

    def __init__(self, of_files: int, of_bytes: int, progress: OnProgress | None = None) -> None:
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self._now = Progress(0, of_files, 0, of_bytes)
        self._progress = progress

    def __call__(self, files: int, moved_bytes: int) -> None:
        """So many more files are finished, so many more bytes have moved (fewer, where some have to move again)."""
        if self.stop.is_set():
            raise StoppedError
        with self._lock:
            was = self._now
            self._now = Progress(was.files + files, was.of_files, was.bytes + moved_bytes, was.of_bytes)
            if self._progress is not None:
                self._progress(self._now)

    @property
    def now(self) -> Progress:
        """What has moved so far."""
        return self._now


def in_parallel(tasks: Sequence[Callable[[], None]], stop: threading.Event, *, jobs: int = JOBS) -> None:
    """Runs the tasks, `jobs` at a time, in their order. The first error of one sets `stop`, which ends those that look
    at it, and is raised when all threads have ended; an interruption is raised at once."""
    todo: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    for task in tasks:
        todo.put(task)
    errors: list[BaseException] = []

    def work() -> None:
        while not stop.is_set():
            try:
                task = todo.get_nowait()
            except queue.Empty:
                return
            try:
                task()
            except BaseException as error:  # noqa: BLE001  whatever it is, the thread that waits raises it
                errors.append(error)
                stop.set()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(jobs, len(tasks)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:
        stop.set()
        raise
    if errors:
        raise next((error for error in errors if not isinstance(error, StoppedError)), errors[0])
