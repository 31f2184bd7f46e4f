"""The cold start: its loss is plain cross-entropy, it learns the form of a response, and RL goes on from its export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from taro.core.jsonl import read_jsonl
from taro.grounding.answers import format_ok, parse_answer
from taro.grounding.prompts import Asking
from taro.models.load import load_policy
from taro.models.policy import Policy
from taro.train.config import RolloutConfig, TrainConfig
from taro.train.data import TrainingData, select
from taro.train.loop import train
from taro.train.ranks import ALONE, Ranks
from taro.train.rollouts import RolloutBatch, StepName
from taro.train.sets import open_encoded_shards
from taro.train.sft import CLONING, no_scores, written_responses
from taro.train.update import Update, make_optimizer, update_policy
from tests.train.conftest import Tiny
from tests.train.ranks_of_threads import on_ranks
from tests.train.tiny import TEMPLATE

GROUP = RolloutConfig(prompts=2, group=4, max_new_tokens=128, min_free_tokens=48)


def written(policy: Policy, tiny: Tiny, asking: Asking, config: RolloutConfig = GROUP) -> RolloutBatch:
    shard_set = open_encoded_shards(tiny.shards, policy.folder)
    samples = [shard_set.sample(ref) for ref in shard_set.queries(split="train")[: config.prompts]]
    return written_responses(policy, asking, samples, config, StepName(0, 0, 0))


def stock_loss(tiny: Tiny, policy: Policy, batch: RolloutBatch) -> float:
    """Mean cross-entropy of all target tokens under the stock model, a whole row a response; tokens that no response
    may hold are left out of the vocabulary, as everywhere here."""
    from transformers import AutoModelForImageTextToText

    stock = AutoModelForImageTextToText.from_pretrained(tiny.policy, dtype=torch.float32).eval()
    total, count = 0.0, 0
    for b, prompt in enumerate(batch.prompts):
        for g in range(batch.ids_BGR.shape[1]):
            ids = batch.ids_BGR[b, g][batch.mask_BGR[b, g]]
            tail = torch.arange(prompt.next_position, prompt.next_position + len(ids)).expand(3, len(ids))
            embeds = stock.get_input_embeddings()(torch.cat([prompt.ids_P, ids])[None]).detach()
            embeds[0, prompt.places_M] = prompt.features.main_SND.flatten(0, 1)
            hidden = stock.model.language_model(
                inputs_embeds=embeds, position_ids=torch.cat([prompt.positions_3P, tail], 1)[:, None]).last_hidden_state
            logits = stock.lm_head(hidden)[0, len(prompt.ids_P) - 1 : -1].masked_fill(policy.banned_V, float("-inf"))
            total += float(torch.nn.functional.cross_entropy(logits, ids, reduction="sum"))
            count += len(ids)
    return total / count


def test_the_loss_is_the_cross_entropy_of_the_stock_model(tiny: Tiny, make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(objective="sft", length={"amount": 1}, rollout={"max_new_tokens": 128},
                         optimizer={"micro_prompts": 1})
    train(config)
    line = read_jsonl(config.out / "metrics.jsonl")[0]
    policy = load_policy(tiny.policy)
    source = config.sources[0]
    data = TrainingData([select(source, open_encoded_shards(tiny.shards, tiny.policy))], prompts=2, seed=config.seed)
    epoch, samples = data.samples(0)
    batch = written_responses(policy, Asking(TEMPLATE), samples, config.rollout, StepName(config.seed, epoch, 0))
    with torch.no_grad():
        assert line["loss"] == pytest.approx(stock_loss(tiny, policy, batch), abs=1e-5)
    assert (line["tokens"], line["responses"]) == (int(batch.mask_BGR.sum()), 8)
    assert 0 < line["accuracy"] < 1 and line["without_path"] == 0


def test_targets_have_the_form_and_the_answer_and_differ_in_their_paths(tiny: Tiny) -> None:
    policy = load_policy(tiny.policy)
    batch = written(policy, tiny, Asking(TEMPLATE))
    for sample, texts_G, ids_GR, mask_GR in zip(batch.samples, batch.texts_BG, batch.ids_BGR, batch.mask_BGR,
                                                strict=True):
        window = sample.query.windows[0]
        assert all(format_ok(text) and parse_answer(text) == window for text in texts_G)
        assert len(set(texts_G)) == 4 and all("\nFrom " in text for text in texts_G)
        assert all(int(ids[mask][-1]) in policy.eos_ids for ids, mask in zip(ids_GR, mask_GR, strict=True))
    answers = written(policy, tiny, Asking(TEMPLATE, no_think=True))
    assert answers.ids_BGR.shape[1] == 1
    assert all(format_ok(text, no_think=True) for (text,) in answers.texts_BG)


def test_a_base_model_learns_the_form_and_rl_goes_on_from_its_export(
        tiny: Tiny, make_config: Callable[..., TrainConfig], tmp_path: Any) -> None:
    base = {"policy": str(tiny.policy.parent / "base"), "template": str(tiny.policy / "template.yaml")}
    cold = make_config(**base, objective="sft", length={"amount": 24}, checkpoint={"every": 24},
                       rollout={"max_new_tokens": 128}, optimizer={"lr": 1e-2, "schedule": "linear"})
    report = train(cold)
    lines = [row for row in read_jsonl(cold.out / "metrics.jsonl") if "loss" in row]
    losses = [row["loss"] for row in lines]
    assert len(lines) == 24 and losses[0] > 5 and np.mean(losses[-3:]) < 0.3 * losses[0]
    assert lines[-1]["accuracy"] > lines[0]["accuracy"] + 0.3
    assert not list((cold.out / "rollouts").iterdir())
    load_policy(report.export)
    on = tiny.config(tmp_path / "on", policy=str(report.export), length={"amount": 1})
    train(on)
    assert read_jsonl(on.out / "metrics.jsonl")[0]["phase"] == "guided"


def test_a_resumed_cold_start_equals_an_uninterrupted_one(
        tiny: Tiny, make_config: Callable[..., TrainConfig], tmp_path: Any) -> None:
    whole = tiny.config(tmp_path / "whole", objective="sft", length={"amount": 4})
    train(whole)
    for steps in (2, 4):
        cut = make_config(objective="sft", length={"amount": steps})
        train(cut, resume=steps == 4)
    numbers = [[(row["loss"], row["grad_norm"], row["tokens"]) for row in read_jsonl(one.out / "metrics.jsonl")]
               for one in (whole, cut)]
    assert numbers[0] == numbers[1] and len(numbers[0]) == 4


def test_queries_without_a_path_that_fits_are_counted_and_move_nothing(
        make_config: Callable[..., TrainConfig], caplog: pytest.LogCaptureFixture) -> None:
    """Said at the first of three steps, and in all at the end."""
    config = make_config(objective="sft", length={"amount": 3}, curriculum={"schedule": "off"},
                         rollout={"max_new_tokens": 60, "min_free_tokens": 10})
    train(config)
    lines = read_jsonl(config.out / "metrics.jsonl")
    assert len(lines) == 3
    for line in lines:
        assert (line["without_path"], line["responses"], line["tokens"], line["grad_norm"]) == (2, 0, 0, 0)
    said = [one.getMessage() for one in caplog.records if "path" in one.getMessage()]
    assert len(said) == 2 and "step 0: none of its 2 queries has a candidate path that fits" in said[0]
    assert said[1].startswith("6 draws of queries had no candidate path") and said[1].endswith("3 steps had no other")


def test_three_ranks_one_of_them_without_work_learn_as_one(tiny: Tiny, make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(objective="sft", rollout=GROUP.model_dump())
    shard_set = open_encoded_shards(tiny.shards, tiny.policy)
    samples = [shard_set.sample(ref) for ref in shard_set.queries(split="train")[:2]]
    policies = [load_policy(tiny.policy, trainable=True) for _ in range(4)]

    def one(ranks: Ranks) -> Update:
        policy = policies[ranks.rank if ranks.world > 1 else 3]
        batch = written_responses(policy, Asking(TEMPLATE), samples[ranks.rank::ranks.world], config.rollout,
                                  StepName(0, 0, 0))
        optimizer = make_optimizer(policy, config.optimizer, ranks)
        return update_policy(policy, optimizer, batch, no_scores(batch), np.ones(batch.guided_BG.shape), CLONING,
                             config.optimizer)

    every, alone = on_ranks(3, one), one(ALONE)
    for update in every:
        assert isinstance(update, Update), update
        for name in ("loss", "accuracy", "grad_norm"):
            assert getattr(update, name) == pytest.approx(getattr(alone, name), rel=1e-5), name
    for policy in policies[:3]:
        for ours, plain in zip(policy.parameters(), policies[3].parameters(), strict=True):
            torch.testing.assert_close(ours, plain, atol=2e-5, rtol=0)  # Adam's first step is lr, here 1e-3
