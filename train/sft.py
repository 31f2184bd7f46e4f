"""Supervised training on the reasoning paths of a shard set: `objective: sft`, a cold start before the RL.

A base model seldom meets the form of a response, so nothing is there to reward. Here it imitates responses that stage 1
made possible: the guided prefix of a candidate path, `</think>` and the ground truth as the answer. Samples,
mini-batches, schedule, validation, checkpoints and export are those of RL; nothing is drawn, scored or rewarded, and
there is no reference. The loss is the mean of -log pi over the tokens of a mini-batch: RL's update, with every response
cloned.

Of a query `rollout.group` of its paths are learned, others in every epoch; a query without a path that fits is left out
and counted. With `reward.no_think` the response is the answer alone. Legend: B prompts, G paths, R response tokens."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from taro.grounding.prompts import Asking, answer_text
from taro.models.asking import ask
from taro.models.policy import Policy
from taro.models.sampler import Decoding
from taro.shards.reader import Sample
from taro.train.config import LossConfig, RolloutConfig
from taro.train.data import sample_name
from taro.train.measures import memory_gib
from taro.train.open import Run
from taro.train.prefixes import draw_paths, prefix_ids
from taro.train.rollouts import RolloutBatch, Scores, StepName, on_device
from taro.train.schedules import at_step
from taro.train.speed import phase_speeds
from taro.train.step import finish_step, stop_if_nonfinite
from taro.train.update import update_policy

__all__ = ["CLONING", "no_scores", "sft_step", "tell_without_path", "written_responses"]

CLONING = LossConfig(kl=0.0, off_policy="clone")
"""every response is imitated with weight 1"""
log = logging.getLogger(__name__)


def written_responses(policy: Policy, asking: Asking, samples: Sequence[Sample], config: RolloutConfig,
                      at: StepName) -> RolloutBatch:
    """The responses that a step imitates; a prompt has as many as it has paths, at most `config.group`."""
    G = 1 if asking.no_think else config.group
    ids_BG = [_targets(policy, asking, sample, config, at, G) for sample in samples]
    R = max((len(ids) for ids_G in ids_BG for ids in ids_G), default=1)
    ids_BGR = torch.full((len(samples), G, R), policy.pad_id)
    mask_BGR = torch.zeros(ids_BGR.shape, dtype=torch.bool)
    for b, ids_G in enumerate(ids_BG):
        for g, ids in enumerate(ids_G):
            ids_BGR[b, g, : len(ids)], mask_BGR[b, g, : len(ids)] = torch.tensor(ids), True
    shape = len(samples), G
    prompts = [ask(policy, asking, on_device(sample.features, policy.device), sample.query.text) for sample in samples]
    texts_BG = tuple(tuple(prompt.opened + policy.decode(ids[mask]) for ids, mask in zip(ids_GR, mask_GR, strict=True))
                     for prompt, ids_GR, mask_GR in zip(prompts, ids_BGR, mask_BGR, strict=True))
    return RolloutBatch(at, Decoding(config.max_new_tokens), tuple(samples), tuple(prompts), ids_BGR, mask_BGR,
                        torch.zeros(ids_BGR.shape), mask_BGR.sum(-1), torch.ones(shape, dtype=torch.bool),
                        np.ones(shape, dtype=bool), 0, texts_BG, given=True)


def _targets(policy: Policy, asking: Asking, sample: Sample, config: RolloutConfig, at: StepName,
             G: int) -> list[list[int]]:
    """Token ids of the responses to one query."""
    windows = [window.clip(sample.clip.duration_s) for window in sample.query.windows]
    answer = answer_text(windows if asking.protocol == "multi-window" else windows[:1])
    if asking.no_think:
        return [[*policy.encode_text(answer), policy.eos_ids[0]]]
    closing = [*policy.encode_text(f"</think>\n{answer}"), policy.eos_ids[0]]
    paths = draw_paths(sample.clip, sample.query, np.ones(G, dtype=bool), source=config.paths, seed=at.seed,
                       epoch=at.epoch, sample=sample_name(sample))
    prefixes = [prefix_ids(policy, asking.template, sample.query.text, [sample.clip.captions[i] for i in path],
                           limit=config.max_new_tokens - len(closing)) for path in paths if path]
    return [[*prefix, *closing] for prefix in prefixes if prefix]


def no_scores(batch: RolloutBatch) -> Scores:
    """What an update asks for besides; written responses are imitated whatever it is."""
    none_BGR = torch.zeros(batch.ids_BGR.shape)
    return Scores(none_BGR, None, none_BGR, np.zeros(len(batch.samples), dtype=bool), none_BGR.numpy())


def sft_step(run: Run) -> dict[str, Any]:
    """One step: returns its line of metrics.jsonl."""
    started, config, step, ranks = time.monotonic(), run.config, run.state.step, run.ranks
    with run.phases("samples"):
        epoch, samples = run.ahead.take(step)
        batch = written_responses(run.policy, run.asking, samples, config.rollout, StepName(config.seed, epoch, step))
    run.pause()
    with run.phases("update"):
        update = update_policy(run.policy, run.optimizer, batch, no_scores(batch),
                               np.ones(batch.guided_BG.shape), CLONING, at_step(config.optimizer, step, run.steps),
                               bf16=run.bf16)
        run.refresh()
    there_BG = batch.mask_BGR.any(-1)
    counts = ranks.sum([int(there_BG.sum()), int(batch.mask_BGR.sum()), int((~there_BG.any(-1)).sum())])
    responses, tokens, without = (int(one) for one in counts)
    run.watch.counts.update({"queries": without, "steps": int(not responses)})
    if not responses and run.watch.counts["steps"] == 1:
        log.warning("step %d: none of its %d queries has a candidate path that fits rollout.max_new_tokens, so nothing "
                    "is learned; preprocess with captions, or choose another rollout.paths. Further steps like it are "
                    "counted and told of at the end", step, without)
    seconds, phases = time.monotonic() - started, run.phases.take()
    values = finish_step(run, {
        "epoch": epoch, "phase": "sft", "loss": update.loss, "accuracy": update.accuracy, "responses": responses,
        "tokens": tokens, "length": tokens / max(responses, 1), "without_path": without, "lr": update.lr,
        "grad_norm": update.grad_norm, "skipped": update.skipped, "tokens_per_s": tokens / max(seconds, 1e-9),
        "memory_gib": max(float(one) for one in ranks.all_of([memory_gib()])[:, 0]), "seconds": seconds,
        "phases": phases, "tokens_per_s_by_phase": phase_speeds(batch, phases, ranks)}, update)
    stop_if_nonfinite(run)
    return values


def tell_without_path(run: Run) -> None:
    """At the end of a run, or of its part since it was resumed: how often nothing could be learned."""
    found = run.watch.counts
    if found["queries"]:
        log.warning("%s draws of queries had no candidate path that fits rollout.max_new_tokens and were left out; %s "
                    "steps had no other", f"{found['queries']:,}", f"{found['steps']:,}")
