"""What a long command says while it runs: in a log a line now and then, in a terminal a bar, on stdout nothing."""

from __future__ import annotations

import pytest

from taro.cli.progress import Lines, progress


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, said = [0.0], list[str]()
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    lines = Lines(said.append, every_s=30)
    for now_s[0], done in ((1.0, 1), (31.0, 20), (59.0, 40), (61.5, 41), (7300.0, 2000)):
        lines.update(done, 2000 if done < 2000 else None, "clips a.mp4")
    assert said == ["clips a.mp4: 20 of 2,000, 31 s so far", "clips a.mp4: 41 of 2,000, 62 s so far",
                    "clips a.mp4: 2,000, 2.0 h so far"]


def test_progress_is_never_on_stdout_and_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet in (False, True):
        with progress("work", quiet=quiet) as shown:
            shown.update(1, 2, "name [bold]with brackets[/x]")
            shown.say("validated [1, 2]")
        said = capsys.readouterr()
        assert not said.out
        assert said.err == ("" if quiet else "validated [1, 2]\n")
