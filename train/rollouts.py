"""A step's rollouts: drawn from the policy, scored under it, under the start policy, and under a disrupted video.

Everything that later parts of the step need is in one frozen `RolloutBatch` whose leading dimensions are checked. The
scoring pass gives the old log-probs, so several mini-batches and inner epochs work (docs/method.md, difference 11);
every pass packs a group into one row of its own, so old, reference and current passes have the same shapes. The pass
over the disrupted video begins at the first patch that moved (`taro.models.reused`).
Legend: B prompts, G rollouts of a group, P prompt tokens, R response tokens, S temporal patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from taro.core import draws
from taro.grounding.prompts import Asking
from taro.models.asking import ask
from taro.models.decoding import sampler_of
from taro.models.features import VideoFeatures
from taro.models.logprobs import score
from taro.models.packing import Packer, one_group_a_row
from taro.models.policy import Policy
from taro.models.prompt import Prompt
from taro.models.reused import KeptPrefixes, shared_tokens
from taro.models.sampler import Decoding, Sampler
from taro.shards.reader import Sample
from taro.train.config import RewardConfig, RolloutConfig
from taro.train.curriculum import guided_rollouts
from taro.train.data import sample_name
from taro.train.disruption import Disruption
from taro.train.prefixes import draw_paths, prefix_ids

__all__ = ["Disrupted", "RolloutBatch", "Scores", "StepName", "counted_tokens", "disrupt", "on_device", "roll_out",
           "score_batch", "score_prompts"]


@dataclass(frozen=True)
class StepName:
    """What names every draw of a step, besides its sample and rollout. round: 0, or which time a group is drawn again
    (`taro.train.redraws`)."""

    seed: int
    epoch: int
    step: int
    round: int = 0


@dataclass(frozen=True)
class RolloutBatch:
    """Responses to B prompts, G each, of one step."""

    at: StepName
    decoding: Decoding
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
    """responses, each behind what its prompt opened of it (`Prompt.opened`)"""
    given: bool = False
    """whether the responses were written, not drawn (`taro.train.sft`): then nothing is known of their sampling"""

    def __post_init__(self) -> None:
        B, G, R = self.ids_BGR.shape
        assert (len(self.samples), len(self.prompts), len(self.texts_BG)) == (B, B, B), (
            f"{len(self.samples)} samples, {len(self.prompts)} prompts, {len(self.texts_BG)} texts, B = {B}")
        assert self.mask_BGR.shape == self.sampled_BGR.shape == (B, G, R)
        assert self.forced_BG.shape == self.finished_BG.shape == self.guided_BG.shape == (B, G)

    def part(self, some: slice) -> RolloutBatch:
        """The batch of some of its prompts; fallbacks are counted by the whole."""
        names = ("samples", "prompts", "ids_BGR", "mask_BGR", "sampled_BGR", "forced_BG", "finished_BG", "guided_BG",
                 "texts_BG")
        return replace(self, fallbacks=0, **{name: getattr(self, name)[some] for name in names})


@dataclass(frozen=True)
class Scores:
    """Log-probs [B, G, R] of one batch. old: under the policy that drew it; reference: None where kl is 0; disrupted:
    under the disrupted videos; disrupted_B: which videos could be disrupted; over_BGR: tokens the drop counts."""

    old_BGR: torch.Tensor
    reference_BGR: torch.Tensor | None
    disrupted_BGR: torch.Tensor
    disrupted_B: np.ndarray
    over_BGR: np.ndarray

    @staticmethod
    def joined(parts: Sequence[Scores], reference_BGR: torch.Tensor | None) -> Scores:
        """The scores of a batch, from those of its parts in order."""
        old_BGR, disrupted_BGR = (torch.cat([getattr(one, name) for one in parts])
                                  for name in ("old_BGR", "disrupted_BGR"))
        return Scores(old_BGR, reference_BGR, disrupted_BGR, np.concatenate([one.disrupted_B for one in parts]),
                      np.concatenate([one.over_BGR for one in parts]))


def roll_out(policy: Policy, asking: Asking, samples: Sequence[Sample], config: RolloutConfig, at: StepName, *,
             guide: float = 0.0, bf16: bool = False, sampler: Sampler | None = None) -> RolloutBatch:
    """Draws G responses to each sample, guided ones with their prefix forced.

    Args: guide: probability that a rollout is guided at this step (`taro.train.curriculum`); bf16: compute under
    autocast; sampler: what draws, None: the policy's decoder."""
    sampler = sampler or sampler_of(policy)
    prompts = [ask(policy, asking, on_device(sample.features, policy.device), sample.query.text) for sample in samples]
    forced_BG, fallbacks = [], 0
    for sample in samples:
        name = sample_name(sample)
        wanted_G = guided_rollouts(guide, config.group, seed=at.seed, epoch=at.epoch, step=at.step, sample=name)
        paths = draw_paths(sample.clip, sample.query, wanted_G, source=config.paths, seed=at.seed, epoch=at.epoch,
                           sample=name)
        forced_G = [prefix_ids(policy, asking.template, sample.query.text,
                               [sample.clip.captions[i] for i in path or ()],
                               limit=config.max_new_tokens - config.min_free_tokens) for path in paths]
        fallbacks += int(wanted_G.sum()) - sum(bool(ids) for ids in forced_G)
        forced_BG.append(forced_G)
    decoding = Decoding(config.max_new_tokens, temperature=config.temperature, top_p=config.top_p)
    autocast = torch.autocast(policy.device.type, torch.bfloat16, enabled=bf16)
    ids_BGR, mask_BGR, sampled_BGR, finished_BG = _nothing(config)
    if prompts:
        with autocast:
            drawn = sampler(prompts, G=config.group, decoding=decoding, forced=forced_BG,
                            uniforms_BGR=_uniforms(samples, config, at), at_once=config.batch_prompts)
        ids_BGR, mask_BGR, sampled_BGR, finished_BG = (
            x.cpu() for x in (drawn.ids_BGR, drawn.mask_BGR, drawn.logprobs_BGR, drawn.finished_BG))
    R = max(int(mask_BGR.flatten(0, 1).any(0).sum()), 1)
    ids_BGR, mask_BGR, sampled_BGR = ids_BGR[..., :R], mask_BGR[..., :R], sampled_BGR[..., :R]
    texts_BG = tuple(tuple(prompt.opened + policy.decode(ids[mask]) for ids, mask in zip(ids_GR, mask_GR, strict=True))
                     for prompt, ids_GR, mask_GR in zip(prompts, ids_BGR, mask_BGR, strict=True))
    lengths_BG = torch.tensor([len(ids) for forced_G in forced_BG for ids in forced_G]).long().view(-1, config.group)
    return RolloutBatch(at, decoding, tuple(samples), tuple(prompts), ids_BGR, mask_BGR, sampled_BGR, lengths_BG,
                        finished_BG, lengths_BG.numpy() > 0, fallbacks, texts_BG)


def on_device(features: VideoFeatures, device: torch.device) -> VideoFeatures:
    """The same features there."""
    return replace(features, main_SND=features.main_SND.to(device),
                   deepstack_LSND=tuple(level.to(device) for level in features.deepstack_LSND))


def _uniforms(samples: Sequence[Sample], config: RolloutConfig, at: StepName) -> np.ndarray:
    """One number in [0, 1) a token [B, G, max_new_tokens], a function of its names alone."""
    again = ("again", at.round) if at.round else ()
    return np.stack([
        np.stack([draws.uniforms(config.max_new_tokens, "rollout", at.seed, at.epoch, at.step, sample_name(sample), g,
                                *again)
                  for g in range(config.group)]) for sample in samples])


def _nothing(config: RolloutConfig) -> tuple[torch.Tensor, ...]:
    """Tokens, mask, log-probs and ends of no prompt: a rank may have none."""
    shape = 0, config.group, config.max_new_tokens
    return (torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool), torch.zeros(shape),
            torch.zeros(shape[:2], dtype=torch.bool))


def disrupt(batch: RolloutBatch, disruption: Disruption) -> tuple[list[Prompt], np.ndarray]:
    """The same prompts over disrupted features, and which of them [B] could be disrupted."""
    prompts, changed = [], []
    for sample, prompt in zip(batch.samples, batch.prompts, strict=True):
        windows = [window.clip(sample.clip.duration_s) for window in sample.query.windows]
        features = disruption.apply(prompt.features, windows, variants=sample.variants, seed=batch.at.seed,
                                    epoch=batch.at.epoch, sample=sample_name(sample))
        changed.append(features is not None)
        prompts.append(prompt if features is None else prompt.with_features(features))
    return prompts, np.array(changed, dtype=bool)


@torch.no_grad()
def score_prompts(policy: Policy, prompts: Sequence[Prompt], batch: RolloutBatch, *, bf16: bool = False,
                  packer: Packer = one_group_a_row) -> torch.Tensor:
    """Log-probs [B, G, R] of a batch's responses under a policy, after these prompts, on the CPU."""
    with torch.autocast(policy.device.type, torch.bfloat16, enabled=bf16):
        return score(policy, prompts, batch.ids_BGR, batch.mask_BGR, temperature=batch.decoding.temperature,
                     packer=packer).cpu()


class Disrupted:
    """A few prompts over disrupted videos, scored behind what the pass over the plain ones keeps for it. kept: give its
    `keep` to that pass as the packer; changed_B: which videos could be disrupted."""

    def __init__(self, batch: RolloutBatch, disruption: Disruption) -> None:
        self._batch = batch
        self._prompts, self.changed_B = disrupt(batch, disruption)
        shared_B = [shared_tokens(*pair) for pair in zip(batch.prompts, self._prompts, strict=True)]
        self._moved = [b for b, shared in enumerate(shared_B) if shared < len(batch.prompts[b].ids_P)]
        self.kept = KeptPrefixes([shared if b in self._moved else 0 for b, shared in enumerate(shared_B)])

    def scores(self, policy: Policy, old_BGR: torch.Tensor, config: RewardConfig, *, bf16: bool = False) -> Scores:
        """Scores, old and disrupted. A disrupted video that equals the plain one has its `old_BGR`."""
        disrupted_BGR = old_BGR.clone()
        for b in self._moved:
            part = self._batch.part(slice(b, b + 1))
            disrupted_BGR[b] = score_prompts(policy, [self._prompts[b]], part, bf16=bf16,
                                             packer=self.kept.of([b]).reuse)[0]
        return Scores(old_BGR, None, disrupted_BGR, self.changed_B,
                      counted_tokens(policy, self._batch, config.drop_over))


def counted_tokens(policy: Policy, batch: RolloutBatch, over: Literal["reasoning", "response"]) -> np.ndarray:
    """bool [B, G, R]: tokens over which the drop is a mean (`reward.drop_over`)."""
    over_BGR = batch.mask_BGR.clone()
    if over == "reasoning" and batch.prompts:
        over_BGR = torch.stack([torch.stack([policy.reasoning_mask(ids, prompt.opened) for ids in ids_GR])
                                for prompt, ids_GR in zip(batch.prompts, batch.ids_BGR, strict=True)]) & batch.mask_BGR
    return np.asarray(over_BGR.numpy())


def score_batch(policy: Policy, reference: Callable[[RolloutBatch], torch.Tensor] | None, batch: RolloutBatch,
                config: RewardConfig, *, bf16: bool = False) -> Scores:
    """Scores a batch under the current policy, the reference (`taro.train.reference`), and the disrupted videos."""
    parts = []
    for b in range(max(len(batch.prompts), 1)):  # of one prompt at a time keys and values are kept
        part = batch.part(slice(b, b + 1))
        disrupted = Disrupted(part, Disruption(config.disruption, config.dt_s))
        old_BGR = score_prompts(policy, part.prompts, part, bf16=bf16, packer=disrupted.kept.keep)
        parts.append(disrupted.scores(policy, old_BGR, config, bf16=bf16))
    return Scores.joined(parts, None if reference is None else reference(batch))
