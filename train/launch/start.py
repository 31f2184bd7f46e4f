"""Starts a process for each GPU of this machine, as torchrun does, and ends them together.

The launcher holds no GPU and imports no torch. It hears from each rank which phase it is in; where one ends with an
error, or is killed, it says so once and ends the others. Where the launcher itself is killed its lines close, and every
rank ends by itself. Left out: several machines, which torchrun starts (`taro.train.launch.join` is the same there)."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from taro.train.launch.place import ENDED, LINE_FD, STORE_FD

__all__ = ["run_ranks"]

GRACE_S = 5.0
"""that a rank has to end by itself"""
LAST_S = 15.0
"""that ranks have to stop after a second signal, or to tell of the failure that others ended for"""
POLL_S = 0.05


@dataclass
class _Child:
    rank: int
    process: subprocess.Popen[bytes]
    line: socket.socket
    phase: str = "starting"
    told: bool = False
    left: bytes = field(default=b"", repr=False)

    def hear(self) -> None:
        """Reads what the rank has said."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while data := self.line.recv(4096):
                *lines, self.left = (self.left + data).split(b"\n")
                for word, _, rest in (line.decode(errors="replace").partition(" ") for line in lines):
                    self.phase, self.told = (rest or self.phase, self.told) if word == "at" else (self.phase, True)

    def end(self) -> None:
        """Closes the line, upon which the rank ends; kills it where it does not."""
        self.line.close()
        try:
            self.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def run_ranks(command: Sequence[str], world: int, signals: Sequence[int], say: Callable[[str], None]) -> int:
    """Runs `command` as `world` ranks; returns an exit code: 0, 1 where a rank failed, 128 + the first signal's number.

    Args: signals: numbers of the signals that came so far, a list that grows: each is handed on to every rank; say:
    tells the user of a rank that could not."""
    children: list[_Child] = []
    try:
        with socket.create_server(("127.0.0.1", 0), backlog=world) as store:
            for rank in range(world):
                children.append(_start(command, rank, world, store))
        code = _watch(children, signals, say)
    finally:
        for child in children:
            child.line.close()
        for child in children:
            child.end()
        if sys.stderr.isatty():
            sys.stderr.write("\x1b[?25h")  # a bar that was cut off has hidden the cursor
    return code


def _start(command: Sequence[str], rank: int, world: int, store: socket.socket) -> _Child:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    handed = [theirs.fileno(), *([store.fileno()] if rank == 0 else [])]
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank),
                   "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(store.getsockname()[1]),
                   LINE_FD: str(theirs.fileno()), **({STORE_FD: str(store.fileno())} if rank == 0 else {})}
    with theirs:
        # A session of its own: Ctrl-C reaches the launcher alone, which hands it on once.
        process = subprocess.Popen(command, env=environment, pass_fds=handed, stdin=subprocess.DEVNULL,
                                   stdout=None if rank == 0 else subprocess.DEVNULL, start_new_session=True)
    return _Child(rank, process, ours)


def _watch(children: Sequence[_Child], signals: Sequence[int], say: Callable[[str], None]) -> int:
    """Until all have ended, or one has failed."""
    handed, last_s = 0, float("inf")
    while True:
        for child in children:
            child.hear()
        for number in signals[handed:]:
            for child in children:
                if child.process.poll() is None:
                    child.process.send_signal(number)
        if len(signals) > max(handed, 1):
            last_s = min(last_s, time.monotonic() + LAST_S)
        handed = len(signals)
        codes = [child.process.poll() for child in children]
        if all(code is not None for code in codes):
            break
        failed = [child for child, code in zip(children, codes, strict=True) if code not in (None, 0, ENDED)]
        if failed and not signals:
            break
        if failed or ENDED in codes:
            last_s = min(last_s, time.monotonic() + LAST_S)
        if time.monotonic() > last_s:
            break
        time.sleep(POLL_S)
    if signals:
        return 128 + signals[0]
    for child in children:
        child.hear()
    if not any(child.told for child in children):
        _tell(children, say)
    return int(any(child.process.poll() != 0 for child in children))


def _tell(children: Sequence[_Child], say: Callable[[str], None]) -> None:
    """Says which rank ended without a word of its own."""
    for child in children:
        code = child.process.poll()
        if code in (None, 0, ENDED):
            continue
        how = f"with exit code {code}"
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            how = f"by {name}"
            if -code == signal.SIGKILL:
                how += " (the system does this where the machine's memory is full; see dmesg)"
        say(f"rank {child.rank} of {len(children)} was ended {how} in the phase {child.phase}; the other ranks were "
            "stopped. The same command with --resume goes on from the newest checkpoint")
        return
