"""Tasks at the same time in a few threads, and an end as soon as one fails or the user interrupts.

The threads are daemons: who interrupts a command does not wait until a shard of gigabytes has gone through, or a server
that is silent answers (the standard library's pools wait for their threads, at the latest when Python ends). Whatever
they leave half done has no final name."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

__all__ = ["StoppedError", "in_parallel"]


class StoppedError(Exception):
    """Another task failed, or the user has stopped all of them."""


def in_parallel(tasks: Sequence[Callable[[], object]], stop: threading.Event, *, jobs: int) -> None:
    """Runs the tasks, `jobs` at a time, in their order. The first error of one sets `stop`, which ends those that look
    at it, and is raised when all threads have ended; an interruption is raised at once."""
    todo: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
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
