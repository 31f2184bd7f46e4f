"""Ctrl-C and SIGTERM: the first one unwinds the command, later ones neither print a traceback nor change the exit code.

The first is raised as KeyboardInterrupt, so that files are closed, temporary ones removed and locks dropped. What comes
while that goes on (a second Ctrl-C, a scheduler's SIGTERM beside it) is ignored for PATIENCE_S seconds; after that it
ends the process at once, and the next run removes what was left. A signal that the process was started to ignore
(nohup, a shell's `&`) stays ignored.

A command that can stop in good order takes the first signal as a request (`deferred`): it is noted, and the command
stops at its next good moment; another one that comes a second later, or PATIENT_S seconds without an end, stop it at
once, as above.

Until a command works (`works`) nothing is half-written, so the first signal ends the process there and then: an
exception in the middle of an import may be swallowed, or leave Python with an exit code of its own. Imports nothing
heavy: `python -m taro` is ready before it loads the rest."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["INTERRUPTED", "deferred", "stop_code", "stoppable", "works"]

PATIENCE_S = 2.0
GAP_S = 1.0
"""signals that come closer together are one request: a terminal and a launcher may both send one"""
PATIENT_S = 300.0
"""that a command may take to its next good moment"""
DROPPED_S = 0.05
"""after which a dropped interruption is raised again"""
INTERRUPTED = "interrupted; what was finished is on disk: the same command (train: with --resume) goes on"
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_first: tuple[int, float] | None = None
"""of this process: (exit code, when it came) of the first signal"""
_handled = False
"""whether a block of `stoppable` is under way"""
_starting = False
"""whether the process still loads its command"""
_noted: list[int] | None = None
"""numbers of the signals that came to a command which stops in good order"""
_telling = ""
_at_once = True


def stop_code() -> int | None:
    """The exit code that follows from the first signal: 130 of Ctrl-C, 143 of SIGTERM; None where none came."""
    return None if _first is None else _first[0]


def _stop(number: int, frame: FrameType | None) -> None:
    global _first, _noted
    if _starting:
        if _first is not None:  # while the first one is answered
            return
        _first = (128 + number, time.monotonic())
        os.write(2, f"\n{INTERRUPTED}\n".encode())
        os._exit(128 + number)
    if _noted is not None:
        now = time.monotonic()
        if not _noted:
            _first = (128 + number, now)
            os.write(2, _telling.encode())
            if _at_once:
                _again_later(number)
        elif _at_once and _first is not None:
            if now - _first[1] < GAP_S:
                return
            _first, _noted = (_first[0], now), None
            raise KeyboardInterrupt
        _noted.append(number)
        return
    if _first is None:
        _first = (128 + number, time.monotonic())
        raise KeyboardInterrupt
    if time.monotonic() - _first[1] > PATIENCE_S:
        os.write(2, b"stopped at once; the next run removes what is half-written\n")
        os._exit(_first[0])


def works() -> None:
    """Says that the command is loaded and works from here on: signals unwind it."""
    global _starting
    _starting = False


def _unraisable(seen: sys.UnraisableHookArgs) -> None:
    """Raises an interruption again that came inside a finalizer or a callback, where Python drops every exception."""
    global _first
    if seen.exc_type is KeyboardInterrupt and _first is not None:
        number, _first = _first[0] - 128, None
        _later(DROPPED_S, lambda: os.kill(os.getpid(), number))  # not here: this hook's exceptions are dropped too
    else:
        sys.__unraisablehook__(seen)


def _again_later(number: int) -> None:
    """Sends this process the signal again after PATIENT_S seconds, where it is still at work then."""

    def again() -> None:
        if _noted is not None:
            os.kill(os.getpid(), number)

    _later(PATIENT_S, again)


def _later(after_s: float, what: Callable[[], None]) -> None:
    timer = threading.Timer(after_s, what)
    timer.daemon = True
    timer.start()


@contextmanager
def deferred(telling: str, *, at_once: bool = True) -> Iterator[list[int]]:
    """Inside the block signals are noted in the list that is yielded. `telling`: said at the first one; `at_once`: a
    later one interrupts the block, else all are noted."""
    global _noted, _telling, _at_once
    if not _handled:
        yield []
        return
    _noted, _telling, _at_once = [], telling, at_once
    try:
        yield _noted
    finally:
        _noted = None


def _ignore() -> None:
    """For the last moments of a process, in which Python gives handlers back and a signal would end it by its name."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stoppable(*, to_the_end: bool) -> Iterator[None]:
    """Handles signals so inside the block. `to_the_end`: the process is at its start and ends after the block, so what
    comes then must not print anything either; else the handlers that were there come back."""
    global _first, _handled, _starting
    if _handled or threading.current_thread() is not threading.main_thread():  # only there may signals be handled
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    hook = sys.unraisablehook
    _first, _handled, _starting = None, True, to_the_end
    if to_the_end:
        atexit.register(_ignore)
    sys.unraisablehook = _unraisable
    for number in SIGNALS:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        yield
    finally:
        _handled = _starting = False
        sys.unraisablehook = hook
        if to_the_end:
            _first = _first or (0, time.monotonic())
            exec("")  # an interruption inside an exec of text (dataclasses do so) else sets Python's own exit code
        else:
            for number in SIGNALS:
                signal.signal(number, before[number])
            _first = None
