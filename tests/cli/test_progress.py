"""What a long command says while it runs: in a log a line now and then, in a terminal a bar, on stdout nothing."""

from __future__ import annotations

import sys

import pytest

from taro.cli.progress import Lines, Pace, progress
from tests.helpers_terminal import on_a_terminal


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, said = [0.0], list[str]()
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    lines = Lines(said.append, every_s=30)
    for now_s[0], done in ((1.0, 1), (31.0, 20), (59.0, 40), (61.5, 41), (7300.0, 2000)):
        lines.update(done, 2000 if done < 2000 else None, "clips a.mp4")
    assert said == ["clips a.mp4: 20 of 2,000, 31 s so far, 52 min left",
                    "clips a.mp4: 41 of 2,000, 62 s so far, 49 min left", "clips a.mp4: 2,000, 2.0 h so far"]


def test_time_left_counts_from_the_first_step_of_a_resumed_job(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    pace = Pace()
    assert pace.text == "0 s so far"
    for now_s[0], done in ((10.0, 900), (20.0, 901), (40.0, 903)):
        pace.update(done, 1000)
    assert pace.left_s == 970 and pace.text == "16 min left"
    now_s[0] = 50.0
    assert pace.left_s == 960, "time goes on between two steps"
    pace.update(0, 5)
    assert pace.left_s is None, "another piece of work has its own pace"
    pace.end()
    now_s[0] = 99.0
    assert pace.text == "50 s"


WORK = """
from taro.cli.progress import progress
with progress("loading the model") as shown:
    shown._bar.refresh()
    for step in (10, 11, 12):
        shown.update(step, 1200, "guided reward 1.20 format 1.00 tIoU 0.45 bonus 0.21 timestamps 0.44 KL 0.01 tokens 9")
        shown._bar.refresh()
"""


@pytest.mark.parametrize("width", [80, 60])
def test_count_and_time_left_fit_a_narrow_terminal(width: int) -> None:
    lines = on_a_terminal([sys.executable, "-c", WORK], columns=width).replace("\r", "\n").split("\n")
    assert any(line.startswith("loading the model") and line.endswith("s so far") for line in lines), lines
    assert any(line.startswith("guided") and "12/1,200" in line and line.endswith(" left") for line in lines), lines
    assert max(map(len, lines)) <= width


BESIDE = """
from taro.cli.progress import progress
with progress("training") as shown:
    def show(*words):
        shown.beside(*words)
        shown._bar.refresh()
    for step in (10, 11, 12):
        shown.update(step, 1200, "guided")
    show("validating on val", 0, None)
    show("validating on val", 16, 64)
    show("validating on val", 32, 64)
    show(None, 0, None)
    shown.say("here it is over")
    show("saving a checkpoint", 0, None)
    show(None, 0, None)
    show(None, 0, None)
    shown.update(13, 1200, "guided")
    shown._bar.refresh()
"""


def test_work_beside_the_steps_has_a_bar_of_its_own_for_as_long_as_it_takes() -> None:
    """The steps keep their count and pace."""
    lines = on_a_terminal([sys.executable, "-c", BESIDE]).replace("\r", "\n").split("\n")
    over = lines.index("here it is over")
    at = [i for i, line in enumerate(lines) if line.startswith("validating on val") and "32/64" in line]
    assert at and max(at) < over and all(lines[i].endswith(" left") and "12/1,200" in lines[i - 1] for i in at), lines
    assert any(line.startswith("saving a checkpoint") and line.endswith("s so far") for line in lines[over:])
    last = [line for line in lines if line][-1]
    assert last.startswith("guided") and "13/1,200" in last and last.endswith(" left")
    assert max(map(len, lines)) <= 80


def test_progress_is_never_on_stdout_and_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet in (False, True):
        with progress("work", quiet=quiet) as shown:
            shown.update(1, 2, "name [bold]with brackets[/x]")
            shown.say("validated [1, 2]")
        said = capsys.readouterr()
        assert not said.out
        assert said.err == ("" if quiet else "validated [1, 2]\n")
