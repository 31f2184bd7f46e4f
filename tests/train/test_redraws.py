"""Groups of equal rewards are drawn again under names of their own; all others stay bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from taro.core.jsonl import read_jsonl
from taro.train.algorithms.advantages import zero_variance
from taro.train.config import TrainConfig
from taro.train.loop import train
from taro.train.open import open_run
from taro.train.redraws import draw_step
from taro.train.rewards import compute_rewards
from taro.train.rollouts import StepName, roll_out, score_batch

MANY = {"prompts": 6, "group": 2, "max_new_tokens": 96, "temperature": 0.7}


def test_equal_groups_are_drawn_again_and_all_others_stay(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(rollout={**MANY, "redraws": 1}, reward={"alpha": 0.0}, loss={"kl": 0.01})
    run = open_run(config, resume=False)
    with contextlib.closing(run):
        _, samples = run.ahead.take(0)
        for step in range(8):  # to the first step in which some groups are equal and some are not
            at = StepName(0, 0, step)
            first = roll_out(run.sampling, run.asking, samples, config.rollout, at)
            scores = score_batch(run.policy, None, first, config.reward)
            equal_B = zero_variance(compute_rewards(first, scores, config.reward).total_BG)
            if 0 < equal_B.sum() < 6:
                break
        drawn = draw_step(run, samples, at, guide=0.0)
        assert drawn.redrawn == equal_B.sum() and 0 < drawn.redrawn < 6
        alone = [roll_out(run.sampling, run.asking, [sample], config.rollout, replace(at, round=1))
                 for sample in samples]
        for b in range(6):
            assert drawn.batch.texts_BG[b] == (alone[b].texts_BG[0] if equal_B[b] else first.texts_BG[b])
        assert any(drawn.batch.texts_BG[b] != first.texts_BG[b] for b in np.flatnonzero(equal_B))
        whole = score_batch(run.policy, run.reference, drawn.batch, config.reward)
    for name in ("old_BGR", "disrupted_BGR", "reference_BGR"):
        ours, plain = (getattr(one, name) for one in (drawn.scores, whole))
        assert torch.equal(ours * drawn.batch.mask_BGR, plain * drawn.batch.mask_BGR), name
    assert np.array_equal(drawn.scores.over_BGR & drawn.batch.mask_BGR.numpy(), whole.over_BGR)


def test_rounds_end_and_what_stays_equal_is_counted(make_config: Callable[..., TrainConfig]) -> None:
    """Responses of 8 tokens have no form and no answer: every reward is 0 in every round."""
    config = make_config(rollout={"redraws": 3, "max_new_tokens": 8, "min_free_tokens": 4}, length={"amount": 1},
                         curriculum={"schedule": "off"}, reward={"alpha": 0.0})
    train(config)
    line = read_jsonl(config.out / "metrics.jsonl")[0]
    assert (line["redrawn"], line["zero_variance"], line["reward"]) == (3 * 2, 1.0, 0.0)


def test_a_resumed_run_with_redraws_equals_an_uninterrupted_one(
        tiny: Any, make_config: Callable[..., TrainConfig], tmp_path: Any) -> None:
    knobs: dict[str, Any] = {"rollout": {**MANY, "prompts": 2, "redraws": 2}, "reward": {"alpha": 0.0},
                             "curriculum": {"schedule": "off"}}
    whole = tiny.config(tmp_path / "whole", length={"amount": 4}, **knobs)
    train(whole)
    for steps in (2, 4):
        cut = make_config(length={"amount": steps}, **knobs)
        train(cut, resume=steps == 4)
    rows = [[(row["loss"], row["reward"], row["redrawn"]) for row in read_jsonl(one.out / "metrics.jsonl")]
            for one in (whole, cut)]
    assert rows[0] == rows[1] and sum(redrawn for *_, redrawn in rows[0]) > 0
