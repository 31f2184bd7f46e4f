"""One count of what has moved of a transfer, from any of its threads (`taro.core.parallel`)."""

from __future__ import annotations

import threading

from taro.core.parallel import StoppedError
from taro.shards.transfer.target import OnProgress, Progress

__all__ = ["JOBS", "Counter"]

JOBS = 8
"""files at a time, unless the user says otherwise"""


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
