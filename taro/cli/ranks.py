"""`--gpus N`: a command as N processes, each with a GPU of its own; the terminal is that of rank 0.

The same command line runs again in every process (`taro.train.launch.start`), where the environment says which rank it
is. torchrun sets the same variables, so that it may start the processes instead."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import typer

from taro.cli.line import WORDS
from taro.cli.output import say_error
from taro.cli.signals import deferred
from taro.core.errors import ConfigError
from taro.train.launch.place import place_of
from taro.train.launch.start import run_ranks

__all__ = ["is_quiet", "same_command", "start_ranks", "stopping"]

STOPPING = "\nstopping after this phase, with a checkpoint of the last finished step; again: at once\n"


def start_ranks(gpus: int, device: str) -> None:
    """Where `gpus` asks for several processes and this is none of them: runs them and exits. Raises ConfigError where
    there are not as many GPUs, or this is one of another number of processes."""
    place = place_of(os.environ)
    if place is not None:
        if gpus not in (1, place.world):
            raise ConfigError(f"--gpus {gpus}, but this is one of {place.world} processes that a launcher started; "
                              "leave --gpus out under torchrun")
        return
    if gpus == 1:
        return
    if device != "cpu":
        import torch

        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if found < gpus:
            raise ConfigError(f"--gpus {gpus}: torch finds {found} GPUs here; ask for no more than there are "
                              "(processes without GPUs: device=cpu)")
    with deferred(STOPPING, at_once=False) as signals:
        code = run_ranks(same_command(), gpus, signals, lambda text: say_error(f"error: {text}"))
    raise typer.Exit(code)


def same_command() -> list[str]:
    """The words that start this command again. Where this process finds modules in the current folder last or not at
    all, as `taro` does, so does the other: no file that lies there takes the place of an installed module."""
    safe = [] if sys.path[:1] in ([""], [str(Path.cwd())]) else ["-P"]
    return [sys.executable, *safe, "-m", "taro", *WORDS]


def stopping() -> AbstractContextManager[list[int]]:
    """Around work that stops in good order where a signal asks it to; the launcher speaks for its ranks."""
    return deferred(STOPPING if place_of(os.environ) is None else "")


def is_quiet() -> bool:
    """Whether another rank has the terminal."""
    place = place_of(os.environ)
    return place is not None and place.rank > 0
