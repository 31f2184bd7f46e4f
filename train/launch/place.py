"""Which rank this process is, by the environment variables that torchrun sets; and its line to the launcher.

The line is a pair of connected sockets. A rank says on it which phase it is in, and that it has told the user of its
failure; that the line closes, at either end, means that the other process is gone. Imports nothing heavy: a rank
watches its launcher from its first moment."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from taro.core.errors import ConfigError

__all__ = ["ENDED", "LINE_FD", "STORE_FD", "Line", "Place", "place_of", "ranks_here"]

ENDED = 75
"""exit code of a rank that ends since another one failed"""
LINE_FD, STORE_FD = "TARO_LINE_FD", "TARO_STORE_FD"
"""environment variables of taro's own launcher: sockets that a rank inherits"""
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """rank of world; local: among the ranks of this machine; host, port: where they meet."""

    rank: int
    world: int
    local: int
    host: str
    port: int


def place_of(environment: Mapping[str, str]) -> Place | None:
    """The place that the environment names; None of a process that is alone. Raises ConfigError where it makes no
    sense."""
    found = [environment.get(name, "") for name in NAMES]
    if not all(found) or found[1] == "1":
        return None
    if not all(one.isascii() and one.isdecimal() and len(one) < 7 for one in (*found[:3], found[4])):
        raise ConfigError(f"the environment says {dict(zip(NAMES, found, strict=True))!s:.300}; expected numbers, as "
                          "torchrun sets them: start with torchrun or --gpus, or unset them")
    place = Place(int(found[0]), int(found[1]), int(found[2]), found[3], int(found[4]))
    if not place.rank < place.world:
        raise ConfigError(f"the environment says RANK={place.rank} and WORLD_SIZE={place.world}; expected a rank below "
                          "the world size, as torchrun sets them: start with torchrun or --gpus, or unset them")
    return place


def ranks_here(environment: Mapping[str, str]) -> int:
    """Ranks of this machine, which share its cores and its memory; 1 where nobody says.

    >>> ranks_here({"LOCAL_WORLD_SIZE": "8"}), ranks_here({})
    (8, 1)
    """
    found = environment.get("LOCAL_WORLD_SIZE", "")
    return max(int(found), 1) if found.isascii() and found.isdecimal() and len(found) < 7 else 1


class Line:
    """A rank's end of its line to the launcher; under torchrun there is none, and nothing is said."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        number = environment.get(LINE_FD, "")
        self._socket = socket.socket(fileno=int(number)) if number.isdecimal() else None
        if self._socket is not None:
            threading.Thread(target=self._watch, daemon=True, name="launcher").start()

    def say(self, *words: str) -> None:
        """One line; a launcher that is gone does not hear it."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendall((" ".join(words).replace("\n", " ") + "\n").encode())

    def _watch(self) -> None:
        assert self._socket is not None
        with contextlib.suppress(OSError):
            self._socket.recv(1)  # nothing is ever sent this way: it returns when the line closes
        os._exit(ENDED)
