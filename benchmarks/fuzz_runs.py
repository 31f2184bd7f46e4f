"""Model folders, checkpoints and run folders under the fuzzer: what is downloaded, resumed and reported on."""

from __future__ import annotations

import contextlib
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import fuzz_mutations as change
from benchmarks.fuzz_targets import Files, Target, folder_of, lay_folder
from taro.core.errors import TaroError
from taro.grounding.prompts import load_template
from taro.metrics.answers import read_answers, write_answers
from taro.models.features import FrameSampling
from taro.models.folder import pixel_settings, template_name
from taro.models.load import load_policy
from taro.models.tensors import tower_sha256
from taro.shards.view import view as write_view
from taro.train.checkpoint import RunState, checkpoints, load_checkpoint, save_checkpoint
from taro.train.optimizer.optimizer import Optimizer
from taro.train.report.data import Evaluation, last_rollouts, read_run
from taro.train.report.write import render_report
from taro.train.run_dir import check_folder
from taro.train.settings.update import OptimizerConfig
from taro.train.trackers import truncate_to_step
from tests.helpers_models import tiny_qwen2_5_vl, tiny_qwen3_vl
from tests.report.synthetic import eval_rows, run_folder, shard_set

CHANGES: dict[str, Callable[..., bytes]] = {".json": change.json_file, ".jsonl": change.json_lines,
                                            ".safetensors": change.tensors}  # fmt: skip


def run_targets(seeds: Path) -> list[Target]:
    """The targets; `seeds`: a folder to make good models and runs in."""
    return [*_model_targets(seeds), _checkpoint_target(seeds), *_report_targets(seeds)]


def _one_file(files: Files) -> Callable[[random.Random], Files]:
    def make(rng: random.Random) -> Files:
        name = rng.choice(sorted(files))
        changer = CHANGES.get(Path(name).suffix, change.blob)
        return {name: changer(rng, files[name])}

    return make


def _model_targets(seeds: Path) -> list[Target]:
    targets = []
    for name, build in (("model-qwen2.5", tiny_qwen2_5_vl), ("model-qwen3", tiny_qwen3_vl)):
        base = build(seeds / name)
        (base / "taro.json").write_text(json.dumps({"template": "taro", "template_sha256": "0" * 64}))
        files = folder_of(base)
        targets.append(Target(name, _one_file(files), lambda files, at, base=base: _use_model(files, at, base), 0.4))
    return targets


def _use_model(files: Files, at: Path, base: Path) -> None:
    folder = at / "model"
    lay_folder(files, base, folder)
    policy = load_policy(folder, tower=True)
    load_template(template_name(folder) or "taro")
    pixel_settings(folder)
    tower_sha256(folder, policy.family)
    frames = np.zeros((4, 56, 56, 3), dtype=np.uint8)
    features = policy.encode(frames, np.array([0.0, 0.5, 1.0, 1.5]), FrameSampling(), duration_s=2.0)
    prompt = policy.prompt(features, "a dog <|video_pad|>?")
    assert policy.banned_V.any() and len(policy.decode(prompt.ids_P)) > 0
    policy.fingerprint(FrameSampling(), "float32")


def _checkpoint_target(seeds: Path) -> Target:
    def made() -> Optimizer:
        named = {"w": torch.nn.Parameter(torch.ones(2, 3)), "b": torch.nn.Parameter(torch.ones(3))}
        optimizer = Optimizer(named.items(), OptimizerConfig(lr=0.1))
        for parameter in named.values():
            parameter.grad = torch.ones_like(parameter)
        return optimizer

    optimizer = made()
    optimizer.step(0.1)
    base, table = seeds / "checkpoints", "rank-00000-of-00001.json"
    files = folder_of(save_checkpoint(base, optimizer, RunState(step=1)))

    def make(rng: random.Random) -> Files:
        import hashlib

        changed = _one_file(files)(rng)
        name = next(iter(changed))
        if name != "state.json" and rng.random() < 0.8:  # a lie with a right digest
            if name != table:
                said = json.loads(files[table])
                said |= {"bytes": len(changed[name]), "sha256": [hashlib.sha256(changed[name]).hexdigest()]}
                changed[table] = json.dumps(said).encode()
            state = json.loads(files["state.json"])
            state["sha256"][table] = hashlib.sha256(changed[table]).hexdigest()
            state["check"] = hashlib.sha256(json.dumps({key: one for key, one in state.items() if key != "check"},
                                                       sort_keys=True).encode()).hexdigest()
            changed["state.json"] = json.dumps(state).encode()
        return changed

    def run(changed: Files, at: Path) -> None:
        lay_folder({f"step-000001/{name}": data for name, data in changed.items()}, base, at / "checkpoints")
        fresh = made()
        state = load_checkpoint(checkpoints(at / "checkpoints")[-1], fresh)
        fresh.step(0.1)
        assert f"{state.step + state.skipped + state.nonfinite_streak:d}"

    return Target("checkpoint", make, run, 2)


def _report_targets(seeds: Path) -> list[Target]:
    run, clips = run_folder(seeds / "run", steps=6, guided=2), shard_set(seeds / "run-set", clips=3)
    write_answers(eval_rows(False, clips=3), seeds / "answers.jsonl")
    answers = (seeds / "answers.jsonl").read_bytes()
    (run / "export").mkdir()
    (run / "export" / "taro.json").write_text('{"template": "taro", "template_sha256": "x"}')
    (run / "metrics.jsonl").open("a").write(json.dumps({"step": 5, "eval": {"miou": 0.5, "split": "val"}}) + "\n")
    names = ("config.yaml", "metrics.jsonl", "rollouts/step-000000.jsonl", "rollouts/step-000005.jsonl",
             "export/taro.json")  # fmt: skip
    files = {name: (run / name).read_bytes() for name in names}

    def make(rng: random.Random) -> Files:
        changed = _one_file(files)(rng)
        return changed | {"after.jsonl": change.json_lines(rng, answers) if rng.random() < 0.3 else answers}

    def report(changed: Files, at: Path) -> None:
        lay_folder({name: data for name, data in changed.items() if name != "after.jsonl"}, run, at / "run")
        (at / "before.jsonl").write_bytes(answers)
        (at / "after.jsonl").write_bytes(changed["after.jsonl"])
        last = None
        evaluations: list[Evaluation] = []
        try:
            both = [read_answers(at / f"{name}.jsonl") for name in ("before", "after")]
            evaluations = [Evaluation("greedy", *both)]
        except TaroError as error:
            last = error
        for step in (
            lambda: render_report(at / "run", {"set": clips}, evaluations, at / "report.html"),
            lambda: write_view(clips, at / "view", rollouts=last_rollouts(at / "run")),
            lambda: read_run(at / "run").guided_spans,
        ):  # fmt: skip
            try:
                step()
            except TaroError as error:
                last = error
        for page in at.rglob("*.html"):
            text = page.read_text(encoding="utf-8").replace('<script src="', "")  # ours
            assert re.search(r"<script|onerror=[^&]", text) is None, f"{page.name}: script"
        if last is not None:
            raise last

    def resume(changed: Files, at: Path) -> None:
        from taro.core.config import load_config
        from taro.train.config import TrainConfig

        lay_folder({name: data for name, data in changed.items() if name != "after.jsonl"}, run, at / "run")
        config = load_config(TrainConfig, None, [f"out={at / 'run'}", "policy=sandbox:policy", "shards=x"],
                             package="taro.train.recipes")
        with contextlib.suppress(TaroError):
            check_folder(config, resume=True)
        truncate_to_step(at / "run", 3)
        for line in (at / "run" / "metrics.jsonl").read_text().splitlines():
            kept: dict[str, Any] = json.loads(line)
            assert kept["step"] <= 3

    return [Target("report", make, report, 0.6), Target("resume", make, resume, 1)]
