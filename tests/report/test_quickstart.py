"""The quickstart at its smallest, with the models that ship: it adds up, goes on after a stop, repeats itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from taro.cli.quickstart_run import STAGES, Quickstart, run_quickstart
from taro.core.errors import ConfigError, ModelError
from taro.sandbox import weights_folder

try:
    weights_folder("policy")
    MISSING = ""
except ModelError as error:
    MISSING = str(error)

shipped = pytest.mark.skipif(bool(MISSING), reason=f"needs the sandbox's models: {MISSING}")


class Quiet:
    """Records what was shown; stops the run at one stage's first step, as an interrupt would."""

    def __init__(self, stop_at: str = "") -> None:
        self.seen: list[str] = []
        self.notes: dict[str, str] = {}
        self._stop_at = stop_at

    def begin(self, stage: str) -> None:
        self.seen.append(stage)

    def step(self, stage: str, done: float, total: float, note: str = "") -> None:
        assert 0 <= done <= total
        if stage == self._stop_at:
            raise KeyboardInterrupt

    def end(self, stage: str, note: str) -> None:
        self.notes[stage] = note


def small(out: Path) -> Quickstart:
    return Quickstart(out=out, steps=2, train_videos=3, held_out_videos=2)


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    """What must repeat: all but places and speeds."""
    kept = {key: value for key, value in result.items() if key not in {"seconds", "report", "checkpoint", "shards"}}
    kept["training"] = {end: {k: v for k, v in means.items() if k != "seconds"}
                        for end, means in result["training"].items()}
    return kept


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Quiet]:
    out = tmp_path_factory.mktemp("quickstart") / "out"
    show = Quiet()
    return out, run_quickstart(small(out), show), show


@shipped
@pytest.mark.slow
def test_every_stage_runs_and_the_files_say_what_was_returned(done: tuple[Path, dict[str, Any], Quiet]) -> None:
    out, result, show = done
    assert show.seen == list(STAGES) == list(show.notes)
    assert json.loads((out / "quickstart.json").read_text()) == result
    rows = (out / "worlds" / "held-out" / "annotations.jsonl").read_text().splitlines()
    assert result["queries"] == result["before"]["queries"] == len(rows)
    assert result["gain"]["greedy"]["miou"] == pytest.approx(result["after"]["miou"] - result["before"]["miou"])
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"{result['after']['miou']:.3f}" in page and f"On {result['queries']} held-out queries" in page
    assert str(out) not in page, "a folder of this machine is on a page that is made to be shared"


@shipped
@pytest.mark.slow
def test_a_stopped_quickstart_goes_on_to_the_same_numbers(done: tuple[Path, dict[str, Any], Quiet],
                                                          tmp_path: Path) -> None:
    for stage in ("worlds", "before", "train"):
        with pytest.raises(KeyboardInterrupt):
            run_quickstart(small(tmp_path / "out"), Quiet(stop_at=stage))
    assert numbers(run_quickstart(small(tmp_path / "out"), Quiet())) == numbers(done[1])


@shipped
@pytest.mark.slow
def test_taro_eval_repeats_the_score_of_the_quickstart(done: tuple[Path, dict[str, Any], Quiet],
                                                       tmp_path: Path) -> None:
    _, result, _ = done
    line = [sys.executable, "-m", "taro", "eval", "--policy", result["checkpoint"], "--shards",
            result["shards"]["held-out"], "--max-new-tokens", "96", "--repetition-penalty", "1", "--device", "cpu",
            "--json", "--html", str(tmp_path / "answers.html")]
    found = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
    assert {key: found[key] for key in ("miou", "r1@0.5", "queries")} == {
        key: result["after"][key] for key in ("miou", "r1@0.5", "queries")}
    page = (tmp_path / "answers.html").read_text(encoding="utf-8")
    assert f"{found['miou']:.3f}" in page and page.count('src="data:image/jpeg') == page.count('class="card"') > 0


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="other files in it"):
        run_quickstart(small(tmp_path), Quiet())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".settings.json.tmp").touch()  # what one leaves that was killed while it claimed its folder
    with pytest.raises(KeyboardInterrupt):
        run_quickstart(small(tmp_path / "out"), Quiet(stop_at="worlds"))
    with pytest.raises(ConfigError, match=r"other settings \(steps: 2 -> 3\)"):
        run_quickstart(Quickstart(out=tmp_path / "out", steps=3, train_videos=3, held_out_videos=2), Quiet())
