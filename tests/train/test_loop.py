"""The loop: a killed run goes on bitwise, refusals come early, an export loads and answers as the trained policy."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from taro.core.errors import ConfigError, ModelError, ShardError, TaroError
from taro.core.jsonl import read_jsonl
from taro.metrics.answers import score_rows, write_answers
from taro.models.asking import asking_of
from taro.models.load import load_policy
from taro.models.sampler import Decoding
from taro.train.checkpoint import checkpoints, read_state
from taro.train.config import TrainConfig
from taro.train.evaluate import Questions, evaluate_policy, missing_predictions
from taro.train.loop import train
from taro.train.open import open_run
from taro.train.sets import open_encoded_shards
from tests.helpers_models import tiny_qwen2_5_vl
from tests.train.conftest import Tiny

SPEED = {"tokens_per_s", "memory_gib", "seconds", "phases", "tokens_per_s_by_phase"}
VALIDATED = {"validation": {"split": "val", "every": 2, "max_new_tokens": 96, "repetition_penalty": 1.0}}

KILLED_RUN = """
import json, os, sys
from taro.train.config import TrainConfig
from taro.train.loop import train
def kill(line):
    if line["step"] == 3 and "eval" not in line:
        os._exit(9)  # as SIGKILL does: nothing is flushed, closed or unwound
train(TrainConfig.model_validate(json.loads(sys.argv[1])), on_step=kill)
"""


def lines(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in SPEED} for row in read_jsonl(run / "metrics.jsonl")]


def test_a_killed_run_resumes_bitwise(tiny: Tiny, tmp_path: Path) -> None:
    whole = tiny.settings(tmp_path / "whole", **VALIDATED)
    train(TrainConfig.model_validate(whole))
    killed = {**whole, "out": str(tmp_path / "killed")}
    done = subprocess.run([sys.executable, "-c", KILLED_RUN, json.dumps(killed)], check=False)
    assert done.returncode == 9
    run = tmp_path / "killed"
    assert len(lines(run)) == 6 and not (run / "export").exists()  # steps 0..3, evaluations at 0 and 2
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "reward": 0.')  # a torn line
    report = train(TrainConfig.model_validate(killed), resume=True)
    assert report.steps == 6
    assert lines(run) == lines(tmp_path / "whole")
    for name in ("export/model.safetensors", *(f"rollouts/step-{step:06d}.jsonl" for step in range(6)),
                 "checkpoints/step-000006/rank-00000-of-00001.safetensors"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert read_state(run / "checkpoints/step-000006") == read_state(tmp_path / "whole/checkpoints/step-000006")


def test_training_moves_weights_and_its_lines_hold_every_measure(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(length={"amount": 3})
    seen: list[dict[str, Any]] = []
    report = train(config, on_step=seen.append)
    rows = lines(config.out)
    assert [row["phase"] for row in rows] == ["guided", "guided", "free"]
    assert [row["step"] for row in seen] == [0, 1, 2] and seen[0]["steps"] == 3
    expected = {"step", "epoch", "phase", "reward", "format", "tiou", "iou", "bonus", "drop_mean", "drop_std",
                "drop_above", "timestamps", "first_span", "zero_variance", "kl", "clip_fraction", "length",
                "truncated", "logprob_gap", "loss", "grad_norm", "lr"}
    assert expected <= set(rows[0])
    assert rows[0]["kl"] == 0.0 and rows[2]["kl"] > 0.0, "the reference is the start policy, exactly"
    assert all(row["clip_fraction"] == 0.0 and row["logprob_gap"] < 1e-4 for row in rows)
    for row in rows:
        assert row["reward"] == pytest.approx(row["format"] + row["tiou"] + row["bonus"])
    before, after = (load_file(folder / "model.safetensors") for folder in (Path(config.policy), report.export))
    assert any(not torch.equal(before[name], after[name]) for name in before if "layers" in name)
    assert all(torch.equal(before[name], after[name]) for name in before if "visual" in name)
    dump = read_jsonl(config.out / "rollouts/step-000000.jsonl")
    assert len(dump) == 8 and all(row["guided"] and row["forced_tokens"] for row in dump)
    assert sum(row["advantage"] for row in dump) == pytest.approx(0, abs=1e-6)


def test_the_export_answers_as_the_trained_policy(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    config = make_config(length={"amount": 2}, **VALIDATED)
    said: list[tuple[str | None, int, int | None]] = []
    there: list[tuple[bool, bool]] = []
    """whether checkpoint and export were there at each call"""

    def note(what: str | None, done: int, total: int | None) -> None:
        said.append((what, done, total))
        there.append(((config.out / "checkpoints/step-000002").exists(), (config.out / "export").exists()))

    report = train(config, on_work=note)
    evaluated = [row for row in read_jsonl(config.out / "metrics.jsonl") if "eval" in row]
    assert [row["step"] for row in evaluated] == [0, 2]
    begun = [(at, what) for at, (what, done, total) in enumerate(said) if what is not None and total is None]
    assert [what for _, what in begun] == [f"validating on {config.validation.split}"] * 2 + [
        "saving a checkpoint (MB)", "exporting the policy (tensors)"]
    for at, what in begun:
        over = said.index((None, 0, None), at)
        counts = [(done, total) for _, done, total in said[at + 1 : over]]
        queries = evaluated[0]["eval"]["queries"]
        assert {one for one, _, _ in said[at:over]} == {what}
        assert counts == sorted(counts)
        assert "validating" not in what or counts[-1] == (queries, queries)
        assert "saving" in what or counts[-1][0] == counts[-1][1]
        assert "validating" in what or (there[at], there[over]) == (
            ((False, False), (True, False)) if "saving" in what else ((True, False), (True, True)))
    exported = load_policy(report.export)
    asking = asking_of(report.export)
    template = asking.template
    assert template.name == "tiny" and template.text == "{query}?"
    shard_set = open_encoded_shards(config.shards, exported.folder)
    decoding = Decoding(96, temperature=0.0)
    rows = evaluate_policy(exported, shard_set, asking, decoding, questions=Questions("val"))
    scores = score_rows(rows).as_dict()
    assert scores["queries"] == 2 and scores["miou"] == evaluated[-1]["eval"]["miou"]
    single = evaluate_policy(exported, shard_set, asking, decoding, questions=Questions("val"), batch_prompts=1)
    assert [row.text for row in single] == [row.text for row in rows]
    write_answers(rows, tmp_path / "out" / "predictions.jsonl")
    written = read_jsonl(tmp_path / "out" / "predictions.jsonl")
    assert [row["query_id"] for row in written] == ["q6", "q7"] and written[0]["text"] == rows[0].text


def test_sampled_evaluation_repeats_by_seed_and_differs_between_seeds(tiny: Tiny) -> None:
    policy = load_policy(tiny.policy)
    shard_set = open_encoded_shards(tiny.shards, policy.folder)

    def texts(seed: int, batch_prompts: int) -> list[str]:
        rows = evaluate_policy(policy, shard_set, asking_of(tiny.policy), Decoding(96), questions=Questions(seed=seed),
                               batch_prompts=batch_prompts)
        return [row.text for row in rows]

    assert texts(0, 8) == texts(0, 3)
    assert texts(0, 8) != texts(1, 8)


def test_a_limit_draws_the_same_queries_each_time(tiny: Tiny) -> None:
    policy = load_policy(tiny.policy)
    shard_set = open_encoded_shards(tiny.shards, policy.folder)
    rows = [evaluate_policy(policy, shard_set, asking_of(tiny.policy), Decoding(8, temperature=0.0),
                            questions=Questions(limit=3, seed=seed)) for seed in (0, 0, 1)]
    keys = [[row.key for row in each] for each in rows]
    assert keys[0] == keys[1] != keys[2] and len(keys[0]) == 3


def test_a_ledger_that_is_lost_is_no_set_without_misses(tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")  # the ledger is parquet
    root = Path(shutil.copytree(tiny.shards, tmp_path / "shards"))
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["counts"] |= {"skipped": 1, "inputs": manifest["counts"]["inputs"] + 1}
    (root / "manifest.json").write_text(json.dumps(manifest))
    shard_set = open_encoded_shards(root, tiny.policy)
    with pytest.raises(ShardError, match=r"0 rows in skipped\.parquet, the manifest counts 1"):
        missing_predictions(shard_set, None)


def test_three_non_finite_steps_in_a_row_stop_the_run(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(optimizer={"lr": 1e30})
    with pytest.raises(TaroError, match=r"not finite in 3 steps in a row.*step-000003"):
        train(config)
    rows = lines(config.out)
    assert [row["skipped"] for row in rows] == [0, 1, 1, 1]
    assert (config.out / "rollouts/step-000003.jsonl").is_file()


def test_other_modes_run(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(length={"amount": 2}, loss={"kind": "dr_grpo", "off_policy": "raft", "kl": 0.0},
                         curriculum={"schedule": "linear", "unit": "epochs", "amount": 1},
                         optimizer={"mini_batches": 2, "inner_epochs": 2, "checkpoint_activations": True},
                         rollout={"paths": "online", "batch_prompts": 1}, reward={"drop_over": "response"},
                         trackers=("tensorboard",) if _has_tensorboard() else ())
    report = train(config)
    assert report.steps == 2 and report.skipped == 0
    assert lines(config.out)[1]["guided"] < 1.0


def _has_tensorboard() -> bool:
    import importlib.util

    return importlib.util.find_spec("tensorboard") is not None


def test_old_checkpoints_go_and_the_best_stays(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(checkpoint={"every": 1, "keep": 1}, length={"amount": 4},
                         validation={**VALIDATED["validation"], "every": 1})
    report = train(config)
    names = {path.name for path in checkpoints(config.out / "checkpoints")}
    assert names == {"step-000004", f"step-{report.best_step:06d}"}
    evaluated = {row["step"]: row["eval"]["miou"] for row in read_jsonl(config.out / "metrics.jsonl") if "eval" in row}
    assert report.best_score == max(evaluated[step] for step in range(1, 5))


def test_a_damaged_checkpoint_is_named(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(length={"amount": 2})
    train(config)
    path = config.out / "checkpoints/step-000002/rank-00000-of-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(TaroError, match=r"rank-00000-of-00001\.safetensors: damaged"):
        train(config, resume=True)


def test_a_run_folder_is_never_overwritten_nor_resumed_with_other_settings(
        make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(length={"amount": 1})
    with pytest.raises(ConfigError, match="nothing to resume"):
        train(config, resume=True)
    assert not config.out.exists()
    train(config)
    with pytest.raises(ConfigError, match="holds a run already"):
        train(config)
    with pytest.raises(ConfigError, match=r"other settings.*seed: 0 -> 1"):
        train(config.model_copy(update={"seed": 1}), resume=True)
    longer = make_config(length={"amount": 2})
    assert train(longer, resume=True).steps == 2


def test_two_processes_never_train_in_one_folder(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(length={"amount": 1})
    for resume in (False, True):
        run = open_run(config, resume=resume)
        for again in (False, True):
            with pytest.raises(ConfigError, match=r"holds a run already|another process trains in this folder now"):
                open_run(config, resume=again)
        run.close()
    assert train(config, resume=True).steps == 1


def test_what_does_not_fit_is_refused_before_anything_is_written(
        make_config: Callable[..., TrainConfig], tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    other = tiny_qwen2_5_vl(tmp_path / "other", seed=5)
    without_processor = Path(shutil.copytree(tiny.policy, tmp_path / "without"))
    for file in without_processor.glob("*processor_config.json"):
        file.unlink()
    for changes, error, message in [
        ({"policy": str(other)}, ShardError, "not made by this policy's vision tower"),
        ({"data": {"split": "nowhere"}}, ConfigError, r"split 'nowhere' .*has 0 queries"),
        ({"rollout": {"prompts": 99}}, ConfigError, "rollout.prompts=99"),
        ({"validation": {"split": "nowhere"}}, ConfigError, "validation.split"),
        ({"template": "nowhere"}, ConfigError, "no such prompt template"),
        ({"data": {"difficulty": (1, 2)}}, ConfigError, r"split 'train' and difficulty \[1.0, 2.0\] .*has 0 queries"),
        ({"trackers": ("trackio",)}, ConfigError, "trackio, which is not installed"),
        ({"policy": str(without_processor)}, ModelError, "no processor files"),
    ]:
        config = make_config(**changes)
        with pytest.raises(error, match=message):
            train(config)
        assert not config.out.exists(), changes


@pytest.mark.parametrize(("changes", "message"), [
    ({"rollout": {"prompts": 3}, "optimizer": {"mini_batches": 2}}, "multiple of"),
    ({"validation": {"split": "train"}}, "split of its own"),
    ({"reward": {"no_think": True}}, "drop_over=response"),
    ({"optimizer": {"betas": (2.0, 0.9)}}, "less than 1"),
    ({"reward": {"no_think": True, "alpha": 0.0}}, "curriculum.schedule=off"),
    ({"rollout": {"min_free_tokens": 96}}, "no room for a guided"),
])
def test_settings_that_contradict_each_other_are_refused(tiny: Tiny, tmp_path: Path, changes: dict[str, Any],
                                                         message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.config(tmp_path, **changes)


def test_a_run_without_reasoning_rewards_answers_alone(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(length={"amount": 1}, curriculum={"schedule": "off"},
                         reward={"no_think": True, "drop_over": "response"})
    train(config)
    row = lines(config.out)[0]
    assert row["format"] == 0.0 and row["drop_mean"] is not None  # the tiny policy was taught to think


def test_config_of_a_run_is_a_recipe(make_config: Callable[..., TrainConfig]) -> None:
    from taro.core.config import load_config

    config = make_config(length={"amount": 1})
    train(config)
    assert load_config(TrainConfig, config.out / "config.yaml", package="taro.train.recipes") == config
    assert yaml.safe_load((config.out / "config.yaml").read_text())["seed"] == 0
