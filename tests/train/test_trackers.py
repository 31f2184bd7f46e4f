"""tensorboard, wandb and trackio as they are: what a run leaves there, once each step, and that none can stop a run."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taro.core.errors import ConfigError
from taro.core.jsonl import read_jsonl
from taro.train import trackers
from taro.train.config import TrainConfig
from taro.train.loop import train
from taro.train.settings.tracking import TrackingConfig
from taro.train.tracking import COLUMNS, LONGEST, Guarded, table_rows
from tests.train.conftest import Tiny

VALIDATED = {"validation": {"split": "val", "every": 2, "max_new_tokens": 48, "repetition_penalty": 1.0}}
TABLES = {"rollout_table_every": 2, "rollouts": 3, "project": "tests", "tags": ("a",), "group": "g"}
KILLED = """
import json, os, sys
from taro.train.config import TrainConfig
from taro.train.loop import train
def kill(line):
    if line["step"] == 3 and "eval" not in line:
        os._exit(9)  # as SIGKILL does
train(TrainConfig.model_validate(json.loads(sys.argv[1])), on_step=kill)
"""


def killed_at_3(settings: dict[str, Any]) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, json.dumps(settings)], check=False,
                          stdout=subprocess.DEVNULL).returncode == 9


def scalars(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[int, str]]:
    """What tensorboard itself reads: values by tag, and the tables of rollouts by step."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    values = {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    texts = {one.step: one.tensor_proto.string_val[0].decode() for one in events.Tensors("rollouts/text_summary")}
    return values, texts


def test_tensorboard_has_every_step_once_after_a_run_was_killed(tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    settings = tiny.settings(tmp_path / "run", trackers=["tensorboard"], tracking=TABLES, **VALIDATED)
    killed_at_3(settings)
    train(TrainConfig.model_validate(settings), resume=True)
    values, texts = scalars(tmp_path / "run" / "tensorboard")
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    for name in ("reward", "kl", "length"):
        assert values[name] == [(row["step"], pytest.approx(row[name])) for row in rows if "reward" in row]
    assert values["eval/miou"] == [(row["step"], pytest.approx(row["eval"]["miou"])) for row in rows if "eval" in row]
    assert [step for step, _ in values["tokens_per_s_by_phase/rollouts"]] == list(range(6))
    assert sorted(texts) == [0, 2, 4]
    assert all(text.count("\n") == 1 + 3 and text.startswith("| query_id | query | text |") for text in texts.values())


def test_a_table_is_bounded_and_holds_no_markup(tmp_path: Path) -> None:
    texts = ["<script>x|y\n[a](javascript:b) `c`\x1b[2J", "long" * LONGEST, *(f"text {n}" for n in range(30))]
    lines = [json.dumps({"query": "q", "text": text, "predicted": [0.5, 2.0], "windows": [[1, 2]], "reward": 0.123456})
             for text in texts]
    rows = table_rows(lines, 8, seed=0, step=4)
    assert len(rows) == 8 and rows == table_rows(lines, 8, seed=0, step=4) != table_rows(lines, 8, seed=0, step=6)
    rows = table_rows(lines[:2], 8, seed=0, step=0)
    assert len(rows) == 2 and all(tuple(row) == COLUMNS for row in rows)
    assert len(rows[1]["text"]) < LONGEST + 100 and rows[0]["drop"] is None
    pytest.importorskip("tensorboard")
    opened = trackers.open_trackers(["tensorboard"], tmp_path, TrackingConfig(), {})
    for one in opened:
        one.rollouts(0, rows[:1])
        one.close()
    text = scalars(tmp_path / "tensorboard")[1][0]
    cells = text.splitlines()[2].split(" | ")
    assert len(cells) == len(COLUMNS) and cells[2].startswith("&#60;script&#62;x&#124;y<br>&#91;a&#93;&#40;javascript:")
    assert "\x1b" not in text and cells[3] == "0.123"


def test_a_tracker_that_fails_is_a_warning_and_the_run_ends_well(
        make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorboard")
    config = make_config(length={"amount": 2}, trackers=("tensorboard",))

    def full_disk(line: dict[str, Any]) -> None:
        if line["step"] == 0:  # what tensorboard writes from here on has no file to go to
            from torch.utils.tensorboard import SummaryWriter

            def fails(*args: Any, **kwargs: Any) -> None:
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(SummaryWriter, "add_scalar", fails)
            monkeypatch.setattr(SummaryWriter, "close", fails)

    with caplog.at_level(logging.WARNING):
        report = train(config, on_step=full_disk)
    assert report.steps == 2 and len(read_jsonl(config.out / "metrics.jsonl")) == 2
    said = [record.getMessage() for record in caplog.records if "tensorboard failed" in record.getMessage()]
    assert said == ["tensorboard failed (OSError: [Errno 28] No space left on device); training goes on, metrics.jsonl "
                    "has every step"]


def test_a_hosted_tracker_that_does_not_start_is_an_error_with_a_way_out(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorboard").write_text("a file where a folder must be")
    pytest.importorskip("tensorboard")
    with pytest.raises(ConfigError, match="trackers: tensorboard does not start"):
        trackers.open_trackers(["tensorboard"], tmp_path, TrackingConfig(), {})


def test_wandb_goes_on_with_its_run_and_no_key_is_in_a_file(tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed here: it is the user's own, 60 MB")
    key = "0123456789abcdef" * 2 + "deadbeef"
    settings = tiny.settings(tmp_path / "run", trackers=["wandb"], tracking=TABLES, **VALIDATED)
    env = {**os.environ, "WANDB_MODE": "offline", "WANDB_API_KEY": key, "WANDB_SILENT": "true"}
    whole = KILLED.replace("==", ">").replace("on_step=kill", "on_step=kill, resume=True").replace("> 3", "> 99")
    for code, words in ((9, KILLED), (0, whole)):
        done = subprocess.run([sys.executable, "-c", words, json.dumps(settings)], env=env, check=False, text=True,
                              capture_output=True)
        assert done.returncode == code and not done.stdout, done.stderr[-2000:]
    run = tmp_path / "run"
    files = [path for path in run.rglob("*") if path.is_file()]
    assert not [path for path in files if key.encode() in path.read_bytes()]
    known = json.loads((run / "trackers.json").read_text())["wandb"]
    assert known == {"id": known["id"], "step": 3, "eval": 2}
    logs = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    assert len(logs) == 2 and all(known["id"] in path.name for path in logs)
    steps = [step for path in logs for step in wandb_steps(path)]
    assert set(steps) >= {2, 3, 4, 5, 6}, "offline, what the checkpoint at 2 has not is there, though the kill lost it"
    assert sorted(wandb_steps(logs[1])) == [2, 3, 4, 5, 6], "nothing before the checkpoint comes again"
    tables = [path for path in files if path.name.endswith(".table.json")]
    assert tables and all(len(json.loads(path.read_text())["data"]) == 3 for path in tables)


def wandb_steps(path: Path) -> list[int]:
    """Steps of the history lines in a file of wandb: blocks of 32 KiB with records of (crc 4, length 2, kind 1)."""
    from wandb.proto import wandb_internal_pb2

    data, at, found, whole = path.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            if record.WhichOneof("record_type") == "history":
                found.append(record.history.step.num)
    return found


def test_trackio_has_every_step_once_after_a_run_was_killed(tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed here: it is the user's own")
    settings = tiny.settings(tmp_path / "run", trackers=["trackio"], tracking=TABLES, **VALIDATED)
    env = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    stops = KILLED.replace("os._exit(9)", "raise KeyboardInterrupt")
    goes_on = "train(TrainConfig.model_validate(json.loads(sys.argv[1])), resume=True)"
    done = [subprocess.run([sys.executable, "-c", words, json.dumps(settings)], env=env, check=False, text=True,
                           capture_output=True) for words in (stops, stops.rpartition("train(Tr")[0] + goes_on)]
    assert not done[1].returncode and not any(one.stdout for one in done), done[1].stderr[-2000:]
    read = ("import trackio, json; api = trackio.Api(); [run] = api.runs('tests'); from trackio.sqlite_storage import "
            "SQLiteStorage as S; print(json.dumps(S.get_logs('tests', run.name), default=str))")
    out = subprocess.run([sys.executable, "-c", read], env=env, check=True, text=True, capture_output=True).stdout
    lines = json.loads(out.splitlines()[-1])
    assert [line["step"] for line in lines if "reward" in line] == list(range(6))
    assert [line["step"] for line in lines if "rollouts" in line] == [0, 2, 4]


def test_a_guarded_tracker_says_the_first_failure_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def log(self, *words: Any) -> None:
            raise ConnectionError("no network")

        def close(self) -> None:
            raise OSError("no disk")

    guarded = Guarded("it", Broken())
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            guarded.log(step, {})
        guarded.close()
    assert [record.getMessage() for record in caplog.records] == [
        "it failed (ConnectionError: no network); training goes on, metrics.jsonl has every step"]
