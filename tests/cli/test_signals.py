"""Ctrl-C and SIGTERM, once and twice, from the moment that a process handles them to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from taro.cli.app import main
from taro.cli.signals import PATIENCE_S, stop_code, stoppable
from tests.helpers_faults import ROOT, TARO

INT, TERM = signal.SIGINT, signal.SIGTERM
SENT = [(INT,), (TERM,), (INT, INT), (INT, TERM), (TERM, TERM), (TERM, INT, INT)]


def start(*words: str) -> subprocess.Popen[str]:
    """`taro WORDS` with SIGINT as a terminal's foreground job has it."""
    return subprocess.Popen(["env", "--default-signal=INT", *TARO, *words], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, cwd=ROOT, start_new_session=True)  # fmt: skip


def handles(process: subprocess.Popen[str]) -> bool:
    """Whether the process has a handler of SIGTERM yet."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), 16)
    return bool(caught >> (TERM - 1) & 1)


def stop(process: subprocess.Popen[str], sent: Sequence[int], gap_s: float) -> str:
    """Sends the signals; what was said, once the exit code is that of one of them (of two that wait together, Python
    handles the one with the lower number first)."""
    for number in sent:
        process.send_signal(number)
        time.sleep(gap_s)
    _, said = process.communicate(timeout=600)
    assert process.returncode in {128 + number for number in sent}, (process.returncode, said)
    assert "Traceback" not in said and "Aborted" not in said and said.count("interrupted;") == 1, said
    return said


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see when a handler is there")
@pytest.mark.parametrize("sent", SENT, ids=lambda sent: " ".join(signal.Signals(one).name for one in sent))
@pytest.mark.parametrize("gap_s", [0.0, 0.01])
def test_while_the_command_is_being_imported(tmp_path: Path, sent: Sequence[int], gap_s: float) -> None:
    process = start("sandbox", "make", str(tmp_path / "world"), "--videos", "3000")
    while not handles(process):
        time.sleep(0.001)
    stop(process, sent, gap_s)


@pytest.mark.parametrize("sent", SENT, ids=lambda sent: " ".join(signal.Signals(one).name for one in sent))
def test_while_it_works(tmp_path: Path, sent: Sequence[int]) -> None:
    process = start("sandbox", "make", str(tmp_path / "world"), "--videos", "3000")
    while process.poll() is None and len(list((tmp_path / "world" / "videos").glob("*.mp4"))) < 2:
        time.sleep(0.005)
    stop(process, sent, 0.005)
    assert not list((tmp_path / "world").rglob(".*"))


def test_an_ignored_signal_stays_ignored_and_the_callers_handlers_come_back() -> None:
    before = signal.getsignal(INT), signal.getsignal(TERM)
    try:
        signal.signal(INT, signal.SIG_IGN)
        with stoppable(to_the_end=False):
            os.kill(os.getpid(), INT)
            with stoppable(to_the_end=True), pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), TERM)
                time.sleep(1)
            assert stop_code() == 143
            os.kill(os.getpid(), TERM)
        assert stop_code() is None and signal.getsignal(INT) is signal.SIG_IGN
        with pytest.raises(SystemExit):
            main(["--version"])
        assert signal.getsignal(TERM) == before[1]
        with ThreadPoolExecutor(1) as other:
            assert isinstance(other.submit(main, ["--version"]).exception(), SystemExit)
    finally:
        for number, handler in zip((INT, TERM), before, strict=True):
            signal.signal(number, handler)


HANGS = """
import time
from taro.cli.signals import stoppable, works
with stoppable(to_the_end=True):
    works()
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        time.sleep(60)
"""


def test_a_clean_up_that_hangs_ends_at_the_next_signal_after_some_patience() -> None:
    process = subprocess.Popen(["env", "--default-signal=INT", TARO[0], "-c", HANGS], text=True, cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for wait_s, number in ((0.1, INT), (0.3, TERM), (PATIENCE_S + 0.2, TERM)):
        time.sleep(wait_s)
        assert process.poll() is None
        process.send_signal(number)
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 130 and said == "stopped at once; the next run removes what is half-written\n"


DROPS = """
import os, signal, sys, time
from taro.cli.signals import stop_code, stoppable, works

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

with stoppable(to_the_end=True):
    works()
    try:
        HOW
        print("went on")
    except KeyboardInterrupt:
        sys.exit(stop_code())
"""


@pytest.mark.parametrize("how", ["Finalized(); time.sleep(1)", "exec('Finalized.__del__(0)')"])
def test_an_interruption_that_python_drops_or_remembers_ends_the_command_all_the_same(tmp_path: Path, how: str) -> None:
    """Python drops what a finalizer raises; after an interruption in an exec of text it would exit by signal."""
    (tmp_path / "drops.py").write_text(DROPS.replace("HOW", how))
    ended = subprocess.run([TARO[0], "-m", "drops"], text=True, cwd=tmp_path, capture_output=True,
                           env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (143, "", "")
