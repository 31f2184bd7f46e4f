"""What a checkpoint's `state.json` holds, and the folders of a run's checkpoints: which there are, which go.

`state.json` is written last and names every other file with its hash, its own check included; then the folder is
renamed. So a folder named `step-N` is complete, whenever and whichever process was killed. Random draws need no state:
each is a function of its name (`taro.core.draws`)."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from taro.core.errors import TaroError
from taro.core.files import open_regular, remove_temporary_folders, write_atomically
from taro.core.json import strict_json

__all__ = ["VERSION", "Content", "DamagedError", "RunState", "checkpoints", "prune_checkpoints", "read_content",
           "read_state", "step_folder", "write_content"]

log = logging.getLogger(__name__)

VERSION = 2
"""1: of taro 0.1 and 0.2, two files of whole tensors; 2: one file a rank"""


class DamagedError(TaroError):
    """A checkpoint's files are not what was written."""


@dataclass
class RunState:
    """Where a run stands, besides its tensors."""

    step: int = 0
    """completed updates"""
    skipped: int = 0
    """updates skipped for a non-finite loss or gradient, so far"""
    nonfinite_streak: int = 0
    best_step: int | None = None
    best_score: float | None = None
    data_sha256: str = ""
    """of the queries trained on and their features; "" in checkpoints of an older taro"""

    def __post_init__(self) -> None:
        whole = (self.step, self.skipped, self.nonfinite_streak, 0 if self.best_step is None else self.best_step)
        if any(type(number) is not int or number < 0 for number in whole) or not isinstance(self.data_sha256, str) \
                or not isinstance(self.best_score, int | float | None):
            raise TypeError(f"not the state of a run: {self!r:.200}")


@dataclass(frozen=True)
class Content:
    """What state.json holds. `files`: name -> sha256, of version 2 the tables of the ranks, in order; `facts`: what a
    run that goes on must have in common; `steps`: the optimizer's own count of updates."""

    state: RunState
    files: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    version: int = VERSION

    def __post_init__(self) -> None:
        if not all(isinstance(text, str) for pair in self.files.items() for text in pair) or (
                type(self.steps) is not int or self.steps < 0):
            raise TypeError("not the files and steps of a checkpoint")


def write_content(folder: Path, content: Content) -> None:
    """Writes `folder`/state.json, forced to the disk."""
    data = {"version": content.version, "state": asdict(content.state), "facts": content.facts,
            "optimizer_steps": content.steps, "sha256": content.files}
    write_atomically(folder / "state.json", json.dumps({**data, "check": _check(data)}, indent=1).encode())


def read_content(path: Path) -> Content:
    """What the state.json of a checkpoint holds. Raises DamagedError; TaroError where it is of another version."""
    try:
        with open_regular(path / "state.json") as file:
            data = strict_json(file.read())
        version = data["version"]
        if version not in range(1, VERSION + 1):
            raise TaroError(f"{path}: checkpoint version {version!r:.40}, this taro reads 1 to {VERSION}")
        check = data.pop("check", None)
        content = Content(RunState(**data["state"]), dict(data["sha256"]), dict(data.get("facts", {})),
                          data.get("optimizer_steps", 0), version)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path}: not a checkpoint of taro train ({error!r:.200}); expected state.json and the "
                           "files that it names") from None
    if check != _check(data) and (check is not None or version > 1):  # the oldest taro wrote none
        raise DamagedError(f"{path / 'state.json'}: damaged (its check does not fit the rest of it)")
    if path.name != step_folder(content.state.step):
        raise DamagedError(f"{path}: its state.json is of step {content.state.step!r:.40}")
    return content


def read_state(path: Path) -> RunState:
    """Where the run of a checkpoint stood. Raises as `read_content`."""
    return read_content(path).state


def step_folder(step: int) -> str:
    """Name of the checkpoint of `step` completed updates.

    >>> step_folder(50)
    'step-000050'
    """
    return f"step-{step:06d}"


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints, oldest first; the rename that gave them their name says that they were written whole."""
    found = [path for path in folder.glob("step-*") if path.name[5:].isdecimal() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def prune_checkpoints(folder: Path, *, keep: int) -> list[Path]:
    """Removes all but the `keep` newest and what each of these calls the best on validation (a run that must go back to
    an older one finds its best too); returns what was removed. No checkpoint is being written meanwhile."""
    found, removed = checkpoints(folder), []
    kept = {path.name for path in found[-keep:]}
    for path in found[-keep:]:
        try:
            best = read_state(path).best_step
        except TaroError:
            continue  # found again, and said, when it is needed
        kept |= set() if best is None else {step_folder(best)}
    remove_temporary_folders(folder)
    for path in found:
        if path.name not in kept:
            path.rename(folder / f".tmp-pruned-{path.name}")  # a half-removed folder is no checkpoint
            removed.append(path)
            log.info("removed checkpoint %s", path.name)
    remove_temporary_folders(folder)
    return removed


def _check(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
