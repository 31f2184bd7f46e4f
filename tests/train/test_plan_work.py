"""What a plan counts besides the usual run: SFT, redraws, validation, uneven ranks, adapters of some layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from taro.core.errors import ConfigError
from taro.models.adapters import Lora, add_adapters
from taro.models.load import load_policy
from taro.train.plan.make import Machine, job_of, make_plan
from taro.train.plan.shapes import RELEASED, shape_of_folder
from taro.train.plan.speed import H100, mean_response, measured_speed
from tests.train.conftest import Tiny
from tests.train.test_plan import LENGTHS, config_of


def test_supervised_training_draws_and_scores_nothing() -> None:
    """Its plan has neither those phases nor a reference, and takes the update's time alone; validation is a phase."""
    shape, speed = RELEASED["qwen2.5-vl-7b"], H100[1]
    rl, sft = (make_plan(config_of(objective=name), shape, LENGTHS, cache=Path("nothing.json"))
               for name in ("rl", "sft"))
    assert list(sft.phases) == ["update", "step"] and "reference" in rl.always and "reference" not in sft.always
    assert sft.phases["update"] == rl.phases["update"] and sft.peak < rl.peak
    row = LENGTHS.mean + 8 * sft.response[0]
    assert sft.hours[0] == sft.hours[1] == pytest.approx(sft.steps * 16 * row * speed.update_s / 3600)
    validated = {"split": "val", "batch_prompts": 2, "max_new_tokens": 100}
    found = make_plan(config_of(objective="sft", validation=validated), shape, LENGTHS).phases["validation"]
    one = 2 * shape.K * shape.d * 2 * shape.L
    assert found["prompts' keys and values"] == 2 * 4000 * one
    assert found["rollouts' keys and values"] == 2 * 100 * one
    lines = [{"length": 9.0, "phases": {"update": 1.0}}] * 9
    assert measured_speed(lines, sft.job, gpu="g", prompt=9.0, kl=0.0) is None


def test_groups_that_are_drawn_again_are_counted() -> None:
    """Twice the drawing and scoring with one round at most, but for the reference; one more copy of the videos."""
    shape, speed = RELEASED["qwen2.5-vl-7b"], H100[1]
    scored_first = {"one_pass": False}
    once, again = (make_plan(config_of(rollout={"redraws": n}, optimizer=scored_first), shape, LENGTHS,
                             cache=Path("nothing.json")) for n in (0, 1))
    row = 16 * (LENGTHS.mean + 8 * once.response[0])
    drawn = 2 * once.response[0] * speed.decode_s + row * 2 * speed.score_s
    assert once.hours[0] == once.hours[1] == again.hours[0]
    assert again.hours[1] - again.hours[0] == pytest.approx(again.steps * drawn / 3600)
    assert again.response_tokens == (once.response_tokens[0], 2 * once.response_tokens[1])
    for phase, more in (("rollouts", once.always["videos"]), ("scores", once.always["videos"]), ("update", 0)):
        assert again.allocated(phase) - once.allocated(phase) == more


def test_ranks_do_not_add_prompts() -> None:
    """16 prompts on 3 GPUs are 16, though one rank has six; more GPUs than prompts draw no more either."""
    for gpus, largest in ((3, 6), (100, 1)):
        plan = make_plan(config_of(), RELEASED["qwen2.5-vl-3b"], LENGTHS, Machine(gpus))
        assert plan.job.prompts == largest
        assert plan.response_tokens[1] == plan.steps * 16 * 8 * 1024


def test_adapters_are_counted_where_they_are(tiny: Tiny) -> None:
    """Targets by name and in one layer alone: as many parameters as are trained; one that names nothing is refused."""
    shape = shape_of_folder(tiny.policy)
    for targets in (["q_proj", "down_proj"], ["layers.0.self_attn.q_proj", "v_proj"], ["self_attn.k_proj"]):
        policy = load_policy(tiny.policy)
        add_adapters(policy, Lora(4, 8.0, 0.0, tuple(targets), dora=True), seed=0)
        job = job_of(config_of(lora={"rank": 4, "targets": targets, "dora": True}), shape, LENGTHS)
        trained = sum(one.numel() for one in policy.parameters() if one.requires_grad)
        assert job.trained == trained
    with pytest.raises(ConfigError, match=r"'visual\.qkv' is no Linear .* q_proj \(2\)"):
        job_of(config_of(lora={"targets": ["visual.qkv"]}), shape, LENGTHS)


def test_lines_that_are_damaged_are_no_lengths(tmp_path: Path) -> None:
    """A line without a number is passed over; the others make the mean."""
    lines = [{"length": 10.0}, {"length": None}, {"length": "9"}, {"length": True}, {"length": 20}, [], {"eval": {}}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "{")
    assert mean_response(tmp_path) == 15
