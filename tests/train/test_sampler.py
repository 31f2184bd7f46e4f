"""A step takes any sampler: one that replays given rollouts makes the step that the grouped decoder made."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from taro.grounding.prompts import Asking
from taro.models.decoding import DECODERS, sampler_of
from taro.models.load import load_policy
from taro.models.prompt import Prompt
from taro.models.sampler import Decoding, Forced, Rollouts, Sampler
from taro.train.config import TrainConfig
from taro.train.evaluate import evaluate_policy
from taro.train.rollouts import RolloutBatch, StepName, roll_out, score_batch
from taro.train.sets import open_encoded_shards
from taro.train.update import update_policy
from tests.train.conftest import Tiny
from tests.train.tiny import TEMPLATE, Sgd

ROOT = Path(__file__).resolve().parents[2]


class Recorder:
    """Hands on what another sampler draws, and keeps it by prompt."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler, self.drawn = sampler, dict[tuple[int, ...], Rollouts]()

    def __call__(self, prompts: Sequence[Prompt], *, G: int, decoding: Decoding, forced: Forced | None = None,
                 uniforms_BGR: np.ndarray | None = None, at_once: int | None = None) -> Rollouts:
        found = self.sampler(prompts, G=G, decoding=decoding, forced=forced, uniforms_BGR=uniforms_BGR,
                             at_once=at_once)
        fields = found.ids_BGR, found.mask_BGR, found.logprobs_BGR, found.finished_BG, found.forced_BG
        for b, prompt in enumerate(prompts):
            self.drawn[name_of(prompt)] = Rollouts(*(field[b : b + 1] for field in fields))
        return found


class Replay:
    """Gives the rollouts that it was given, of each prompt; it has no model, and draws nothing."""

    def __init__(self, drawn: dict[tuple[int, ...], Rollouts]) -> None:
        self.drawn = drawn

    def __call__(self, prompts: Sequence[Prompt], *, G: int, decoding: Decoding, forced: Forced | None = None,
                 uniforms_BGR: np.ndarray | None = None, at_once: int | None = None) -> Rollouts:
        found = [self.drawn[name_of(prompt)] for prompt in prompts]
        assert all(one.ids_BGR.shape == (1, G, decoding.max_new_tokens) for one in found)
        return Rollouts(*(torch.cat([getattr(one, name) for one in found]) for name in (
            "ids_BGR", "mask_BGR", "logprobs_BGR", "finished_BG", "forced_BG")))


def name_of(prompt: Prompt) -> tuple[int, ...]:
    """The queries of the tiny set are all alike, its videos are not."""
    return tuple(prompt.features.main_SND.flatten()[:8].mul(1e6).long().tolist())


def test_a_step_over_replayed_rollouts_is_the_step(tiny: Tiny, make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(rollout={"prompts": 3, "batch_prompts": 2}, loss={"kl": 0.0}, optimizer={"grad_clip": 1e9})

    def step(sampler_of: Callable[..., Sampler]) -> tuple[RolloutBatch, list[torch.Tensor]]:
        policy = load_policy(tiny.policy, trainable=True)
        shard_set = open_encoded_shards(tiny.shards, tiny.policy)
        samples = [shard_set.sample(ref) for ref in shard_set.queries(split="train")[:3]]
        batch = roll_out(policy, Asking(TEMPLATE), samples, config.rollout, StepName(0, 1, 5), guide=0.5,
                         sampler=sampler_of(policy))
        advantages = np.random.default_rng(0).standard_normal((3, 4))
        optimizer = Sgd(policy)
        update_policy(policy, optimizer, batch, score_batch(policy, None, batch, config.reward), advantages,
                      config.loss, config.optimizer)
        return batch, [parameter.detach() for parameter in policy.parameters()]

    recorders: list[Recorder] = []

    def record(policy) -> Sampler:
        recorders.append(Recorder(sampler_of(policy)))
        return recorders[0]

    drawn, moved = step(record)
    replayed, again = step(lambda policy: Replay(recorders[0].drawn))
    assert drawn.guided_BG.any() and not drawn.guided_BG.all()
    assert drawn.texts_BG == replayed.texts_BG and torch.equal(drawn.sampled_BGR, replayed.sampled_BGR)
    assert all(torch.equal(a, b) for a, b in zip(moved, again, strict=True))


def test_rollouts_and_answers_are_the_same_whichever_decoder_draws(
        tiny: Tiny, make_config: Callable[..., TrainConfig]) -> None:
    """Guided rollouts with prompts admitted as others leave, and the answers of an evaluation."""
    config = make_config(rollout={"prompts": 3, "batch_prompts": 2})
    batches, answers = [], []
    for name in DECODERS:
        policy = load_policy(tiny.policy)
        policy.decoder = name
        shard_set = open_encoded_shards(tiny.shards, tiny.policy)
        samples = [shard_set.sample(ref) for ref in shard_set.queries(split="train")[:3]]
        batches.append(roll_out(policy, Asking(TEMPLATE), samples, config.rollout, StepName(0, 1, 5), guide=0.5))
        answers.append(evaluate_policy(policy, shard_set, Asking(TEMPLATE), Decoding(24, temperature=0.0),
                                       batch_prompts=4))
    one, other = batches
    assert one.guided_BG.any() and not one.guided_BG.all()
    assert torch.equal(one.ids_BGR, other.ids_BGR) and torch.equal(one.finished_BG, other.finished_BG)
    torch.testing.assert_close(one.sampled_BGR, other.sampled_BGR, atol=2e-5, rtol=0)
    assert one.texts_BG == other.texts_BG and answers[0] == answers[1] and len(answers[0]) > 3


def test_everything_draws_through_the_policys_decoder() -> None:
    """No user of a decoder names one."""
    for folder in ("taro/sandbox", "taro/cli", "train", "preprocess"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"taro\.models\.(grouped|decoder)\b", path.read_text(encoding="utf-8")), path
