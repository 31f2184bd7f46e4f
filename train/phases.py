"""Where a run is, and how long each phase of a step took: read by metrics, by traces, and by who reports a failure."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

__all__ = ["Phases"]


class Phases:
    """`now`: the phase that a run is in, "" between them; `observers`: called with the name of each phase as it begins
    (True) and ends (False), inside its time."""

    def __init__(self) -> None:
        self.now = ""
        self.observers: list[Callable[[str, bool], None]] = []
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Names what the block does. A phase inside a phase counts in both."""
        before, self.now, started = self.now, name, time.monotonic()
        try:
            self._tell(name, True)
            yield
            self._tell(name, False)
            self.now = before  # where the block fails, the name stays for the message
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - started

    def _tell(self, name: str, begins: bool) -> None:
        for observer in tuple(self.observers):
            observer(name, begins)

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last call."""
        found, self._seconds = self._seconds, {}
        return found
