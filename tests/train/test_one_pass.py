"""An update whose forward pass gives the old log-probs equals the plain order: score, judge, then update."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from taro.models.load import load_policy
from taro.models.policy import Policy
from taro.models.sampler import Decoding
from taro.shards.reader import QueryRef, Sample
from taro.train.algorithms.base import make_algorithm
from taro.train.config import TrainConfig
from taro.train.extra_rewards import Response
from taro.train.one_pass import OnePass, in_one_pass
from taro.train.open import open_run
from taro.train.optimizer.optimizer import Optimizer
from taro.train.phases import Phases
from taro.train.rewards import compute_rewards
from taro.train.rollouts import RolloutBatch, StepName, score_batch
from taro.train.step import train_step
from taro.train.update import Work, accumulate, learned_tokens, make_optimizer, recompute_of, update_policy
from tests.helpers_models import TINY
from tests.models.helpers import sampled
from tests.train.conftest import Tiny
from tests.train.tiny import clip_record


def spread(response: Response) -> float:
    """A reward that surely varies over rollouts."""
    return hashlib.sha256(response.text.encode()).digest()[0] / 256


def batch_of(policy: Policy) -> RolloutBatch:
    """Two prompts with three rollouts each, over videos of 4 and 2 patches; one query has no window in its video."""
    prompts, rollouts = sampled(policy)
    samples = []
    for number, prompt in enumerate(prompts):
        clip, _ = clip_record(number, "train")
        samples.append(Sample(QueryRef(clip.key, clip.queries[0]), clip, clip.queries[0], prompt.features))
    forced_BG = torch.tensor([[5, 1, 0], [0, 2, 1]])
    texts = tuple(tuple(policy.decode(ids[mask]) for ids, mask in zip(*group, strict=True))
                  for group in zip(rollouts.ids_BGR, rollouts.mask_BGR, strict=True))
    finished_BG = torch.tensor([[True, False, True], [True, True, False]])
    return RolloutBatch(StepName(0, 0, 0), Decoding(24), tuple(samples), tuple(prompts), rollouts.ids_BGR,
                        rollouts.mask_BGR, rollouts.logprobs_BGR, forced_BG, finished_BG, forced_BG.numpy() > 0, 0,
                        texts)


def taken(optimizer: Optimizer, policy: Policy) -> dict[str, torch.Tensor]:
    """The gradient, which is cleared."""
    found = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    optimizer.begin()
    return found


@pytest.mark.parametrize("family", sorted(TINY))
@pytest.mark.parametrize("changes", [
    {}, {"optimizer": {"checkpoint_activations": True, "micro_prompts": 2}},
    {"loss": {"mask_truncated": True, "entropy": 0.01, "kind": "gspo"}},
    {"loss": {"kind": "dapo"}, "reward": {"disruption": "noise"}},
], ids=["plain", "recomputed", "gspo", "dapo"])  # fmt: skip
def test_one_pass_equals_scores_first(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    policy = load_policy(TINY[family](tmp_path), trainable=True, tower=True)
    batch = batch_of(policy)
    settings: dict[str, Any] = {"policy": "p", "shards": "s", "out": "o", **changes}
    settings["reward"] = {"extra": [["tests.train.test_one_pass:spread", 1.0]], "dt_s": 1.0, "drop_over": "response",
                          **settings.get("reward", {})}
    config = TrainConfig.model_validate(settings)
    assert in_one_pass(config)
    optimizer = make_optimizer(policy, config.optimizer)
    reference_BGR = torch.from_numpy(np.random.default_rng(0).normal(-3.0, 1.0, batch.ids_BGR.shape)).float()
    reference = None if config.loss.kl == 0 else reference_BGR
    start = None if reference is None else lambda _: reference_BGR

    scores = score_batch(policy, start, batch, config.reward)
    parts = compute_rewards(batch, scores, config.reward)
    advantages_BG = make_algorithm(config.loss).advantages(parts.total_BG)
    assert (advantages_BG != 0).all()
    plain: dict[str, torch.Tensor] = {}
    optimizer.step = lambda *_: plain.update(  # type: ignore[method-assign]
        {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None})
    update = update_policy(policy, optimizer, batch, scores, advantages_BG, config.loss, config.optimizer)

    judge = OnePass(policy, batch, config, Phases())
    work = Work(policy, batch, batch.mask_BGR, learned_tokens(batch, config.loss), reference, judge, config.loss,
                config.optimizer, False, recompute_of(policy, config.optimizer))
    gradient = accumulate(work, optimizer, range(2), 2)
    found, seen = taken(optimizer, policy), judge.seen(reference)
    assert torch.allclose(seen.scores.old_BGR, scores.old_BGR, atol=1e-5)
    assert torch.allclose(seen.scores.disrupted_BGR, scores.disrupted_BGR, atol=1e-5)
    assert (seen.scores.disrupted_B == scores.disrupted_B).all() and (seen.scores.over_BGR == scores.over_BGR).all()
    assert np.allclose(seen.advantages_BG, advantages_BG, atol=1e-5) and seen.parts.predicted_BG == parts.predicted_BG
    assert np.allclose(gradient[:5], [update.loss, update.kl, update.clip_fraction, update.grad_norm,
                                      update.entropy or 0.0], rtol=1e-4, atol=1e-6)  # fmt: skip
    assert found.keys() == plain.keys() and gradient.norm > 1e-3
    for name, wanted in plain.items():
        assert (found[name] - wanted).norm() <= 1e-4 * wanted.norm() + 1e-7, name


def test_a_group_goes_through_the_policy_once(tiny: Tiny, tmp_path: Path) -> None:
    """Rows of the policy in a step: one a prompt, and one a disrupted video; a pass more where it is switched off."""
    counts = {}
    for one_pass in (True, False):
        config = tiny.config(tmp_path / str(one_pass), optimizer={"one_pass": one_pass}, loss={"kl": 0.0},
                             curriculum={"schedule": "off"})
        run = open_run(config, resume=False)
        rows: list[int] = []
        model = run.policy.language_model
        hook = model.register_forward_pre_hook(lambda _, args, rows=rows: rows.append(args[0].shape[1]))
        line = train_step(run)
        hook.remove()
        run.close()
        counts[one_pass] = [length for length in rows if length > 24], line
    once, line = counts[True]
    twice, other = counts[False]
    assert len(twice) == len(once) + 2
    assert line["reward"] == other["reward"] and line["loss"] == pytest.approx(other["loss"], rel=1e-4, abs=1e-6)
    assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    assert line["phases"].keys() == other["phases"].keys()


def test_where_old_log_probs_are_other_numbers_they_have_a_pass_of_their_own(
        make_config: Callable[..., TrainConfig]) -> None:
    assert in_one_pass(make_config())
    for changes in ({"optimizer": {"mini_batches": 2}}, {"optimizer": {"inner_epochs": 2}}, {"rollout": {"redraws": 1}},
                    {"optimizer": {"one_pass": False}}, {"lora": {"dropout": 0.1}}):  # fmt: skip
        assert not in_one_pass(make_config(**changes)), changes


def test_phases_inside_phases_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    phases, told = Phases(), []
    phases.observers.append(lambda name, begins: told.append((name, begins)))
    with phases("update"):
        now[0] += 1
        for _ in range(2):
            with phases("scores"):
                now[0] += 10
            now[0] += 100
        assert phases.now == "update"
    assert phases.take() == {"update": 201.0, "scores": 20.0} and phases.now == ""
    assert told[:4] == [("update", True), ("scores", True), ("scores", False), ("update", True)]
