"""Whether a folder may be resumed: the same settings, however their places are spelt and wherever one stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from taro.core.config import load_config
from taro.core.errors import ConfigError
from taro.train.config import TrainConfig
from taro.train.run_dir import check_folder, lock_folder, write_facts


def config(*overrides: str) -> TrainConfig:
    return load_config(TrainConfig, "sandbox", ["shards=shards", "out=run", *overrides], package="taro.train.recipes")


@pytest.mark.parametrize(("out", "shards", "policy"), [
    ("run", "set/", "sandbox:policy"), ("{here}/run", "set", "start"), ("./run", "elsewhere/../set", "./start"),
    ("link/run", "set", "./start"), ("run", "link/../set", "models/start"), ("{here}/run", "[set, ./other]", "~/start"),
    ("run", "{here}/set", "{here}/start")])
def test_a_run_is_resumed_by_the_command_that_began_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str,
                                                       shards: str, policy: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("far/disk").mkdir(parents=True)
    Path("link").symlink_to("far/disk")
    settings = [f"{key}={value.format(here=tmp_path)}" for key, value in
                (("out", out), ("shards", shards), ("policy", policy), ("template", "mine.yaml"))]
    began = config(*settings)
    began.out.mkdir(parents=True)
    write_facts(began, {})
    check_folder(began, resume=True)
    monkeypatch.chdir(tmp_path / "far")
    there = load_config(TrainConfig, Path(tmp_path, out.format(here=tmp_path), "config.yaml"),
                        package="taro.train.recipes")
    check_folder(there, resume=True)
    with pytest.raises(ConfigError, match=r'other settings.*Changed: seed: 0 -> 1$'):
        check_folder(there.model_copy(update={"seed": 1}), resume=True)
    with pytest.raises(ConfigError, match=r'other settings.*Changed: shards: '):
        check_folder(there.model_copy(update={"shards": "third"}), resume=True)


def test_what_a_killed_run_left_half_written_goes_when_it_is_resumed(tmp_path: Path) -> None:
    run = config(f"out={tmp_path / 'run'}")
    (run.out / "rollouts").mkdir(parents=True)
    left = [run.out / ".metrics.jsonl.0a.tmp", run.out / "rollouts" / ".step-000003.jsonl.0b.tmp"]
    for path in (*left, run.out / "rollouts" / "step-000002.jsonl"):
        path.touch()
    write_facts(run, {})
    with lock_folder(run, resume=True):
        assert [path.name for path in run.out.rglob("*") if path.suffix in (".tmp", ".jsonl")] == ["step-000002.jsonl"]
