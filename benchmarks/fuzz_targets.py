"""What the fuzz programs share: what an input and a target are, and whole folders as an input."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Files = dict[str, bytes]
"""one input: file name -> content"""


@dataclass(frozen=True)
class Target:
    """A parser, or several: `make(rng)` draws an input, `run(files, folder)` feeds it; it gets `share` of --inputs."""

    name: str
    make: Callable[[random.Random], Files]
    run: Callable[[Files, Path], Any]
    share: float = 1.0


def folder_of(root: Path) -> Files:
    """The files of a flat folder."""
    return {path.name: path.read_bytes() for path in sorted(root.iterdir()) if path.is_file()}


def lay_folder(files: Files, base: Path, folder: Path) -> None:
    """A copy of `base` with some files replaced."""
    shutil.copytree(base, folder)
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
