"""Checkpoints whose chat template opens `<think>` itself: everything that is read of a response is read as if the
response had opened it. Each test has the same weights twice, with and without the tag in the prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from taro.cli.app import main
from taro.core.errors import ConfigError
from taro.core.jsonl import read_jsonl
from taro.grounding.answers import format_ok, parse_reasoning
from taro.grounding.prompts import Asking
from taro.models.asking import asking_of
from taro.models.features import FrameSampling
from taro.models.load import load_policy
from taro.models.logprobs import score
from taro.models.policy import Policy
from taro.models.sampler import Decoding
from taro.train.config import RolloutConfig
from taro.train.data import sample_name
from taro.train.disruption import Disruption
from taro.train.evaluate import evaluate_policy
from taro.train.loop import train
from taro.train.open import open_run
from taro.train.prefixes import prefix_ids
from taro.train.rewards import compute_rewards, log_prob_drop
from taro.train.rollouts import RolloutBatch, StepName, counted_tokens, roll_out, score_batch
from taro.train.sensitivity.measure import measure_sensitivity
from taro.train.sets import open_encoded_shards
from tests.helpers_models import tiny_qwen3_vl, with_template
from tests.train.conftest import Tiny
from tests.train.tiny import TEMPLATE, clip_record

OPENED = "<think>\n"


@pytest.fixture(scope="module")
def folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_template(tiny.policy, tmp_path_factory.mktemp("thinking") / "policy", OPENED)


@pytest.fixture(scope="module")
def plain(tiny: Tiny) -> Policy:
    return load_policy(tiny.policy)


@pytest.fixture(scope="module")
def thinking(folder: Path) -> Policy:
    return load_policy(folder)


def samples(tiny: Tiny, policy: Policy, count: int = 3) -> list[Any]:
    shard_set = open_encoded_shards(tiny.shards, policy.folder)
    return [shard_set.sample(ref) for ref in shard_set.queries(split="train")[:count]]


def with_tag(plain: Policy, batch: RolloutBatch) -> RolloutBatch:
    """The same responses where the response opens the tag and the prompt does not."""
    tag = torch.tensor(plain.encode_text(OPENED))
    B, G, _ = batch.ids_BGR.shape
    before = tag.expand(B, G, -1)
    prompts = tuple(plain.prompt(prompt.features, TEMPLATE.user_text(sample.query.text))
                    for prompt, sample in zip(batch.prompts, batch.samples, strict=True))
    return replace(batch, prompts=prompts, ids_BGR=torch.cat([before, batch.ids_BGR], -1),
                   mask_BGR=torch.cat([torch.ones_like(before, dtype=torch.bool), batch.mask_BGR], -1),
                   sampled_BGR=torch.cat([torch.zeros(before.shape), batch.sampled_BGR], -1))


@pytest.mark.parametrize("guide", [0.0, 0.5, 1.0])
def test_rollouts_masks_drops_and_rewards_are_those_of_the_tag_in_the_response(
        plain: Policy, thinking: Policy, tiny: Tiny, tmp_path: Path, guide: float) -> None:
    config = tiny.config(tmp_path / "run")
    batch = roll_out(thinking, Asking(TEMPLATE), samples(tiny, thinking), config.rollout, StepName(0, 1, 5),
                     guide=guide)
    same, tag = with_tag(plain, batch), len(plain.encode_text(OPENED))
    for texts_G, ids_GR, mask_GR in zip(batch.texts_BG, same.ids_BGR, same.mask_BGR, strict=True):
        assert all(text.count("<think>") == 1 for text in texts_G)
        assert [plain.decode(ids[mask]) for ids, mask in zip(ids_GR, mask_GR, strict=True)] == list(texts_G)
    assert {prompt.opened for prompt in batch.prompts} == {OPENED} != {prompt.opened for prompt in same.prompts}
    mine, theirs = (counted_tokens(thinking, one, "reasoning") for one in (batch, same))
    assert mine.any() and np.array_equal(mine, theirs[..., tag:])
    ours, wanted = score_batch(thinking, None, batch, config.reward), score_batch(plain, None, same, config.reward)
    torch.testing.assert_close(ours.old_BGR, wanted.old_BGR[..., tag:], atol=1e-4, rtol=0)
    parts, expected = compute_rewards(batch, ours, config.reward), compute_rewards(same, wanted, config.reward)
    for name in ("format_BG", "tiou_BG", "iou_BG"):
        assert getattr(parts, name).any() and np.array_equal(getattr(parts, name), getattr(expected, name))
    drop_BG = log_prob_drop(*(x[..., tag:].numpy() for x in (wanted.old_BGR, wanted.disrupted_BGR)), theirs[..., tag:])
    np.testing.assert_allclose(parts.drop_BG, drop_BG, atol=1e-5)


def test_a_guided_rollout_is_the_prompt_then_the_prefix_with_one_tag(plain: Policy, thinking: Policy, tiny: Tiny,
                                                                     tmp_path: Path) -> None:
    config, asking = tiny.config(tmp_path / "run", rollout={"max_new_tokens": 128}), Asking(TEMPLATE)
    chosen, at = samples(tiny, thinking), StepName(0, 1, 5)
    ours, theirs = (roll_out(policy, asking, chosen, config.rollout, at, guide=1.0) for policy in (thinking, plain))
    for b, prompt in enumerate(ours.prompts):
        for g in range(config.rollout.group):
            mine = [*prompt.ids_P.tolist(), *ours.ids_BGR[b, g, : ours.forced_BG[b, g]].tolist()]
            assert mine == [*theirs.prompts[b].ids_P.tolist(), *theirs.ids_BGR[b, g, : theirs.forced_BG[b, g]].tolist()]
            assert ours.texts_BG[b][g].startswith("<think>\nab\nFrom ") and ours.guided_BG[b, g]
    assert len({sample_name(sample) for sample in chosen}) == len(chosen)


@pytest.mark.parametrize(("opened", "said"), [
    ("<think>", "\nab\nFrom"), ("<think>\n", "ab\nFrom"), ("<think>\n\n", "ab\nFrom"), ("<think>\nOkay, ", "ab\nFrom"),
    ("<think>\nab\n", "From"), ("", "<think>\nab\nFrom"),
])  # fmt: skip
def test_a_prefix_says_what_was_not_opened(tiny: Tiny, tmp_path: Path, opened: str, said: str) -> None:
    policy = load_policy(with_template(tiny.policy, tmp_path / "x", opened))
    captions = clip_record(0, "train")[0].captions
    full = prefix_ids(policy, TEMPLATE, "ab", captions, limit=1000)
    assert policy.decode(full).startswith(said) and policy.decode(full).endswith(", go\n")
    assert len(prefix_ids(policy, TEMPLATE, "ab", captions, limit=len(full) - 1)) < len(full)


def test_greedy_answers_scores_and_sensitivity_are_the_same(plain: Policy, thinking: Policy, tiny: Tiny) -> None:
    """This policy opens every response with the tag, so that the two say the same."""
    found = []
    for policy in (plain, thinking):
        shard_set = open_encoded_shards(tiny.shards, policy.folder)
        found.append(evaluate_policy(policy, shard_set, asking_of(policy.folder), Decoding(96, temperature=0.0)))
    tag = len(plain.encode_text(OPENED))
    assert all(row.text.startswith(OPENED) for row in found[0])
    assert found[0] == [replace(row, tokens=row.tokens + tag) for row in found[1]]
    measured = measure_sensitivity(thinking, open_encoded_shards(tiny.shards, thinking.folder),
                                   asking_of(thinking.folder), [Disruption("patch", 3.0, "both")],
                                   rollout=RolloutConfig(group=4, max_new_tokens=96))
    assert np.isfinite(measured.drops_CN).mean() > 0.9
    for rollout in measured.rollouts:
        opened, rest = OPENED + "".join(rollout.pieces), rollout.text
        assert rest.startswith(opened) and rest[len(opened) :].partition("</think>")[0] == ""


def test_a_run_a_report_and_an_export(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    config = tiny.config(tmp_path / "run", policy=str(folder), length={"amount": 2}, curriculum={"amount": 1},
                         validation={"split": "val", "max_new_tokens": 96})
    report = train(config)
    rows = [row for step in range(2) for row in read_jsonl(config.out / "rollouts" / f"step-{step:06d}.jsonl")]
    assert {row["guided"] for row in rows} == {True, False}
    assert all(row["text"].startswith(OPENED) and row["text"].count("<think>") == 1 for row in rows)
    assert [row["format"] for row in rows] == [float(format_ok(row["text"])) for row in rows]
    assert any(row["format"] for row in rows if not row["guided"])
    assert all(row["drop"] is not None for row in rows if parse_reasoning(row["text"]).text)
    assert load_policy(report.export).prompts.opened == OPENED
    with pytest.raises(SystemExit) as ended:
        main(["report", str(config.out), "--out", str(tmp_path / "report.html")])
    assert not ended.value.code and "From " in (tmp_path / "report.html").read_text()


def test_no_run_of_answers_alone_is_begun(folder: Path, tiny: Tiny, tmp_path: Path,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny.config(tmp_path / "run", policy=str(folder), curriculum={"schedule": "off"},
                         reward={"no_think": True, "drop_over": "response"})
    with pytest.raises(ConfigError, match="its chat template opens <think> itself"):
        open_run(config, resume=False)
    assert not config.out.exists()
    for mode in ("--no-think", "--both"):
        with pytest.raises(SystemExit) as ended:
            main(["eval", "--policy", str(folder), "--shards", str(tiny.shards), "--device", "cpu", mode])
        assert ended.value.code == 1 and "opens <think> itself" in " ".join(capsys.readouterr().err.split())


def test_the_second_family_too(tmp_path: Path) -> None:
    base = tiny_qwen3_vl(tmp_path / "base")
    plain = load_policy(base, tower=True)
    thinking = load_policy(with_template(base, tmp_path / "thinking", OPENED), tower=True)
    frames = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    features = plain.encode(frames, np.arange(8) / 2, FrameSampling(), duration_s=4.0)
    response = "ab</think>\n<answer>1.0s to 2.0s</answer>"
    ours, theirs = thinking.prompt(features, "when?"), plain.prompt(features, "when?")
    rows = [(thinking, ours, response), (plain, theirs, OPENED + response)]
    scores = []
    for policy, prompt, text in rows:
        ids = policy.encode_text(text)
        assert format_ok(prompt.opened + text)
        whole = torch.ones(1, 1, len(ids), dtype=torch.bool)
        scores.append(score(policy, [prompt], torch.tensor([[ids]]), whole)[0, 0])
        kept = [i for i, keep in zip(ids, policy.reasoning_mask(ids, prompt.opened), strict=True) if keep]
        assert policy.decode(kept).strip() == "ab"
    tag = len(plain.encode_text(OPENED))
    torch.testing.assert_close(scores[0], scores[1][tag:], atol=1e-5, rtol=0)
