"""A rank joins the others, and ends with them: whichever fails first tells the user, and no rank waits for it in vain.

Every rank has a thread that writes a sign of life with its phase into the ranks' common store, and looks for a failure
there. The rank that fails writes it there first; one that is dead is found by its missing signs. Then every other rank
ends at once, whatever its main thread waits for: a collective of NCCL cannot be called back."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from taro.core.errors import Stopped, TaroError, first_line
from taro.core.text import visible
from taro.models.resolve import compute_device
from taro.train.launch.place import ENDED, STORE_FD, Line, Place, place_of
from taro.train.ranks import ALONE, LostRankError, Ranks

__all__ = ["BEAT_S", "STALE_S", "joined"]

BEAT_S, STALE_S = 1.0, 20.0
"""between signs of life; without one for so long a rank is dead"""
VERDICT_S = 45.0
"""that a rank which lost contact waits for word of the rank that failed"""
MEETING = timedelta(hours=1)
"""that a collective waits for ranks that are alive: one may be writing an export"""
JOINING = timedelta(minutes=5)


@contextlib.contextmanager
def joined(device: str, environment: Mapping[str, str] | None = None) -> Iterator[Ranks]:
    """This process among the ranks that the environment names; alone where it names none. A rank that fails says so in
    one line before its error is raised; ranks that end for another's failure end without a word."""
    environment = os.environ if environment is None else environment
    place = place_of(environment)
    if place is None:
        yield ALONE
        return
    line = Line(environment)
    if place.rank:
        logging.disable(logging.WARNING)  # rank 0 says it
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  to the process's end
    where = compute_device(device)
    if where.type == "cuda":
        where = compute_device(f"cuda:{place.local}")
        torch.cuda.set_device(where)
    store = _store(place, environment)
    watcher = _Watcher(place, line)
    ranks = Ranks(place.rank, place.world, place.local, watcher.note)
    try:
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo", store=PrefixStore("group", store),
                                rank=place.rank, world_size=place.world, timeout=MEETING)
        ranks.barrier()
        yield ranks
        ranks.barrier()
    except Stopped:  # all ranks, at one moment
        watcher.close()
        dist.destroy_process_group()
        _leave(store, place)
        raise
    except KeyboardInterrupt:
        watcher.close()
        raise
    except BaseException as error:
        if isinstance(error, LostRankError):
            time.sleep(VERDICT_S)  # the watcher ends this process when the cause is known
        if watcher.fail(error):
            raise
        os._exit(ENDED)
    watcher.close()
    dist.destroy_process_group()
    _leave(store, place)


def _store(place: Place, environment: Mapping[str, str]) -> TCPStore:
    """The ranks' common store. It lives in rank 0, or in torchrun where that has one."""
    hosted = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    listening = environment.get(STORE_FD, "")
    extra: dict[str, Any] = {"master_listen_fd": int(listening)} if listening.isdecimal() else {}
    try:
        return TCPStore(place.host, place.port, place.world, place.rank == 0 and not hosted, JOINING,
                             wait_for_workers=False, **extra)
    except (RuntimeError, OSError) as error:
        raise TaroError(f"rank {place.rank} of {place.world} found no other rank at {place.host}:{place.port} "
                        f"({first_line(error)}); are all started, and can they reach that machine?"
                        ) from None


def _leave(store: TCPStore, place: Place) -> None:
    """Rank 0 leaves last: the store may be its own."""
    with contextlib.suppress(RuntimeError):
        store.set(f"left/{place.rank}", "1")
        if place.rank == 0:
            store.wait([f"left/{rank}" for rank in range(place.world)], timedelta(seconds=10))


class _Watcher:
    """The thread; `note` names the phase of this rank."""

    def __init__(self, place: Place, line: Line) -> None:
        self._place, self._line, self._phase = place, line, "starting"
        self._closed = threading.Event()
        self._failed = False
        # A connection of its own: a store's connection is held by whoever waits on it.
        self._store = TCPStore(place.host, place.port, None, False, JOINING, wait_for_workers=False)
        self._thread = threading.Thread(target=self._run, daemon=True, name="ranks")
        self._thread.start()

    def note(self, phase: str) -> None:
        """What this rank does now."""
        self._phase = phase or "between phases"
        self._line.say("at", self._phase)

    def close(self) -> None:
        """No more signs of life, and no more looking for failures."""
        self._closed.set()
        self._thread.join()

    def fail(self, error: BaseException) -> bool:
        """Tells the others of this rank's failure. Returns whether it was the first; then the user reads of it."""
        self._failed = True
        return self._report(self._place.rank, self._phase, first_line(error))

    def _report(self, rank: int, phase: str, reason: str) -> bool:
        mine = json.dumps({"rank": rank, "phase": phase, "reason": reason, "by": self._place.rank})
        try:
            first = self._store.compare_set("failure", "", mine) == mine.encode()
        except RuntimeError:
            first = True  # nobody else can be asked
        if first:
            self._line.say("told")
            self._print(f"rank {rank} of {self._place.world} failed in the phase {phase}"
                        + (":" if self._failed else f": {reason}"))
        return first

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(2, f"{visible(text)}\n".encode())

    def _run(self) -> None:
        seen = {rank: (b"", time.monotonic()) for rank in range(self._place.world) if rank != self._place.rank}
        reached_s, beat = time.monotonic(), 0
        while not self._closed.wait(BEAT_S):
            beat += 1
            try:
                self._store.set(f"beat/{self._place.rank}", f"{beat} {self._phase}")
                found = self._store.get("failure") if self._store.check(["failure"]) else b""
                now_s = reached_s = time.monotonic()
                for rank, (last, _) in list(seen.items()):
                    sign = self._store.get(f"beat/{rank}") if self._store.check([f"beat/{rank}"]) else b""
                    seen[rank] = seen[rank] if sign == last else (sign, now_s)
            except RuntimeError:
                if time.monotonic() - reached_s < STALE_S:
                    continue
                self._end(0, "unknown", f"its machine ({self._place.host}) was not reached for {STALE_S:.0f} s")
                return
            if found:
                if not self._failed:
                    os._exit(ENDED)
                return
            for rank, (sign, at_s) in seen.items():
                if now_s - at_s > STALE_S and sign:  # a rank that never came is the store's to miss
                    phase = sign.decode(errors="replace").partition(" ")[2]
                    self._end(rank, phase, f"no sign of life for {STALE_S:.0f} s: its process or its machine is gone")
                    return

    def _end(self, rank: int, phase: str, reason: str) -> None:
        if self._failed:
            return
        os._exit(1 if self._report(rank, phase, reason + ". The same command with --resume goes on from the newest "
                                                         "checkpoint") else ENDED)

