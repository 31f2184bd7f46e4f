"""Faults for tests, all of them real: a small disk, a read-only one, death at a chosen file operation, a mad clock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
TARO = [sys.executable, "-m", "taro"]

DYING = """
import os, sys
event_wanted, name, left = sys.argv[1], sys.argv[2], int(sys.argv[3])
def hook(event, arguments):
    global left
    if event == event_wanted and str(arguments[0]).endswith(name):
        left -= 1
        if left == 0:
            os._exit(9)  # as SIGKILL does: nothing is flushed, closed or unwound
sys.addaudithook(hook)
from taro.cli.app import main
main(sys.argv[4:])
"""

SMALL_DISK = """
import contextlib, io, json, os, subprocess, sys
from pathlib import Path
from taro.cli.app import main
disk, out, sizes, words = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4:]
told = []
def attempt(what, option):
    subprocess.run(["mount", "-o", option, *(["-t", "tmpfs", "tmpfs"] if not told else []), str(disk)], check=True)
    resume = ["--resume"] if (out / "config.yaml").is_file() else []
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            main([*words, *resume])
        except SystemExit as stop:
            code = stop.code or 0
    left = [path.relative_to(out).as_posix() for path in out.rglob("*") if "tmp" in path.name]
    told.append([what, code, said.getvalue(), left])
for size in sizes:
    attempt(f"{size} KiB", f"remount,size={size}k" if told else f"size={size}k")
attempt("read-only", "remount,ro")
attempt("room again", "remount,rw,size=64m")
subprocess.run(["cp", "-r", str(out), str(disk.parent / "copied")], check=True)
print("TOLD" + json.dumps(told))
"""

CLOCK = """
import itertools, time
real, real_ns, turn = time.time, time.time_ns, itertools.count()
jump = lambda: [0, -10, 25, -40][next(turn) % 4] * 365 * 86_400
time.time = lambda: real() + jump()
time.time_ns = lambda: real_ns() + jump() * 10**9
"""


def dies(*words: str, at: str, name: str, count: int = 1) -> None:
    """Runs `taro WORDS`, which dies as by kill -9 before its `count`-th operation `at` (an audit event, such as
    os.rename) on a path that ends with `name`."""
    done = subprocess.run([sys.executable, "-c", DYING, at, name, str(count), *words], capture_output=True, text=True,
                          cwd=ROOT, check=False)  # fmt: skip
    assert done.returncode == 9, (done.returncode, done.stderr)


def small_disk(disk: Path, out: Path, sizes: list[int], *words: str) -> list[tuple[str, int, str, list[str]]]:
    """`taro WORDS`, which writes `out` on the file system `disk`: of `sizes` KiB, one after the other, then read-only,
    then with room. (what it was, exit code, stderr, temporary files left) of each; `out` is copied beside `disk` in
    the end. The test is skipped where file systems cannot be mounted."""
    disk.mkdir()
    space = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        subprocess.run([*space, "mount", "-t", "tmpfs", "tmpfs", str(disk)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here ({error})")
    done = subprocess.run([*space, sys.executable, "-c", SMALL_DISK, str(disk), str(out), json.dumps(sizes), *words],
                          capture_output=True, text=True, cwd=ROOT, check=False)  # fmt: skip
    assert "TOLD" in done.stdout, done.stderr
    return [tuple(row) for row in json.loads(done.stdout.split("TOLD")[1])]


def mad_clock(folder: Path) -> dict[str, Any]:
    """An environment in which every look at the clock jumps by years, back and forth."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(CLOCK)
    env = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    said = subprocess.run([sys.executable, "-c", "import time; print(time.time() > time.time() + 10**8)"], env=env,
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert said.stdout.strip() == "True", "the clock does not jump"
    return env
