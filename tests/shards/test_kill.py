"""A job killed at any moment of writing a slice: no half slice counts as done, and the rerun writes the same bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Runs in a process of its own, without threads, so that it can fork; each child dies, as by a signal, at its n-th
# operation on a file, and the parent looks at what is on the disk.
SCRIPT = """
import os, shutil, sys
from pathlib import Path
from taro.shards.manifest import build_manifest, write_manifest
from taro.shards.writer import SliceWriter, slice_done
from taro.shards.format import shard_path
from tests.shards.helpers_sets import SHEET, record

def write(root, captions):
    with SliceWriter(root, 0, kinds=["paths"]) as writer:
        for one in sorted((record(n, captions=captions) for n in (1, 2)), key=lambda one: one.key):
            writer.add_clip(one, SHEET, {}, {})
        writer.commit()

base = Path(sys.argv[1])
write(base / "new", 3)
write(base / "old", 2)
state = lambda root: {p.name: p.read_bytes() for p in (root / "paths").iterdir() if not p.name.endswith(".tmp")}
new, old = state(base / "new"), state(base / "old")
seen = set()
for moment in range(1, 100):
    for start in ("nothing", "old"):
        root = base / f"{start}-{moment}"
        if start == "old":
            shutil.copytree(base / "old", root)
        child = os.fork()
        if child == 0:
            left = [moment]
            def hook(event, arguments):
                if event in {"open", "os.rename", "os.remove", "os.mkdir"} and str(root) in str(arguments[0]):
                    left[0] -= 1
                    if left[0] == 0:
                        os._exit(9)
            sys.addaudithook(hook)
            write(root, 3)
            os._exit(0)
        finished = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        done = slice_done(root, 0, ["paths"])
        now = state(root) if (root / "paths").is_dir() else {}
        assert now == new or not finished, (start, moment)
        assert done == (now in (old, new)), (start, moment, done, sorted(now))
        seen.add((start, finished, done))
        write(root, 3)
        assert state(root) == new and not list((root / "paths").glob(".*")), (start, moment)
    if finished:
        break
assert finished and moment > 6 and {(s, False, d) for s in ("nothing", "old") for d in (False,)} <= seen, (moment, seen)
print("moments", moment)
"""


@pytest.mark.slow
def test_a_kill_at_any_file_operation_leaves_all_or_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=600,
                          cwd=Path(__file__).parents[2])  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith("moments"), done.stderr
