"""What a disk may hold after a power cut, from the log that crash_shim.c wrote of a job.

The model is POSIX's least: the content of a file is safe when the file was fsynced, a name (a creation, a rename, a
removal) when its folder was. After each call there are three disks to try:

    kept    every name is there, of each file only what was fsynced (a new one is empty)
    lost    names are those of the last fsync of their folder
    mixed   each name that is not safe yet is the old or the new one, by a seeded draw

Left out: parts of a file that were not synced and yet survive (checksums would find them, as they find a cut)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Disk = dict[str, bytes | None]
"""relative path -> content, None for a folder"""
VARIANTS = ("kept", "lost", "mixed")


@dataclass
class _File:
    safe: bytes = b""


@dataclass
class _Folder:
    now: dict[str, _File | _Folder] = field(default_factory=dict)
    safe: dict[str, _File | _Folder] = field(default_factory=dict)


class Replay:
    """The calls of a log, one after the other, as inodes with the names that they have and the ones that are safe."""

    def __init__(self, root: Path, log: Path, copies: Path) -> None:
        self._root, self._copies, self._top = str(root), copies, _Folder()
        self._calls = [line.split("\t") for line in log.read_text().splitlines()]

    def disks(self, rng: Any) -> Iterator[tuple[int, str, str, Disk]]:
        """(number of the call, call, variant, disk) after each call."""
        for number, call, one, two in self._calls:
            self._apply(number, call, one, two)
            for variant in VARIANTS:
                yield int(number), call, variant, dict(_walk(self._top, "", variant, rng))

    def _apply(self, number: str, call: str, one: str, two: str) -> None:
        if call == "sync" and one == self._root:
            self._top.safe = dict(self._top.now)
            return
        folder, name = self._place(one)
        if folder is None:
            return
        if call in ("create", "truncate"):
            there = folder.now.setdefault(name, _File())
            if call == "truncate" and isinstance(there, _File):
                there.safe = b""
        elif call == "mkdir":
            folder.now.setdefault(name, _Folder())
        elif call == "remove":
            folder.now.pop(name, None)
        elif call in ("rename", "link") and name in folder.now:
            target, new = self._place(two)
            if target is not None:
                target.now[new] = folder.now[name] if call == "link" else folder.now.pop(name)
        elif call == "sync":
            if name not in folder.now:  # safetensors renamed its own temporary file, behind the shim's back
                own = [one for one in folder.now if one.startswith(".tmp") and not one.startswith(".tmp-")]
                folder.now[name] = folder.now.pop(own[-1]) if own else _File()
            node = folder.now[name]
            copied = self._copies / number
            if isinstance(node, _Folder):
                node.safe = dict(node.now)
            elif copied.is_file():
                node.safe = copied.read_bytes()

    def _place(self, path: str) -> tuple[_Folder | None, str]:
        """(the folder, the name in it) of a path; (None, ...) of one that is not below the root."""
        if not path.startswith(f"{self._root}/"):
            return None, ""
        *above, name = path.removeprefix(f"{self._root}/").split("/")
        at: _Folder = self._top
        for part in above:
            inner = at.now.get(part)
            if not isinstance(inner, _Folder):
                return None, name
            at = inner
        return at, name


def _walk(folder: _Folder, prefix: str, variant: str, rng: Any) -> Iterator[tuple[str, bytes | None]]:
    """Everything below a folder, as a variant has it."""
    if variant == "mixed":
        names = {name: side[name] for name in sorted({*folder.now, *folder.safe})
                 for side in [folder.now if rng.random() < 0.5 else folder.safe] if name in side}
    else:
        names = folder.now if variant == "kept" else folder.safe
    for name, node in sorted(names.items()):
        if isinstance(node, _Folder):
            yield f"{prefix}{name}", None
            yield from _walk(node, f"{prefix}{name}/", variant, rng)
        else:
            yield f"{prefix}{name}", node.safe


def write_disk(root: Path, disk: Disk) -> None:
    """Makes the folder `root` hold a disk and nothing else."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for name, content in sorted(disk.items()):
        path = root / name
        if content is None:
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(content)
