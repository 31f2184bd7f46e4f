"""Ctrl-C and SIGTERM while a checkpoint is copied and while it is written: it becomes whole, and the run goes on from
it to the same bits."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from taro.cli import signals
from taro.cli.app import main
from taro.train.checkpoint import blocks, checkpoints, save
from taro.train.checkpoint.read import Reader
from taro.train.checkpoint.staging import Staging
from taro.train.optimizer.pieces import Piece
from tests.helpers_faults import TARO
from tests.train.conftest import Tiny
from tests.train.test_many_ranks import alone, assert_weights, good, recipe, rows, taro

INT, TERM = signal.SIGINT, signal.SIGTERM
THREE: dict[str, Any] = {"length": {"amount": 3}, "checkpoint": {"every": 1, "keep": 9}}
WAIT_S = 120.0
"""that a signal may take to be noted; a machine of two cores may be busy"""


def fire(send: Callable[[], None]) -> None:
    """Sends a signal, and waits until this process has noted it."""
    send()
    end = time.monotonic() + WAIT_S
    while not signals._noted and time.monotonic() < end:
        time.sleep(0.005)


def at(monkeypatch: pytest.MonkeyPatch, moment: str, then: Callable[[], None]) -> None:
    """Calls `then` at a moment of the first checkpoint: "copied" to host memory, or with its file open, "written"."""
    left, stage, write = [then], Staging.stage, blocks.write_blocks

    def copied(self: Staging, pieces: Sequence[Piece]) -> None:
        stage(self, pieces)
        if left:
            left.pop()()

    def written(path: Path, parts: Iterable[memoryview], *, ahead: int | None, stop: Event) -> list[str]:
        def halted() -> Iterator[memoryview]:
            for number, part in enumerate(parts):
                if number and left:
                    left.pop()()
                yield part

        return write(path, halted(), ahead=ahead, stop=stop)

    if moment == "copied":
        monkeypatch.setattr(Staging, "stage", copied)
    else:
        monkeypatch.setattr(save, "write_blocks", written)


@pytest.fixture(scope="module")
def undisturbed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 steps of one process."""
    return alone(recipe(tiny, tmp_path_factory.mktemp("whole"), "run", **THREE))


@pytest.mark.parametrize(("moment", "sent"), [("copied", (INT,)), ("written", (TERM,)), ("copied", (INT, TERM)),
                                              ("written", (TERM, INT))])
def test_one_process(tiny: Tiny, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                     capfd: pytest.CaptureFixture[str], moment: str, sent: tuple[signal.Signals, ...]) -> None:
    """The command itself, with real signals. The second of two, a second later, interrupts what it does: a checkpoint
    that is being written is finished all the same, one that is not begun leaves what was there, here nothing."""
    words = recipe(tiny, tmp_path, "run", **THREE)

    def send() -> None:
        fire(partial(os.kill, os.getpid(), sent[0]))
        for number in sent[1:]:
            time.sleep(signals.GAP_S + 0.05)
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patched:
        at(patched, moment, send)
        with pytest.raises(SystemExit) as ended:
            main(words)
    said = " ".join(capfd.readouterr().err.split())
    assert ended.value.code == 128 + sent[0] and "Traceback" not in said, said
    if len(sent) == 1 or moment == "written":
        whole_one(tmp_path / "run")
    alone(words, resume=True)
    assert rows(tmp_path / "run") == rows(undisturbed)
    assert_weights(tmp_path / "run", undisturbed, 3, 0.0)


def whole_one(run: Path) -> None:
    """There is a checkpoint, all of it is as its tables say, and nothing half-written lies beside."""
    found = checkpoints(run / "checkpoints")
    assert found and [path for path in (run / "checkpoints").iterdir() if path not in found] == []
    with Reader(found[-1]) as reader:
        reader.check()


HOOK = """
import os
if os.environ.get("RANK") == "0":
    import functools, signal
    import pytest
    from tests.train.test_signals_while_saving import at, fire
    send = functools.partial(os.kill, os.getppid(), getattr(signal, os.environ["TARO_TEST_SIGNAL"]))
    at(pytest.MonkeyPatch(), "written", functools.partial(fire, send))
"""
"""for sitecustomize: rank 0 signals the launcher as it writes its first checkpoint"""


@pytest.mark.slow
def test_two_ranks(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher gets the signal and hands it on while rank 0 writes; two ranks go on as two undisturbed ones."""
    whole, words = (recipe(tiny, tmp_path, name, **THREE) for name in ("whole", "run"))
    good(taro(*whole, gpus=2))
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    monkeypatch.setenv("TARO_TEST_SIGNAL", "SIGTERM")
    done = taro(*words, gpus=2, hook=tmp_path, fault=("never", 1, 0, ""), start=["env", "--default-signal=TERM", *TARO])
    said = " ".join(done.stderr.split())
    assert done.returncode == 143 and "is kept: the same command with --resume goes on" in said, said
    assert "Traceback" not in said
    whole_one(tmp_path / "run")
    good(taro(*words, "--resume", gpus=2))
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert_weights(tmp_path / "run", tmp_path / "whole", 3, 0.0)
