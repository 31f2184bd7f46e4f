"""What the launcher gives its ranks: how many share the machine, and no modules from the folder where one stands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from taro.train.checkpoint.blocks import hash_threads
from taro.train.checkpoint.staging import free_host_bytes
from taro.train.launch.start import run_ranks
from tests.helpers_faults import ROOT

AGAIN = """
import subprocess, sys
hidden = [sys.path.pop(0)] if sys.path[0] == "" else []  # this process itself finds what is installed
from taro.cli import line
from taro.cli.ranks import same_command
line.WORDS[:] = ["--version"]
sys.path[:0] = hidden
sys.exit(subprocess.run(same_command()).returncode)
"""


def test_ranks_know_how_many_share_the_machine() -> None:
    told: list[str] = []
    looks = "import os, sys; sys.exit(os.environ['LOCAL_WORLD_SIZE'] != '3' or os.environ['WORLD_SIZE'] != '3')"
    assert run_ranks([sys.executable, "-c", looks], 3, [], told.append) == 0 and not told


def test_ranks_share_memory_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight ranks that each took all free memory to stage a checkpoint would take it eight times."""
    monkeypatch.setattr("taro.train.checkpoint.staging._text",
                        lambda path: "MemAvailable: 8000 kB" if path == "/proc/meminfo" else "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)))
    for said, ranks, threads in (("1", 1, 8), ("8", 8, 2), ("", 1, 8), ("many", 1, 8), ("0", 1, 8)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", said)
        assert free_host_bytes() == int(8000 * 1024 * 0.9) // ranks and hash_threads() == threads


@pytest.mark.parametrize("safe", [True, False])
def test_ranks_find_modules_where_the_command_finds_them(tmp_path: Path, safe: bool) -> None:
    """`taro` takes no module from the current folder before an installed one, and neither do the ranks that it starts;
    `python -m taro` does, and so do its ranks."""
    (tmp_path / "typer.py").write_text("raise SystemExit(7)")
    done = subprocess.run([sys.executable, *(["-P"] if safe else []), "-c", AGAIN], cwd=tmp_path, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.returncode == (0 if safe else 7), done.stderr
