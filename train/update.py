"""One step's updates: mini-batches over its rollouts, micro-batches that only bound memory.

The loss of a mini-batch is divided by its own denominator, counted over all ranks before any backward pass, so the
gradient does not depend on the micro-batch size (docs/method.md, difference 13) nor on the number of ranks. All ranks
take as many micro-batches as the one with most prompts. A non-finite loss or gradient skips the update and is counted.
What is learned from some prompts is asked of a `Judge` once their log-probs are known: it knows already
(`update_policy`), or takes those log-probs as the old ones (`taro.train.one_pass`).
Legend: B prompts, G rollouts, R response tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch

from taro.models.adapters import dropout_on
from taro.models.logprobs import Also, score_also
from taro.models.offload import Offload, Recompute
from taro.models.packing import Packer, one_group_a_row
from taro.models.policy import Policy
from taro.train.algorithms.base import Algorithm, Tokens, make_algorithm
from taro.train.algorithms.cloning import cloning_weights
from taro.train.algorithms.losses import LossParts, policy_loss
from taro.train.config import LossConfig, OptimizerConfig
from taro.train.data import sample_name
from taro.train.optimizer.optimizer import Optimizer
from taro.train.ranks import ALONE, Ranks
from taro.train.rollouts import RolloutBatch, Scores

__all__ = ["Gradient", "Judge", "Judged", "Update", "Work", "accumulate", "apply_gradient", "learned_tokens",
           "make_optimizer", "recompute_of", "update_of", "update_policy"]


@dataclass(frozen=True)
class Update:
    """What the updates of one step did, averaged over them. `lr`: the learning rate of all of them; `skipped`: updates
    left out as not finite. The rest is None where nobody asks for it: `entropy` of the policy and `accuracy` (tokens
    that are its first choice), means over tokens; `masked`: responses left out of the loss as truncated."""

    loss: float
    kl: float
    clip_fraction: float
    grad_norm: float
    lr: float
    skipped: int
    entropy: float | None = None
    accuracy: float | None = None
    masked: int | None = None

    @property
    def further(self) -> dict[str, float]:
        """What was asked for besides, by its name in metrics.jsonl."""
        found = {"policy_entropy": self.entropy, "accuracy": self.accuracy, "masked": self.masked}
        return {name: value for name, value in found.items() if value is not None}


class Judged(NamedTuple):
    """What is learned from some prompts: log-probs of the policy that drew, [B, G, R], and advantages [B, G]."""

    old_BGR: torch.Tensor
    advantages_BG: np.ndarray


class Judge(Protocol):
    """What says so, asked once for each micro-batch of an update, between its forward and its backward pass."""

    def packer(self, micro: slice) -> Packer:
        """How the forward pass over these prompts lays out its rows."""

    def __call__(self, micro: slice, current_BGR: torch.Tensor) -> Judged:
        """current_BGR: log-probs of these prompts' responses now, without a gradient."""


@dataclass(frozen=True)
class Work:
    """What every update of a step needs. `scored_BGR`: tokens that the forward pass goes through, `mask_BGR`: those of
    them that are learned from."""

    policy: Policy
    batch: RolloutBatch
    scored_BGR: torch.Tensor
    mask_BGR: torch.Tensor
    reference_BGR: torch.Tensor | None
    judge: Judge
    loss: LossConfig
    config: OptimizerConfig
    bf16: bool
    recompute: Recompute

    @property
    def algorithm(self) -> Algorithm:
        """What `loss` names."""
        return make_algorithm(self.loss)


class Gradient(NamedTuple):
    """Of a mini-batch, over all ranks: its loss, mean KL, clip fraction, norm, and means of entropy and accuracy."""

    loss: float
    kl: float
    clip_fraction: float
    norm: float
    entropy: float
    accuracy: float


class _Known:
    """Numbers of the whole batch that were there before its update."""

    def __init__(self, scores: Scores, advantages_BG: np.ndarray) -> None:
        self._scores, self._advantages_BG = scores, advantages_BG

    def packer(self, micro: slice) -> Packer:
        """A row a group."""
        return one_group_a_row

    def __call__(self, micro: slice, current_BGR: torch.Tensor) -> Judged:
        return Judged(self._scores.old_BGR[micro], self._advantages_BG[micro])


def make_optimizer(policy: Policy, config: OptimizerConfig, ranks: Ranks = ALONE, *, seed: int = 0) -> Optimizer:
    """AdamW over what of the policy is trained: language model and head, or adapters; the tower never."""
    return Optimizer(policy.named_parameters(), config, ranks, seed=seed)


def update_policy(policy: Policy, optimizer: Optimizer, batch: RolloutBatch, scores: Scores, advantages_BG: np.ndarray,
                  loss: LossConfig, config: OptimizerConfig, *, bf16: bool = False) -> Update:
    """`inner_epochs` passes over the batch in `mini_batches` updates each. `config`: its lr is that of this step
    (`taro.train.schedules.at_step`); `bf16`: compute under autocast. The batch is that of this rank: its prompt i is
    the step's prompt `rank + i * world`."""
    mask_BGR = learned_tokens(batch, loss)
    work = Work(policy, batch, mask_BGR, mask_BGR, scores.reference_BGR, _Known(scores, advantages_BG), loss, config,
                bf16, recompute_of(policy, config))
    ranks = optimizer.ranks
    size = int(ranks.sum([len(batch.samples)])[0]) // config.mini_batches
    done: list[Gradient] = []
    skipped = 0
    for again in range(config.inner_epochs):
        for number in range(config.mini_batches):
            first, last = (len(ranks.mine(bound)) for bound in (number * size, (number + 1) * size))
            done.append(accumulate(work, optimizer, range(first, last), -(-size // ranks.world), again))
            skipped += not apply_gradient(optimizer, done[-1], config.lr)
    return update_of(work, optimizer, done, skipped)


def recompute_of(policy: Policy, config: OptimizerConfig) -> Recompute:
    """How the update keeps activations."""
    return Offload(policy.device) if config.offload_activations else config.checkpoint_activations


def apply_gradient(optimizer: Optimizer, gradient: Gradient, lr: float) -> bool:
    """Takes the step of a mini-batch and clears its gradient; False, and no step, where it is not finite."""
    finite = math.isfinite(gradient.loss) and math.isfinite(gradient.norm)
    if finite:
        optimizer.step(lr, optimizer.clipped(gradient.norm))
    optimizer.begin()
    return finite


def update_of(work: Work, optimizer: Optimizer, done: list[Gradient], skipped: int) -> Update:
    """What the updates of a step did."""
    cut = int(optimizer.ranks.sum([int((~work.batch.finished_BG).sum())])[0])
    loss, kl, clipped, norm, entropy, accuracy = (float(np.mean(values)) for values in zip(*done, strict=True))
    return Update(loss, kl, clipped, norm, work.config.lr, skipped, entropy if work.loss.entropy else None,
                  accuracy if work.batch.given else None, cut if work.loss.mask_truncated else None)


def learned_tokens(batch: RolloutBatch, loss: LossConfig) -> torch.Tensor:
    """bool [B, G, R]: the valid tokens, under `loss.mask_truncated` those of responses that ended."""
    return batch.mask_BGR & batch.finished_BG.unsqueeze(-1) if loss.mask_truncated else batch.mask_BGR


def accumulate(work: Work, optimizer: Optimizer, mini: range, most: int, again: int = 0) -> Gradient:
    """Accumulates a mini-batch's gradient. `mini`: which prompts of this rank it holds; `most`: the largest number that
    a rank may hold of it; `again`: of the pass over the step's batch."""
    batch, mask_BGR = work.batch, work.mask_BGR[mini.start : mini.stop]
    share = work.algorithm.denominator(mask_BGR, max_new_tokens=batch.decoding.max_new_tokens)
    denominator, tokens = (max(float(one), 1.0) for one in optimizer.ranks.sum([share, int(mask_BGR.sum())]))
    sums = np.zeros(5)
    for offset in range(0, most, work.config.micro_prompts):
        start = mini.start + offset
        if start < mini.stop:
            micro = slice(start, min(start + work.config.micro_prompts, mini.stop))
            at = batch.at
            with dropout_on(work.policy, [(at.seed, at.step, again, sample_name(one)) for one in batch.samples[micro]]):
                parts, right = _micro_batch(work, micro, denominator)
                parts.loss.backward()
            sums += float(parts.loss.detach()), parts.kl_sum, parts.clipped_sum, parts.entropy_sum, right
        optimizer.collect()
    loss, kl, clipped, entropy, accuracy = (float(one) for one in optimizer.ranks.sum(sums) / [1, *[tokens] * 4])
    return Gradient(loss, kl, clipped, optimizer.norm(), entropy, accuracy)


def _micro_batch(work: Work, micro: slice, denominator: float) -> tuple[LossParts, float]:
    """The loss of a few prompts, with its graph, and how many tokens that were given (`RolloutBatch.given`) are the
    policy's first choice."""
    policy, batch, reference_BGR, loss = work.policy, work.batch, work.reference_BGR, work.loss
    wanted: tuple[tuple[Also, bool], ...] = (("entropy", loss.entropy > 0), ("top", batch.given))
    also = [name for name, asked in wanted if asked]
    device = policy.device
    with torch.autocast(device.type, torch.bfloat16, enabled=work.bf16):
        current_BGR, *found = score_also(policy, batch.prompts[micro], batch.ids_BGR[micro], work.scored_BGR[micro],
                                         also=also, temperature=batch.decoding.temperature,
                                         checkpoint_activations=work.recompute, packer=work.judge.packer(micro))
    old_BGR, advantages_BG = work.judge(micro, current_BGR.detach())
    cloning_BG = cloning_weights(advantages_BG, mode=loss.off_policy, beta=loss.awr_beta)
    weights_BG, cloning = (torch.as_tensor(values_BG, dtype=torch.float32, device=device)
                           for values_BG in (advantages_BG, cloning_BG))
    tokens = Tokens(current_BGR, old_BGR.to(device), work.mask_BGR[micro].to(device), weights_BG,
                    found[0] if loss.entropy else None)
    parts = policy_loss(work.algorithm, tokens, torch.as_tensor(batch.guided_BG[micro], device=device), cloning,
                        None if reference_BGR is None else reference_BGR[micro].to(device), kl=loss.kl,
                        entropy=loss.entropy, denominator=denominator)
    return parts, float(found[-1].detach().sum()) if batch.given else 0.0
