"""Where a step's numbers go: always `metrics.jsonl`, and tensorboard, wandb or trackio where asked for.

The JSONL is the record that everything else reads (reports, resume, tests): a line a step, a line an evaluation. A
resumed run truncates it to its checkpoint, so it never holds a step twice. Left out: the others' own ways
(`taro.train.tracking`), and console output, which is the command line's."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from taro.core.errors import ConfigError, MissingPackageError
from taro.core.files import write_atomically
from taro.core.jsonl import read_jsonl
from taro.train.settings.tracking import TrackingConfig
from taro.train.tracking import Resumed, open_tracking

__all__ = ["JsonlTracker", "Tracker", "check_trackers", "finite", "open_trackers", "truncate_to_step"]


class Tracker(Protocol):
    """Anything that takes numbers."""

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Records one step (or, under the key `eval`, one evaluation)."""

    def rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Records a table of some of a step's rollouts (`taro.train.tracking.table_rows`)."""

    def close(self) -> None:
        """Flushes and releases what it holds."""


class JsonlTracker:
    """Appends one JSON object a line; non-finite numbers become null, so that every JSON reader reads it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes one line and forces it to the disk: a checkpoint must never outlive the lines before it."""
        self._file.write(json.dumps(finite({"step": step, **values})) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing: rollouts/step-N.jsonl has them all."""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def check_trackers(names: Sequence[str]) -> None:
    """Raises MissingPackageError where one is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            install = "'taro-vtg[train]'" if name == "tensorboard" else name
            raise MissingPackageError(f"trackers names {name}, which is not installed; pip install {install}, or leave "
                                      "it out (metrics.jsonl is always written)")


def open_trackers(names: Sequence[str], run: Path, tracking: TrackingConfig, config: Mapping[str, Any], *,
                  resumed: Resumed = (0, ())) -> list[Tracker]:
    """The JSONL of a run folder and the trackers named. `resumed`: where the run goes on, and what it had logged."""
    with contextlib.ExitStack() as stack:  # where one does not start, those before it are closed
        opened: list[Tracker] = []
        for name in ("jsonl", *names):
            opened.append(JsonlTracker(run / "metrics.jsonl") if name == "jsonl" else
                          open_tracking(name, run, tracking, config, resumed=resumed))
            stack.callback(opened[-1].close)
        stack.pop_all()
    return opened


def truncate_to_step(run: Path, completed: int) -> list[dict[str, Any]]:
    """Removes what a run wrote after its checkpoint of `completed` updates (0: everything): metric lines and rollout
    dumps. The evaluation of that very step precedes its checkpoint, so it stays. Returns the lines that there were."""
    rows = read_jsonl(run / "metrics.jsonl")
    if not all(type(row.get("step")) is int for row in rows):
        raise ConfigError(f"{run / 'metrics.jsonl'}: expected a step in every line; the file was damaged after it was "
                          "written: restore it, or delete the lines without one")
    kept = [row for row in rows
            if row["step"] < completed or (completed and "eval" in row and row["step"] == completed)]
    write_atomically(run / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept).encode())
    for path in (run / "rollouts").glob("step-*.jsonl"):
        number = path.stem.removeprefix("step-")
        if number.isdecimal() and len(number) < 16 and int(number) >= completed:
            path.unlink()
    return rows


def finite(value: Any) -> Any:
    """A value for JSON: non-finite numbers in it, however deep, are null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
