"""Ctrl-C and SIGTERM: the first one unwinds the command, later ones neither print a traceback nor change the exit code.

The first is raised as KeyboardInterrupt, so that files are closed, temporary ones removed and locks dropped. What comes
while that goes on (a second Ctrl-C, a scheduler's SIGTERM beside it) is ignored for PATIENCE_S seconds; after that it
ends the process at once, and the next run removes what was left. A signal that the process was started to ignore
(nohup, a shell's `&`) stays ignored. Imports nothing heavy: `python -m taro` is ready before it loads the rest."""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["INTERRUPTED", "stop_code", "stoppable"]

PATIENCE_S = 2.0
INTERRUPTED = "interrupted; what was finished is on disk: the same command (train: with --resume) goes on"
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_first: tuple[int, float] | None = None
"""of this process: (exit code, when it came) of the first signal"""
_handled = False
"""whether a block of `stoppable` is under way"""


def stop_code() -> int | None:
    """The exit code that follows from the first signal: 130 of Ctrl-C, 143 of SIGTERM; None where none came."""
    return None if _first is None else _first[0]


def _stop(number: int, frame: FrameType | None) -> None:
    global _first
    if _first is None:
        _first = (128 + number, time.monotonic())
        raise KeyboardInterrupt
    if time.monotonic() - _first[1] > PATIENCE_S:
        os.write(2, b"stopped at once; the next run removes what is half-written\n")
        os._exit(_first[0])


def _ignore() -> None:
    """For the last moments of a process, in which Python gives handlers back and a signal would end it by its name."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stoppable(*, to_the_end: bool) -> Iterator[None]:
    """Handles signals so inside the block. `to_the_end`: the process ends after it, so what comes then must not
    print anything either; else the handlers that were there come back."""
    global _first, _handled
    if _handled or threading.current_thread() is not threading.main_thread():  # only there may signals be handled
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _first, _handled = None, True
    if to_the_end:
        atexit.register(_ignore)
    for number in SIGNALS:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        yield
    finally:
        _handled = False
        if to_the_end:
            _first = _first or (0, time.monotonic())
        else:
            for number in SIGNALS:
                signal.signal(number, before[number])
            _first = None
