"""The panel of `taro train` on a terminal: what it shows, that it fits, that it leaves nothing behind."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from taro.cli.live import LEVELS, Panel, trend
from tests.helpers_terminal import RICH, on_a_terminal
from tests.train.conftest import Tiny, tiny  # noqa: F401  one tiny policy and set, as the tests of training have

STEP = {"step": 3, "steps": 1200, "phase": "guided", "reward": 1.2, "format": 1.0, "tiou": 0.45, "bonus": 0.21,
        "drop_mean": 0.31, "kl": 0.0123, "entropy": 0.8, "length": 212.4, "length_min": 90, "length_max": 512,
        "truncated": 0.031, "tokens_per_s_by_phase": {"rollouts": 812.0, "scores": 19210.0, "update": 6200.0},
        "memory_gib": 61.23, "memory_gib_ranks": [61.23] * 8}
SHOWS = """
import json, logging, sys, time
from taro.cli.live import Panel, heard_warnings
from taro.cli.progress import progress
panel, step = Panel(), json.loads(sys.argv[1])
try:
    with progress("training", below=panel.render) as shown, heard_warnings(panel, shown):
        panel.phase("rollouts", True)
        for number in range(int(sys.argv[2])):
            panel.see({**step, "reward": number / 10})
            panel.see({"step": number, "eval": {"miou": 0.4 - number / 100, "r1@0.5": 0.5}})
            shown.update(number, 1200, "guided")
            if number == 1:
                logging.getLogger("taro.train.step").warning("all \\x1b[2J equal [bold]groups[/x] " + "word " * 30)
            shown._bar.refresh()
            time.sleep(float(sys.argv[3]))
except KeyboardInterrupt:
    print("stopped")
"""
ROWS = ("now ", "rewards ", "policy ", "tokens ", "tokens/s ", "memory ", "validated ", "warning ")


def shows(columns: int = 80) -> str:
    return on_a_terminal([sys.executable, "-c", SHOWS, json.dumps(STEP), "4", "0"], columns=columns, plain=False)


@pytest.mark.parametrize("columns", [80, 60])
def test_the_panel_fits_and_leaves_nothing(columns: int) -> None:
    got = shows(columns)
    lines = RICH.sub("", got).replace("\r", "\n").split("\n")
    assert max(len(line) for line in lines if not line.startswith("all ")) <= columns
    for row in ROWS:
        assert any(line.startswith(row) for line in lines), row
    text = "\n".join(lines)
    for piece in ("rollouts, 0 s", "total 0.30", "mean 212, 90 to 512, 3% cut off", "rollouts 812", "KL 0.0123",
                  "step 3: mIoU 0.370", "best 0.400 at 0", "3/1,200"):
        assert piece in " ".join(text.split()), piece
    assert got.count("\x1b[?25l") == got.count("\x1b[?25h") > 0 and got.rindex("\x1b[?25h") > got.rindex("\x1b[?25l")
    said = next(at for at, line in enumerate(lines) if line.startswith("all [U+001B][2J equal [bold]groups[/x]"))
    assert any(line.startswith("rewards") for line in lines[said:]), "the warning is printed above the panel"
    assert "\x1b[2J" not in got and got.endswith("\x1b[2K"), "erased at the end"


def test_plain_where_the_terminal_is_to_be_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", SHOWS, json.dumps(STEP), "2", "0"]
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        got = on_a_terminal(["env", f"{name}={value}", *command])
        assert "rewards" not in got and "all [U+001B][2J" in got.replace("\x1b", "[U+001B]")
    piped = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not piped.stdout and "rewards" not in piped.stderr and piped.stderr.startswith("all ")


def test_it_follows_a_resized_terminal_and_ctrl_c_restores_it() -> None:
    ours, theirs = pty.openpty()

    def size(columns: int) -> None:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    size(100)
    env = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "COLUMNS", "CI"}}
    process = subprocess.Popen([sys.executable, "-c", SHOWS, json.dumps(STEP), "2000", "0.02"], stdout=theirs,
                               stderr=theirs, env={**env, "TERM": "xterm-256color"}, start_new_session=True)

    def read_until(piece: str, times: int = 1) -> str:
        got = b""
        while got.count(piece.encode()) < times:
            got += os.read(ours, 1 << 16)
        return got.decode(errors="replace")

    read_until("validated", 2)
    size(50)
    got = read_until("validated", 6)
    frames = RICH.sub("", got).replace("\r", "\n").split("validated")
    assert max(map(len, frames[-2].split("\n"))) <= 50
    process.send_signal(signal.SIGINT)
    got = read_until("stopped")
    assert got.rindex("\x1b[?25h") > got.rfind("\x1b[?25l") and process.wait(timeout=600) == 0
    os.close(theirs)
    os.close(ours)


def test_numbers_that_are_none_or_missing_are_shown_as_such() -> None:
    panel = Panel()
    assert panel.rows() == []
    panel.see({"step": 0, "reward": None})
    panel.see({"step": 0, "eval": {}})
    assert dict(panel.rows())["rewards"].startswith("total nan") and "mIoU nan" in dict(panel.rows())["validated"]
    panel.see({"step": 1, "phase": "sft", "loss": 0.5, "accuracy": 0.25, "length": 40.0, "memory_gib": 1.0})
    assert dict(panel.rows())["learned"] == "loss 0.50  accuracy 0.25" and dict(panel.rows())["tokens"] == "mean 40"
    assert trend([0.0, float("nan"), 1.0, 0.5]) == LEVELS[0] + LEVELS[7] + LEVELS[3] and trend([]) == ""
    assert trend([2.0, 2.0]) == LEVELS[3] * 2


def test_a_real_run_shows_its_panel(tiny: Tiny, tmp_path: Path) -> None:  # noqa: F811
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(tiny.settings(tmp_path / "run", length={"amount": 2}, validation={
        "split": "val", "every": 1, "max_new_tokens": 24})))
    got = on_a_terminal([sys.executable, "-m", "taro", "train", str(recipe), "--profile", "1"], cwd=tmp_path)
    for piece in ("rewards", "tokens/s", "validated step", "phase ", "traces, for ui.perfetto.dev", "checkpoint: "):
        assert piece in " ".join(got.split()), (piece, got[-3000:])
    assert (tmp_path / "run" / "profile" / "split.json").is_file()
