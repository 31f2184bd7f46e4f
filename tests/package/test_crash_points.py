"""A small share of benchmarks/crash_points.py: jobs ended before some of their calls, and some power cuts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.power_cut import Replay, write_disk
from taro.core import draws

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None or sys.platform != "linux", reason="needs Linux and a C compiler")
def test_jobs_recover_from_some_ends_signals_and_power_cuts() -> None:
    words = ["--jobs", "filter,merge", "--every", "11", "--signals", "12", "--cuts", "6", "--json"]
    done = subprocess.run([sys.executable, "benchmarks/crash_points.py", *words], capture_output=True, text=True,
                          cwd=ROOT, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)["jobs"]
    assert [one["job"] for one in found] == ["filter", "merge"]
    for one in found:
        assert one["points"] > 50 and one["problems"] == [] and one["tried"] == one["recovered"], one
        assert sum(one["tried"].values()) > 14 and any(what.startswith("power cut") for what in one["tried"]), one


def test_the_disk_after_a_power_cut_by_hand(tmp_path: Path) -> None:
    """A file written aside, synced and renamed, the folder never synced; a folder made and synced before."""
    log, copies, root = tmp_path / "log", tmp_path / "copies", tmp_path / "root"
    copies.mkdir()
    (copies / "4").write_bytes(b"whole")
    calls = ["mkdir\troot/d\t", "sync\troot\t", "create\troot/d/.a.tmp\t", "sync\troot/d/.a.tmp\t",
             "rename\troot/d/.a.tmp\troot/d/a"]
    log.write_text("".join(f"{number}\t{call.replace('root', str(root))}\n" for number, call in enumerate(calls, 1)))
    disks = {(number, variant): disk for number, _, variant, disk
             in Replay(root, log, copies).disks(draws.rng("a test"))}  # fmt: skip
    assert disks[1, "kept"] == {"d": None} and disks[1, "lost"] == {}
    assert disks[3, "kept"] == {"d": None, "d/.a.tmp": b""} and disks[3, "lost"] == {"d": None}
    assert disks[5, "kept"] == {"d": None, "d/a": b"whole"} and disks[5, "lost"] == {"d": None}
    assert disks[5, "mixed"] in ({"d": None}, disks[5, "kept"])
    write_disk(root, disks[5, "kept"])
    assert (root / "d" / "a").read_bytes() == b"whole" and len(list(root.rglob("*"))) == 2
