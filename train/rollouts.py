"""A step's rollouts: drawn from the policy, scored under it, under the start policy, and under a disrupted video.

Everything that later parts of the step need stands in one frozen `RolloutBatch` whose leading dimensions are checked.
The scoring pass gives the old log-probs, so that several mini-batches and inner epochs work (METHOD 4, row 11); every
pass packs a group into one row of its own, so old, reference and current passes have the same shapes (METHOD 6).
Legend: B prompts, G rollouts of a group, P prompt tokens, R response tokens, S temporal patches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from taro.core import draws
from taro.grounding.boundaries import Boundary
from taro.models.features import VideoFeatures
from taro.models.logprobs import score
from taro.models.policy import Policy, Prompt
from taro.models.sampler import Decoding, generate
from taro.train.config import TrainConfig
from taro.train.curriculum import guided_rollouts
from taro.train.disruption import disrupted
from taro.train.prefixes import draw_paths, prefix_ids

if TYPE_CHECKING:
    from taro.grounding.prompts import PromptTemplate
    from taro.shards.reader import Sample

__all__ = ["RolloutBatch", "Scores", "autocast", "counted_tokens", "disrupt", "roll_out", "sample_name",
           "score_batch", "score_prompts", "uses_bf16"]


@dataclass(frozen=True)
class RolloutBatch:
    """Responses of B prompts, G each, of one step."""

    step: int
    epoch: int
    samples: tuple[Sample, ...]
    prompts: tuple[Prompt, ...]
    ids_BGR: torch.Tensor
    mask_BGR: torch.Tensor
    sampled_BGR: torch.Tensor
    """log-probs at sampling time"""
    forced_BG: torch.Tensor
    finished_BG: torch.Tensor
    guided_BG: np.ndarray
    """rollouts that open with a guided prefix"""
    fallbacks: int
    """rollouts that were to be guided and had no path left"""
    texts_BG: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        B, G, R = self.ids_BGR.shape
        assert (len(self.samples), len(self.prompts), len(self.texts_BG)) == (B, B, B), (
            f"{len(self.samples)} samples, {len(self.prompts)} prompts, {len(self.texts_BG)} texts, B = {B}")
        assert self.mask_BGR.shape == self.sampled_BGR.shape == (B, G, R)
        assert self.forced_BG.shape == self.finished_BG.shape == self.guided_BG.shape == (B, G)


@dataclass(frozen=True)
class Scores:
    """Log-probs [B, G, R] of one batch. old: under the policy that drew it; reference: None where kl is 0; disrupted:
    None where no drop is asked for; disrupted_B: which videos could be disrupted; over_BGR: tokens the drop counts."""

    old_BGR: torch.Tensor
    reference_BGR: torch.Tensor | None
    disrupted_BGR: torch.Tensor
    disrupted_B: np.ndarray
    over_BGR: np.ndarray


def sample_name(sample: Sample) -> str:
    """Names a query of a clip in every draw: of several sets with its set's name, and apart from itself where a step
    holds it again."""
    place = f"{sample.from_set}{f'#{sample.repeat}' if sample.repeat else ''}"
    return f"{f'{place}:' if place else ''}{sample.clip.key}/{sample.query.id}"


def uses_bf16(config: TrainConfig, device: torch.device) -> bool:
    """Whether a run computes in bfloat16 (auto: on cuda)."""
    return config.dtype == "bfloat16" or (config.dtype == "auto" and device.type == "cuda")


def autocast(config: TrainConfig, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """bfloat16 computation over float32 weights where the configuration asks for it (auto: on cuda)."""
    if uses_bf16(config, device):
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def roll_out(policy: Policy, template: PromptTemplate, samples: Sequence[Sample], config: TrainConfig, *, step: int,
             epoch: int, probability: float) -> RolloutBatch:
    """Draws G responses to each sample, guided ones with their prefix forced.

    Args: probability: that a rollout is guided at this step (`taro.train.curriculum`).
    """
    G, knobs = config.rollout.group, config.rollout
    asks = [template.user_text(sample.query.text, no_think=config.reward.no_think) for sample in samples]
    prompts = [policy.prompt(_on(sample.features, policy.device), ask)
               for sample, ask in zip(samples, asks, strict=True)]
    forced_BG, fallbacks = [], 0
    for sample in samples:
        name = sample_name(sample)
        wanted_G = guided_rollouts(probability, G, seed=config.seed, epoch=epoch, step=step, sample=name)
        paths = draw_paths(sample.clip, sample.query, wanted_G, source=knobs.paths, seed=config.seed, epoch=epoch,
                           sample=name)
        forced_G = [prefix_ids(policy, template, sample.query.text, [sample.clip.captions[i] for i in path or ()],
                               limit=knobs.max_new_tokens - knobs.min_free_tokens) for path in paths]
        fallbacks += int(wanted_G.sum()) - sum(bool(ids) for ids in forced_G)
        forced_BG.append(forced_G)
    ids_BGR, mask_BGR, sampled_BGR, finished_BG = _decode(policy, prompts, forced_BG, samples, config, step, epoch)
    texts_BG = tuple(tuple(policy.decode(ids[mask]) for ids, mask in zip(ids_GR, mask_GR, strict=True))
                     for ids_GR, mask_GR in zip(ids_BGR, mask_BGR, strict=True))
    lengths_BG = torch.tensor([[len(ids) for ids in forced_G] for forced_G in forced_BG])
    return RolloutBatch(step, epoch, tuple(samples), tuple(prompts), ids_BGR, mask_BGR, sampled_BGR, lengths_BG,
                        finished_BG, lengths_BG.numpy() > 0, fallbacks, texts_BG)


def _on(features: VideoFeatures, device: torch.device) -> VideoFeatures:
    return replace(features, main_SND=features.main_SND.to(device),
                   deepstack_LSND=tuple(level.to(device) for level in features.deepstack_LSND))


def _decode(policy: Policy, prompts: list[Prompt], forced_BG: list[list[list[int]]], samples: Sequence[Sample],
            config: TrainConfig, step: int, epoch: int) -> tuple[torch.Tensor, ...]:
    """ids, mask, log-probs [B, G, R] and finished [B, G], on the CPU, decoded `batch_prompts` prompts at a time and
    cut to the longest response."""
    knobs, parts = config.rollout, []
    decoding = Decoding(knobs.max_new_tokens, temperature=knobs.temperature, top_p=knobs.top_p)
    for start in range(0, len(prompts), knobs.batch_prompts):
        part = slice(start, start + knobs.batch_prompts)
        uniforms_BGR = np.stack([
            np.stack([draws.uniforms(knobs.max_new_tokens, "rollout", config.seed, epoch, step, sample_name(sample), g)
                      for g in range(knobs.group)]) for sample in samples[part]])
        with autocast(config, policy.device):
            drawn = generate(policy, prompts[part], G=knobs.group, decoding=decoding, forced=forced_BG[part],
                             uniforms_BGR=uniforms_BGR)
        parts.append((drawn.ids_BGR, drawn.mask_BGR, drawn.logprobs_BGR, drawn.finished_BG))
    ids, mask, logprobs, finished = (torch.cat(group).cpu() for group in zip(*parts, strict=True))
    R = max(int(mask.sum(-1).max()), 1)
    return ids[..., :R], mask[..., :R], logprobs[..., :R], finished


def disrupt(batch: RolloutBatch, config: TrainConfig, *,
            boundary: Boundary = "both") -> tuple[list[Prompt], np.ndarray]:
    """The same prompts over features disrupted by `reward.disruption`, and which of them [B] could be."""
    prompts, changed = [], []
    for sample, prompt in zip(batch.samples, batch.prompts, strict=True):
        windows = [window.clip(sample.clip.duration_s) for window in sample.query.windows]
        features = disrupted(config.reward.disruption, prompt.features, windows, variants=sample.variants,
                             seed=config.seed, epoch=batch.epoch, sample=sample_name(sample), dt_s=config.reward.dt_s,
                             boundary=boundary)
        changed.append(features is not None)
        prompts.append(prompt if features is None else prompt.with_features(features))
    return prompts, np.array(changed)


@torch.no_grad()
def score_prompts(policy: Policy, prompts: Sequence[Prompt], batch: RolloutBatch, config: TrainConfig) -> torch.Tensor:
    """Log-probs [B, G, R] of a batch's responses under a policy, after these prompts, on the CPU."""
    with autocast(config, policy.device):
        return score(policy, prompts, batch.ids_BGR, batch.mask_BGR, temperature=config.rollout.temperature).cpu()


def counted_tokens(policy: Policy, batch: RolloutBatch, config: TrainConfig) -> np.ndarray:
    """bool [B, G, R]: tokens over which the drop is a mean (`reward.drop_over`)."""
    over_BGR = batch.mask_BGR.clone()
    if config.reward.drop_over == "reasoning":
        over_BGR = torch.stack([torch.stack([policy.reasoning_mask(ids) for ids in ids_GR])
                                for ids_GR in batch.ids_BGR]) & batch.mask_BGR
    return np.asarray(over_BGR.numpy())


def score_batch(policy: Policy, reference: Policy | None, batch: RolloutBatch, config: TrainConfig) -> Scores:
    """Scores a batch under the current policy, the reference, and the disrupted videos."""
    disrupted, changed_B = disrupt(batch, config)
    return Scores(old_BGR=score_prompts(policy, batch.prompts, batch, config),
                  reference_BGR=None if reference is None else score_prompts(reference, batch.prompts, batch, config),
                  disrupted_BGR=score_prompts(policy, disrupted, batch, config), disrupted_B=changed_B,
                  over_BGR=counted_tokens(policy, batch, config))
