"""Where a run is, and how long each phase of a step took: read by metrics, by traces, and by who reports a failure."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

__all__ = ["Phases"]


class Phases:
    """`now`: the phase that a run is in, "" between them; `seconds`: of each phase since `take`."""

    def __init__(self) -> None:
        self.now = ""
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Names what the block does. A phase inside a phase counts in both."""
        before, self.now, started = self.now, name, time.monotonic()
        try:
            yield
            self.now = before  # where the block fails, the name stays for the message
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - started

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last call."""
        found, self._seconds = self._seconds, {}
        return found
