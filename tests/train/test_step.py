"""One step on a real tiny policy: rollouts, drops, the gradient, and what a non-finite loss does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from taro.grounding.prompts import Asking
from taro.models.load import load_policy
from taro.models.logprobs import score
from taro.models.policy import Policy
from taro.shards.reader import open_shards
from taro.train.algorithms.advantages import group_advantages
from taro.train.config import TrainConfig
from taro.train.disruption import Disruption
from taro.train.rewards import compute_rewards, control_totals
from taro.train.rollouts import RolloutBatch, Scores, StepName, disrupt, roll_out, score_batch, score_prompts
from taro.train.sets import open_encoded_shards
from taro.train.update import learned_tokens, update_policy
from tests.train.conftest import Tiny
from tests.train.tiny import TEMPLATE, Sgd


@pytest.fixture(scope="module")
def policy(tiny: Tiny) -> Policy:
    return load_policy(tiny.policy, trainable=True)


@pytest.fixture
def config(make_config: Any) -> TrainConfig:
    return make_config(rollout={"prompts": 3}, loss={"kl": 0.0}, optimizer={"grad_clip": 1e9})


def drawn(policy: Policy, tiny: Tiny, config: TrainConfig, *, probability: float = 0.0, step: int = 5) -> RolloutBatch:
    shard_set = open_encoded_shards(tiny.shards, policy.folder)
    samples = [shard_set.sample(ref) for ref in shard_set.queries(split="train")[: config.rollout.prompts]]
    return roll_out(policy, Asking(TEMPLATE), samples, config.rollout, StepName(config.seed, 1, step),
                    guide=probability)


def moved(tiny: Tiny, batch: RolloutBatch, scores: Scores, advantages_BG: np.ndarray,
          config: TrainConfig) -> list[torch.Tensor]:
    """How far one SGD update of rate 1 moves each parameter: minus the gradient."""
    fresh = load_policy(tiny.policy, trainable=True)
    before = [parameter.detach().clone() for parameter in fresh.parameters()]
    optimizer = Sgd(fresh)
    update_policy(fresh, optimizer, batch, scores, advantages_BG, config.loss,
                  config.optimizer.model_copy(update={"lr": 1.0}))
    return [parameter.detach() - old for parameter, old in zip(fresh.parameters(), before, strict=True)]


def test_rollouts_depend_on_their_names_and_not_on_what_else_is_decoded(
        policy: Policy, tiny: Tiny, config: TrainConfig) -> None:
    together = drawn(policy, tiny, config)
    alone = drawn(policy, tiny, config.model_copy(update={
        "rollout": config.rollout.model_copy(update={"batch_prompts": 1})}))
    assert together.texts_BG == alone.texts_BG
    assert drawn(policy, tiny, config, step=6).texts_BG != together.texts_BG


def test_guided_rollouts_open_with_distinct_captions_and_free_ones_do_not(
        policy: Policy, tiny: Tiny, config: TrainConfig) -> None:
    batch = drawn(policy, tiny, config, probability=1.0)
    assert batch.guided_BG.all() and batch.fallbacks == 0
    for b, texts_G in enumerate(batch.texts_BG):
        forced = [policy.decode(batch.ids_BGR[b, g, : batch.forced_BG[b, g]]) for g in range(len(texts_G))]
        assert all(prefix.startswith("<think>\nab\nFrom ") and prefix.endswith(", go\n") for prefix in forced)
        assert all(text.startswith(prefix) for text, prefix in zip(texts_G, forced, strict=True))
    free = drawn(policy, tiny, config)
    assert not free.guided_BG.any() and (free.forced_BG == 0).all()


def test_sampling_and_scoring_agree_and_shuffling_nothing_gives_drop_zero(
        policy: Policy, tiny: Tiny, config: TrainConfig) -> None:
    batch = drawn(policy, tiny, config, probability=0.5)
    scores = score_batch(policy, None, batch, config.reward)
    torch.testing.assert_close(scores.old_BGR, batch.sampled_BGR, atol=1e-4, rtol=0)
    same = [prompt.with_features(prompt.features.permuted(np.arange(4))) for prompt in batch.prompts]
    with torch.no_grad():
        assert torch.equal(score(policy, same, batch.ids_BGR, batch.mask_BGR), scores.old_BGR)
    assert not torch.equal(scores.disrupted_BGR, scores.old_BGR)
    drops = compute_rewards(batch, scores, config.reward).drop_BG
    assert len(np.unique(drops[np.isfinite(drops)])) > 3, "every rollout has a drop of its own"


def test_disruption_is_shared_by_the_group_and_moves_content_not_time(
        policy: Policy, tiny: Tiny, config: TrainConfig) -> None:
    batch = drawn(policy, tiny, config)
    prompts, changed_B = disrupt(batch, Disruption("patch"))
    assert changed_B.all()
    for old, new in zip(batch.prompts, prompts, strict=True):
        assert torch.equal(old.positions_3P, new.positions_3P) and torch.equal(old.ids_P, new.ids_P)
        np.testing.assert_array_equal(old.features.times_S, new.features.times_S)
        rows = {tuple(row) for row in old.features.main_SND.flatten(1).tolist()}
        assert rows == {tuple(row) for row in new.features.main_SND.flatten(1).tolist()}
        assert not torch.equal(old.features.main_SND, new.features.main_SND)


def test_the_gradient_does_not_depend_on_micro_batch_size(policy: Policy, tiny: Tiny, config: TrainConfig) -> None:
    batch = drawn(policy, tiny, config, probability=0.5)
    scores = score_batch(policy, lambda x: score_prompts(policy, x.prompts, x), batch, config.reward)
    advantages = np.random.default_rng(0).standard_normal((3, 4))
    with_kl = config.model_copy(update={"loss": config.loss.model_copy(update={"kl": 0.1})})
    whole, single = (moved(tiny, batch, scores, advantages, with_kl.model_copy(update={
        "optimizer": with_kl.optimizer.model_copy(update={"micro_prompts": micro})})) for micro in (3, 1))
    assert max(float(change.abs().max()) for change in whole) > 1e-4
    for a, b in zip(whole, single, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_more_padding_changes_nothing(policy: Policy, tiny: Tiny, config: TrainConfig) -> None:
    batch = drawn(policy, tiny, config)
    pad = lambda x, value: torch.cat([x, torch.full((*x.shape[:2], 7), value, dtype=x.dtype)], -1)  # noqa: E731
    padded = replace(batch, ids_BGR=pad(batch.ids_BGR, 3), mask_BGR=pad(batch.mask_BGR, False),
                     sampled_BGR=pad(batch.sampled_BGR, 0.0))
    advantages = np.random.default_rng(0).standard_normal((3, 4))
    changes = [moved(tiny, x, score_batch(policy, None, x, config.reward), advantages, config) for x in (batch, padded)]
    for a, b in zip(*changes, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)


def test_groups_of_equal_reward_move_nothing(policy: Policy, tiny: Tiny, config: TrainConfig) -> None:
    batch = drawn(policy, tiny, config, probability=0.5)
    scores = score_batch(policy, None, batch, config.reward)
    changes = moved(tiny, batch, scores, group_advantages(np.full((3, 4), 1.3)), config)
    assert all((change == 0).all() for change in changes)


def test_a_rewarded_rollout_becomes_more_likely(policy: Policy, tiny: Tiny, config: TrainConfig) -> None:
    batch = drawn(policy, tiny, config)
    scores = score_batch(policy, None, batch, config.reward)
    trained = load_policy(tiny.policy, trainable=True)
    rewards_BG = np.zeros((3, 4))
    rewards_BG[:, 0] = 1.0
    optimizer = Sgd(trained)
    update_policy(trained, optimizer, batch, scores, group_advantages(rewards_BG), config.loss,
                  config.optimizer.model_copy(update={"lr": 0.05}))
    with torch.no_grad():
        gained = (score(trained, batch.prompts, batch.ids_BGR, batch.mask_BGR) - scores.old_BGR).sum(-1)
    assert (gained[:, 0] > 0).all() and (gained[:, 0] > gained[:, 1:].max(-1).values).all()


def test_a_non_finite_loss_leaves_the_weights_alone(policy: Policy, tiny: Tiny, config: TrainConfig) -> None:
    batch = drawn(policy, tiny, config)
    scores = score_batch(policy, None, batch, config.reward)
    broken = replace(scores, old_BGR=torch.where(batch.mask_BGR, torch.nan, 0.0))
    changes = moved(tiny, batch, broken, np.random.default_rng(0).standard_normal((3, 4)), config)
    assert all((change == 0).all() for change in changes)


def test_several_mini_batches_and_epochs_make_the_clip_act(
        policy: Policy, tiny: Tiny, config: TrainConfig) -> None:
    batch = drawn(policy, tiny, config)
    scores = score_batch(policy, None, batch, config.reward)
    advantages = np.random.default_rng(0).standard_normal((3, 4))
    for inner, acts in ((1, False), (3, True)):
        fresh = load_policy(tiny.policy, trainable=True)
        optimizer = Sgd(fresh)
        knobs = config.optimizer.model_copy(update={"lr": 1.0, "inner_epochs": inner})
        update = update_policy(fresh, optimizer, batch, scores, advantages, config.loss, knobs)
        assert (update.clip_fraction > 0) == acts
        assert update.skipped == 0


def test_the_control_permutes_totals_inside_groups_only(policy: Policy, tiny: Tiny, config: TrainConfig) -> None:
    batch = drawn(policy, tiny, config)
    parts = compute_rewards(batch, score_batch(policy, None, batch, config.reward), config.reward)
    parts = replace(parts, tiou_BG=np.arange(12.0).reshape(3, 4))
    permuted = control_totals(parts, batch, "permute-rewards")
    assert not np.array_equal(permuted, parts.total_BG)
    np.testing.assert_array_equal(np.sort(permuted, axis=1), np.sort(parts.total_BG, axis=1))


def test_the_reader_gives_what_was_written(tiny: Tiny) -> None:
    shard_set = open_shards(tiny.shards)
    assert [ref.key for ref in shard_set.queries(split="val")] == ["clip-06", "clip-07"]


def test_responses_that_did_not_end_are_out_of_loss_and_denominator(
        policy: Policy, tiny: Tiny, config: TrainConfig) -> None:
    """Masking a truncated response moves the weights as a batch does in which it has no token."""
    batch = drawn(policy, tiny, config)
    ended = torch.ones_like(batch.finished_BG)
    ended[0, 1] = ended[2, :] = False  # of the last prompt nothing ended: its micro-batch is empty
    cut = replace(batch, finished_BG=ended)
    without = replace(batch, mask_BGR=batch.mask_BGR & ended[..., None])
    scores = score_batch(policy, None, batch, config.reward)
    advantages = np.random.default_rng(0).standard_normal((3, 4))
    masking = config.model_copy(update={"loss": config.loss.model_copy(update={"mask_truncated": True})})
    masked, plain, whole = (moved(tiny, x, scores, advantages, knobs) for x, knobs in
                            ((cut, masking), (without, config), (batch, config)))
    assert all(torch.equal(a, b) for a, b in zip(masked, plain, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(masked, whole, strict=True))
    assert int(learned_tokens(cut, masking.loss).sum()) == int(without.mask_BGR.sum())


def test_an_entropy_bonus_raises_the_policys_entropy(policy: Policy, tiny: Tiny, config: TrainConfig) -> None:
    batch = drawn(policy, tiny, config)
    scores = score_batch(policy, None, batch, config.reward)
    trained = load_policy(tiny.policy, trainable=True)
    knobs = config.loss.model_copy(update={"entropy": 1.0})
    found = [update_policy(trained, Sgd(trained), batch, scores, np.zeros((3, 4)), knobs,
                           config.optimizer.model_copy(update={"lr": 0.02})) for _ in range(3)]
    entropies = [one.entropy for one in found]
    assert entropies[0] < entropies[1] < entropies[2] and found[0].masked is None
    assert found[0].loss == pytest.approx(-entropies[0], rel=1e-5), "zero advantages leave the bonus alone"
