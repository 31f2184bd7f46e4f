"""Real processes on the CPU: they train as one does, fail together in any phase, stop and go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from taro.core.jsonl import read_jsonl
from taro.train.checkpoint.read import Reader
from taro.train.config import TrainConfig
from taro.train.loop import train
from tests.helpers_faults import ROOT, TARO
from tests.train.conftest import Tiny
from tests.train.test_loop import SPEED

HOOK = """
import json, os, signal
from taro.train.launch.place import Line
from taro.train.phases import Phases
phase, count, rank, act = json.loads(os.environ["TARO_TEST_FAULT"])
def hit(now):
    global count
    if now != phase or os.environ.get("RANK", "0") != str(rank):
        return
    count -= 1
    if count == 0:
        if act == "raise":
            raise RuntimeError("the test's own error")
        os.kill(os.getppid() if act.startswith("parent") else os.getpid(), getattr(signal, act.split()[-1]))
say, tell = Line.say, Phases._tell
def heard(self, *words):
    say(self, *words)
    if words[0] == "at":
        hit(words[1])
def told(self, name, begins):
    tell(self, name, begins)
    if begins and "RANK" not in os.environ:
        hit(name)
Line.say, Phases._tell = heard, told
"""
"""for sitecustomize: a fault as a rank has said that it begins a phase for the `count`-th time"""

DOUBLE = {"dtype": "float64", "device": "cpu"}
PHASES = ("samples", "rollouts", "scores", "rewards", "update", "validating on val", "saving a checkpoint")


@pytest.fixture(scope="module")
def hook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hook")
    (folder / "sitecustomize.py").write_text(HOOK)
    return folder


def recipe(tiny: Tiny, folder: Path, name: str, **changes: Any) -> list[str]:
    """Words that train into `folder`/`name`."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tiny.settings(folder / name, **{**DOUBLE, **changes})))
    return ["train", str(path)]


def alone(words: list[str], *, resume: bool = False) -> Path:
    """The same run by this process; its folder."""
    return train(TrainConfig.model_validate(yaml.safe_load(Path(words[1]).read_text())), resume=resume).run


def taro(*words: str, gpus: int = 1, hook: Path | None = None, fault: tuple[str, int, int, str] | None = None,
         start: list[str] = TARO) -> subprocess.CompletedProcess[str]:
    """Runs a command; at its end no process of it is left. `fault`: phase, count, rank, what is done."""
    mark = f"TARO_TEST_MARK={os.getpid()}-{os.urandom(8).hex()}"
    name, _, value = mark.partition("=")
    paths = [*([str(hook)] if fault else []), str(ROOT)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), name: value,
           **({"OMP_NUM_THREADS": "1"} if gpus > 1 else {}),
           **({"TARO_TEST_FAULT": json.dumps(fault)} if fault else {})}
    done = subprocess.run([*start, *words, *(["--gpus", str(gpus)] if gpus > 1 else [])], env=env, cwd=ROOT, text=True,
                          capture_output=True, timeout=180, check=False)  # fmt: skip
    assert alive(mark) == []
    return done


def alive(mark: str) -> list[int]:
    """Processes whose environment has the mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def good(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr


def rows(run: Path) -> list[dict[str, Any]]:
    left = {*SPEED, "memory_gib_ranks"}
    return [{key: value for key, value in row.items() if key not in left} for row in read_jsonl(run / "metrics.jsonl")]


def assert_near(found: Any, wanted: Any, rel: float, where: str = "") -> None:
    """Numbers within `rel` of 1 or of themselves; all else equal."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for key in wanted:
            assert_near(found[key], wanted[key], rel, f"{where}/{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
            assert_near(one, other, rel, f"{where}/{number}")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=rel, abs=rel, nan_ok=True), where
    else:
        assert found == wanted, where


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    """All weights of a checkpoint, put together from the ranks' pieces."""
    with Reader(run / "checkpoints" / f"step-{step:06d}").check() as reader:
        return {name: reader.read(name, "weight", 0, whole)
                for (name, kind), (whole, _) in reader.tensors.items() if kind == "weight"}


def assert_weights(run: Path, other: Path, step: int, rel: float) -> None:
    """Each tensor's difference is within `rel` of its norm."""
    wanted = weights(other, step)
    found = weights(run, step)
    assert found.keys() == wanted.keys() and wanted
    for name, one in wanted.items():
        assert found[name].dtype == one.dtype
        assert float((found[name] - one).norm()) <= rel * float(one.norm()) + 1e-15, name


LONG: dict[str, Any] = {"length": {"amount": 20}, "validation": {"split": "val", "every": 10, "max_new_tokens": 96},
                        "checkpoint": {"every": 10}}


@pytest.fixture(scope="module")
def long_run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 steps of one process in float64."""
    folder = tmp_path_factory.mktemp("long")
    return alone(recipe(tiny, folder, "run", **LONG))


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_train_as_one_process_does(tiny: Tiny, long_run: Path, tmp_path: Path, world: int) -> None:
    """Two prompts a step: of three ranks one is always without work."""
    good(taro(*recipe(tiny, tmp_path, "run", **LONG), gpus=world))
    run, first = tmp_path / "run", "rollouts/step-000000.jsonl"
    assert (run / first).read_bytes() == (long_run / first).read_bytes()
    lengths = {len(row["text"]) for row in read_jsonl(run / first)}
    assert len(lengths) > 1, "responses of unequal lengths"
    assert_near(rows(run), rows(long_run), 1e-9)
    assert sum("eval" in row for row in rows(run)) == 3
    assert_weights(run, long_run, 20, 1e-9)
    if world == 2:
        answers = []
        for gpus in (1, 2):
            answers.append(tmp_path / f"answers-{gpus}.jsonl")
            good(taro("eval", "--policy", str(tiny.policy), "--shards", str(tiny.shards), "--split", "train",
                      "--max-new-tokens", "96", "--device", "cpu", "--out", str(answers[-1]), gpus=gpus))
        assert answers[0].read_bytes() == answers[1].read_bytes() != b""


SHORT: dict[str, Any] = {"length": {"amount": 2}, "validation": {"split": "val", "every": 1, "max_new_tokens": 96},
                         "checkpoint": {"every": 1}}


@pytest.fixture(scope="module")
def short_run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 steps of one process."""
    folder = tmp_path_factory.mktemp("short")
    return alone(recipe(tiny, folder, "run", **SHORT))


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "rank", "act"), [
    (phase, number % 2, ("SIGKILL", "raise")[(number + 1) // 2 % 2]) for number, phase in enumerate(PHASES)])
def test_a_rank_that_fails_ends_the_run_with_one_message(
        tiny: Tiny, short_run: Path, hook: Path, tmp_path: Path, phase: str, rank: int, act: str) -> None:
    words = recipe(tiny, tmp_path, "run", **SHORT)
    done = taro(*words, gpus=2, hook=hook, fault=(phase, 2 if phase == PHASES[-1] else 1, rank, act))
    said = " ".join(done.stderr.split())
    assert done.returncode == 1, said
    assert said.count(f"rank {rank} of 2") == 1 and f"in the phase {phase}" in said and "Traceback" not in said, said
    assert ("was ended by SIGKILL" if act == "SIGKILL" else "the test's own error") in said
    assert f"rank {1 - rank}" not in said
    if phase == PHASES[-1]:  # one is enough: what is left is the same for all
        good(taro(*words, "--resume", gpus=2))
        assert_near(rows(tmp_path / "run"), rows(short_run), 1e-9)
        assert_weights(tmp_path / "run", short_run, 2, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("gpus", "name", "code"), [(1, "SIGTERM", 143), (2, "SIGINT", 130)])
def test_a_signal_stops_a_run_after_its_last_finished_step_and_it_goes_on(
        tiny: Tiny, short_run: Path, hook: Path, tmp_path: Path, gpus: int, name: str, code: int) -> None:
    words = recipe(tiny, tmp_path, "run", **{**SHORT, "checkpoint": {"every": 100}})
    done = taro(*words, gpus=gpus, hook=hook, fault=("rollouts", 2, 0, name if gpus == 1 else f"parent {name}"),
                start=["env", "--default-signal=INT,TERM", *TARO])
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    assert "stopped after 1 of 2 steps; checkpoint step-000001 is kept" in " ".join(done.stderr.split())
    assert (tmp_path / "run/checkpoints/step-000001").is_dir()
    if gpus == 1:
        alone(words, resume=True)
        assert rows(tmp_path / "run") == rows(short_run)
    else:
        good(taro(*words, "--resume", gpus=gpus))
        assert_near(rows(tmp_path / "run"), rows(short_run), 1e-9)
    assert_weights(tmp_path / "run", short_run, 2, 0.0 if gpus == 1 else 1e-9)


@pytest.mark.slow
def test_torchrun_starts_the_ranks_as_well(tiny: Tiny, short_run: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0",
                "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m", "taro"]
    good(taro(*recipe(tiny, tmp_path, "run", **SHORT), start=torchrun))
    assert_near(rows(tmp_path / "run"), rows(short_run), 1e-9)
    assert_weights(tmp_path / "run", short_run, 2, 1e-9)


TWO: dict[str, Any] = {"length": {"amount": 2}, "checkpoint": {"every": 2}}
SINGLE = {"dtype": "float32"}


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "rel"), [
    ({"rollout": {"redraws": 2}}, 1e-9), ({"objective": "sft", "rollout": {"max_new_tokens": 128}}, 1e-9),
    ({**SINGLE, "lora": {"rank": 4}}, 1e-3), ({**SINGLE, "optimizer": {"states": "8bit"}}, 1e-2)],
    ids=["redraws", "sft", "lora", "8bit"])
def test_two_ranks_have_the_numbers_of_one(tiny: Tiny, tmp_path: Path, changes: dict[str, Any], rel: float) -> None:
    """float32: a moment near 0 turns with rounding, so weights are compared loosely. That ranks hold the same weights
    is checked by the run itself, at each checkpoint."""
    alone(recipe(tiny, tmp_path, "one", **{**TWO, **changes}))
    good(taro(*recipe(tiny, tmp_path, "two", **{**TWO, **changes}), gpus=2))
    first = [rows(tmp_path / name)[0] for name in ("one", "two")]
    assert_near(first[1], first[0], max(rel / 10, 1e-9))
    assert_weights(tmp_path / "two", tmp_path / "one", 2, rel)


def test_more_gpus_than_there_are_is_one_message(tiny: Tiny, tmp_path: Path) -> None:
    words = recipe(tiny, tmp_path, "run", device="cuda", dtype="auto")
    done = taro(*words, gpus=9)
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    assert done.returncode == 1 and f"--gpus 9: torch finds {found} GPUs here" in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()
