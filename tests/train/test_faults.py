"""What may happen to `taro train` from outside: each ends in a message, and in the same run once it is mended."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from taro.cli.app import app
from taro.core.errors import ConfigError, TaroError
from taro.models.load import load_policy
from taro.train.checkpoint import checkpoints
from taro.train.checkpoint.state import read_content, write_content
from taro.train.config import TrainConfig, ValidationConfig
from taro.train.loop import train
from taro.train.open import open_run
from taro.train.report.data import read_run
from tests.helpers_faults import ROOT, TARO, dies, mad_clock, small_disk
from tests.train.conftest import Tiny
from tests.train.test_loop import lines
from tests.train.tiny import tiny_shards

Make = Callable[..., TrainConfig]
SHORT = {"length": {"amount": 4}}


@pytest.fixture(scope="session")
def whole(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps that nobody disturbed: the start's, checkpoints of steps 2 and 4."""
    return train(tiny.config(tmp_path_factory.mktemp("whole") / "run", **SHORT)).run


def recipe(config: TrainConfig, folder: Path) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return str(path)


def assert_same(run: Path, whole: Path) -> None:
    """Bit for bit, wall-clock numbers aside."""
    assert lines(run) == lines(whole)
    for folder in ("export", "rollouts", "checkpoints/step-000004"):
        files = {path.name: path.read_bytes() for path in (whole / folder).iterdir()}
        assert {path.name: path.read_bytes() for path in (run / folder).iterdir()} == files, folder


def copy_of(whole: Path, run: Path) -> Path:
    """The whole run as its own folder `run`, which says so."""
    shutil.copytree(whole, run)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(whole), str(run)))
    return run


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.slow
def test_a_kill_at_the_end_of_a_checkpoints_write(make_config: Make, whole: Path, tmp_path: Path) -> None:
    config = make_config(**SHORT)
    dies("train", recipe(config, tmp_path), at="os.rename", name=".tmp-step-000004")
    assert {path.name for path in (config.out / "checkpoints").iterdir()} == {"step-000002", ".tmp-step-000004"}
    train(config, resume=True)
    assert {path.name for path in (config.out / "checkpoints").iterdir()} == {"step-000002", "step-000004"}
    assert_same(config.out, whole)


@pytest.mark.slow
def test_small_and_read_only_disks_are_one_message_and_cost_nothing(tiny: Tiny, whole: Path, tmp_path: Path) -> None:
    config = tiny.config(tmp_path / "disk" / "run", **SHORT)
    one = sum(path.stat().st_size for path in (whole / "checkpoints/step-000004").iterdir()) // 1024
    sizes = [4, 12, 16, one * 2 // 3, one * 2 + 80]  # settings; a step's line; rollouts; checkpoint; export
    tries = small_disk(tmp_path / "disk", config.out, sizes, "train", recipe(config, tmp_path))
    for what, code, said, left in tries[:-1]:
        assert code == 1 and "Traceback" not in said and left == [], (what, said, left)
        words = " ".join(said.split())
        reason = "Read-only file system" if what == "read-only" else "No space left on device"
        assert f"expected a folder with room to write in, got: {reason}" in words, (what, said)
        assert "ake room or fix the disk, then run the same command" in words
    assert tries[-1][1] == 0, tries[-1]
    kept = [said for _, _, said, _ in tries if "Checkpoint step-00000" in said]
    assert kept, tries
    assert_same(tmp_path / "copied", whole)


@pytest.mark.slow
def test_sigint_and_a_mad_clock_change_nothing_of_a_run(make_config: Make, whole: Path, tmp_path: Path) -> None:
    config = make_config(**SHORT)
    running = subprocess.Popen(["env", "--default-signal=INT", *TARO, "train", recipe(config, tmp_path)], text=True,
                               stderr=subprocess.PIPE, cwd=ROOT, env=mad_clock(tmp_path / "clock"))  # fmt: skip
    metrics = config.out / "metrics.jsonl"
    while running.poll() is None and not (metrics.is_file() and metrics.read_bytes().count(b"\n") >= 2):
        time.sleep(0.005)
    running.send_signal(signal.SIGSTOP)  # a slow test must not meet a finished run
    with pytest.raises(ConfigError, match="another process trains in this folder now"):
        open_run(config, resume=True)
    running.send_signal(signal.SIGINT)
    running.send_signal(signal.SIGCONT)
    time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    said = running.communicate()[1]
    assert running.returncode == 130 and "with --resume" in said and "Traceback" not in said, said
    train(config, resume=True)
    assert_same(config.out, whole)


def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_taken(
        whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = copy_of(whole, tmp_path / "run")
    flip(run / "checkpoints/step-000004/rank-00000-of-00001.safetensors", -5)
    damaged = (run / "checkpoints/step-000004/rank-00000-of-00001.safetensors").read_bytes()
    config = TrainConfig.model_validate(yaml.safe_load((run / "config.yaml").read_text()))
    with caplog.at_level(logging.WARNING):
        train(config, resume=True)
    assert "step-000004/rank-00000-of-00001.safetensors: damaged" in caplog.text
    assert "kept as damaged-step-000004, and the run goes on from step-000002" in caplog.text
    assert (run / "checkpoints/damaged-step-000004/rank-00000-of-00001.safetensors").read_bytes() == damaged
    assert_same(run, whole)


def with_a_best_step(whole: Path, run: Path) -> TrainConfig:
    """A copy of the run whose step 2 was the best on validation; its settings, exporting that."""
    copy_of(whole, run)
    data = {**yaml.safe_load((run / "config.yaml").read_text()), "checkpoint": {"every": 2, "export": "best"}}
    content = read_content(run / "checkpoints/step-000004")
    content.state.best_step = 2
    write_content(run / "checkpoints/step-000004", content)
    return TrainConfig.model_validate(data)


def test_a_resumed_run_removes_what_one_left_that_was_killed_after_its_last_checkpoint(
        whole: Path, tmp_path: Path) -> None:
    """Its folder has a checkpoint too many, an export half written, and an older one set aside for it."""
    run = copy_of(whole, tmp_path / "run")
    (run / "export").rename(run / ".tmp-old-export")
    for left in (".tmp-export", "checkpoints/.tmp-step-000004", "checkpoints/.tmp-pruned-step-000001"):
        (run / left).mkdir()
    for left in (".data.json.tmp", "rollouts/.step-000003.jsonl.tmp"):
        (run / left).touch()
    data = {**yaml.safe_load((run / "config.yaml").read_text()), "checkpoint": {"every": 2, "keep": 1}}
    train(TrainConfig.model_validate(data), resume=True)
    assert_same(run, whole)
    assert {path.name for path in run.iterdir()} == {path.name for path in whole.iterdir()}
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000004"]
    assert not list((run / "rollouts").glob(".*"))


def test_an_export_says_of_which_step_it_is(whole: Path, tmp_path: Path) -> None:
    report = train(with_a_best_step(whole, tmp_path / "run"), resume=True)
    steps = [json.loads((folder / "export/taro.json").read_text())["steps"] for folder in (whole, report.run)]
    assert steps == [4, 2] and report.steps == 4
    assert (report.export / "model.safetensors").read_bytes() != (whole / "export/model.safetensors").read_bytes()


def test_the_best_that_is_damaged_is_named_with_the_way_out(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = with_a_best_step(whole, run)
    flip(run / "checkpoints/step-000002/rank-00000-of-00001.safetensors", -1)
    with pytest.raises(TaroError, match=r"step-000002/rank-00000-.*: damaged.*checkpoint\.export=last"):
        train(config, resume=True)
    assert (run / "export/model.safetensors").read_bytes() == (whole / "export/model.safetensors").read_bytes()


def test_a_shard_set_that_changed_under_a_run_is_refused(tiny: Tiny, whole: Path, tmp_path: Path) -> None:
    run = copy_of(whole, tmp_path / "run")
    shards = tmp_path / "shards"
    shutil.copytree(tiny.shards, shards)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(tiny.shards), str(shards)))
    same = TrainConfig.model_validate(yaml.safe_load(config.read_text()))
    open_run(same, resume=True).close()
    shutil.rmtree(shards)
    tiny_shards(shards, load_policy(tiny.policy), clips=7)
    with pytest.raises(ConfigError, match=r"not those that the run in .* was started with; restore the shard set"):
        open_run(same, resume=True)


def moved(whole: Path, tiny: Tiny, place: Path, **settings: Any) -> TrainConfig:
    """The run, its shard set and its policy copied to other names, opened by its own recipe with the new places."""
    for source, name in ((whole, "other run"), (tiny.shards, "other shards"), (tiny.policy, "other policy")):
        shutil.copytree(source, place / name)
    data = yaml.safe_load((place / "other run/config.yaml").read_text())
    return TrainConfig.model_validate({**data, "out": str(place / "other run"), "shards": str(place / "other shards"),
                                       "policy": str(place / "other policy"), **settings})


def test_a_run_that_moved_with_its_shards_and_its_policy_goes_on(
        tiny: Tiny, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = moved(whole, tiny, tmp_path)
    shutil.rmtree(config.out / "checkpoints/step-000004")
    monkeypatch.chdir(tmp_path)
    relative = config.model_copy(update={"out": Path("other run"), "shards": "./other shards",
                                         "policy": "other policy"})
    as_a_list = TrainConfig.model_validate({**relative.model_dump(mode="json"), "shards": ["other shards"]})
    for one in (config, as_a_list):
        open_run(one, resume=True).close()
    assert_same(train(relative, resume=True).run, whole)


@pytest.mark.parametrize(("changed", "said"), [
    ("policy", "Changed: policy"), ("shards", "queries or features are not those"), ("validation", "Changed: validat"),
    ("template", "Changed: template_sha256"), ("precision", "Changed: compute_dtype: float32 -> bfloat16")])
def test_what_is_not_the_same_is_refused_wherever_it_lies(
        tiny: Tiny, whole: Path, tmp_path: Path, changed: str, said: str) -> None:
    config = moved(whole, tiny, tmp_path)
    if changed == "policy":
        flip(tmp_path / "other policy/model.safetensors", -1)
    elif changed == "shards":
        shutil.rmtree(tmp_path / "other shards")
        tiny_shards(tmp_path / "other shards", load_policy(tiny.policy), clips=7)
    elif changed == "validation":
        config = config.model_copy(update={"validation": ValidationConfig(split="val")})
    elif changed == "template":
        template = yaml.safe_load((tmp_path / "other policy/template.yaml").read_text())
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**template, "text": "{query}."}))
        config = config.model_copy(update={"template": str(tmp_path / "mine.yaml")})
    else:
        config = config.model_copy(update={"dtype": "bfloat16"})
    with pytest.raises(ConfigError, match=said):
        open_run(config, resume=True)


def test_a_torn_line_is_passed_over_and_a_damaged_one_is_named(whole: Path, tmp_path: Path) -> None:
    run = copy_of(whole, tmp_path / "run")
    steps = read_run(run).steps
    for torn in (b'{"step": 4, "reward": 0.', b'{"step": 4, "phase": "\xff', b"\0\0\0\0"):
        (run / "metrics.jsonl").write_bytes((whole / "metrics.jsonl").read_bytes() + torn)
        assert read_run(run).steps == steps
    dump = run / "rollouts/step-000003.jsonl"
    rows = len(dump.read_bytes().splitlines())
    dump.write_bytes(dump.read_bytes()[:-30])
    assert sum(len(group) for group in read_run(run).rollouts(3)) == rows - 1
    assert CliRunner().invoke(app, ["report", str(run)]).exit_code == 0
    metrics = (whole / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(metrics[0] + metrics[1][:-40] + b"\n" + b"".join(metrics[2:]))
    config = TrainConfig.model_validate(yaml.safe_load((run / "config.yaml").read_text()))
    before = (run / "metrics.jsonl").read_bytes()
    for reading in (lambda: read_run(run), lambda: open_run(config, resume=True)):
        with pytest.raises(ConfigError, match=r"metrics\.jsonl:2: expected a JSON object.*restore it, or delete"):
            reading()
    assert (run / "metrics.jsonl").read_bytes() == before, "what can still be read is not thrown away"


def test_updates_that_are_not_finite_write_no_checkpoint_and_leave_their_batch(make_config: Make) -> None:
    config = make_config(length={"amount": 6}, optimizer={"lr": 1e30, "max_nonfinite": 2},
                         checkpoint={"every": 1, "keep": 1, "dump_rollouts": False},
                         validation={"split": "val", "every": 2, "max_new_tokens": 8})  # fmt: skip
    with pytest.raises(TaroError, match=r"not finite in 2 steps in a row.*step-000002\.jsonl"):
        train(config)
    assert [row["skipped"] for row in lines(config.out) if "skipped" in row] == [0, 1, 1]
    assert [row["step"] for row in lines(config.out) if "eval" in row] == [0, 2], "the first score would be the best"
    assert [path.name for path in checkpoints(config.out / "checkpoints")] == ["step-000001"]
    assert sorted(path.name for path in (config.out / "rollouts").iterdir()) == [
        "step-000001.jsonl", "step-000002.jsonl"]
