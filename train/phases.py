"""Where a run is, and how long each phase of a step took: read by metrics, by traces, and by who reports a failure."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

__all__ = ["Phases"]


class Phases:
    """`now`: the phase that a run is in, "" between them; `observers`: called with the name of each phase as it begins
    (True) and ends (False), inside its time, and again as it goes on behind one inside it."""

    def __init__(self) -> None:
        self.now = ""
        self.observers: list[Callable[[str, bool], None]] = []
        self._seconds: dict[str, float] = {}
        self._inside = 0.0

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Names what the block does. A phase inside a phase does not count in the outer one."""
        before, self.now, started, inside = self.now, name, time.monotonic(), self._inside
        self._inside = 0.0
        try:
            self._tell(name, True)
            yield
            self._tell(name, False)
            self.now = before  # where the block fails, the name stays for the message
            if before:
                self._tell(before, True)
        finally:
            seconds = time.monotonic() - started
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds - self._inside
            self._inside = inside + seconds

    def _tell(self, name: str, begins: bool) -> None:
        for observer in tuple(self.observers):
            observer(name, begins)

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last call."""
        found, self._seconds = self._seconds, {}
        return found
