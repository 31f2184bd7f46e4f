"""One step's updates: mini-batches over its rollouts, micro-batches that only bound memory.

The loss of a mini-batch is divided by its own denominator, counted over all ranks before any backward pass, so the
gradient does not depend on the micro-batch size (docs/method.md, difference 13) nor on the number of ranks. All ranks
take as many micro-batches as the one with most prompts. A non-finite loss or gradient skips the update and is counted.
Legend: B prompts, G rollouts, R response tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from taro.models.adapters import dropout_on
from taro.models.logprobs import Also, score_also
from taro.models.offload import Offload, Recompute
from taro.models.policy import Policy
from taro.train.algorithms.base import Algorithm, Tokens, make_algorithm
from taro.train.algorithms.cloning import cloning_weights
from taro.train.algorithms.losses import LossParts, policy_loss
from taro.train.config import LossConfig, OptimizerConfig
from taro.train.data import sample_name
from taro.train.optimizer.optimizer import Optimizer
from taro.train.ranks import ALONE, Ranks
from taro.train.rollouts import RolloutBatch, Scores

__all__ = ["Update", "learned_tokens", "make_optimizer", "update_policy"]


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


@dataclass(frozen=True)
class _Work:
    """What every update of a step needs. `mask_BGR`: tokens that are learned from."""

    policy: Policy
    batch: RolloutBatch
    mask_BGR: torch.Tensor
    scores: Scores
    advantages_BG: np.ndarray
    cloning_BG: np.ndarray
    algorithm: Algorithm
    loss: LossConfig
    config: OptimizerConfig
    bf16: bool
    recompute: Recompute


def make_optimizer(policy: Policy, config: OptimizerConfig, ranks: Ranks = ALONE, *, seed: int = 0) -> Optimizer:
    """AdamW over what of the policy is trained: language model and head, or adapters; the tower never."""
    return Optimizer(policy.named_parameters(), config, ranks, seed=seed)


def update_policy(policy: Policy, optimizer: Optimizer, batch: RolloutBatch, scores: Scores, advantages_BG: np.ndarray,
                  loss: LossConfig, config: OptimizerConfig, *, bf16: bool = False) -> Update:
    """`inner_epochs` passes over the batch in `mini_batches` updates each. `config`: its lr is that of this step
    (`taro.train.schedules.at_step`); `bf16`: compute under autocast. The batch is that of this rank: its prompt i is
    the step's prompt `rank + i * world`."""
    cloning_BG = cloning_weights(advantages_BG, mode=loss.off_policy, beta=loss.awr_beta)
    work = _Work(policy, batch, learned_tokens(batch, loss), scores, advantages_BG, cloning_BG, make_algorithm(loss),
                 loss, config, bf16,
                 Offload(policy.device) if config.offload_activations else config.checkpoint_activations)
    ranks, lr = optimizer.ranks, config.lr
    prompts, cut = (int(one) for one in ranks.sum([len(batch.samples), int((~batch.finished_BG).sum())]))
    size = prompts // config.mini_batches
    done: list[tuple[float, ...]] = []
    skipped = 0
    for again in range(config.inner_epochs):
        for number in range(config.mini_batches):
            first, last = (len(ranks.mine(bound)) for bound in (number * size, (number + 1) * size))
            result = _mini_batch(work, optimizer, range(first, last), -(-size // ranks.world), again)
            done.append(result)
            if math.isfinite(result[0]) and math.isfinite(result[3]):
                optimizer.step(lr, optimizer.clipped(result[3]))
            else:
                skipped += 1
            optimizer.begin()
    loss_mean, kl, clipped, norm, entropy, accuracy = (float(np.mean(values)) for values in zip(*done, strict=True))
    return Update(loss_mean, kl, clipped, norm, lr, skipped, entropy if loss.entropy else None,
                  accuracy if batch.given else None, cut if loss.mask_truncated else None)


def learned_tokens(batch: RolloutBatch, loss: LossConfig) -> torch.Tensor:
    """bool [B, G, R]: the valid tokens, under `loss.mask_truncated` those of responses that ended."""
    return batch.mask_BGR & batch.finished_BG.unsqueeze(-1) if loss.mask_truncated else batch.mask_BGR


def _mini_batch(work: _Work, optimizer: Optimizer, mini: range, most: int, again: int) -> tuple[float, ...]:
    """Accumulates the mini-batch's gradient; returns loss, mean KL, clip fraction, gradient norm, entropy and accuracy,
    over all ranks. `mini`: which prompts of this rank it holds; `most`: the largest number that a rank may hold of
    it; `again`: of the pass over the step's batch."""
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
    return loss, kl, clipped, optimizer.norm(), entropy, accuracy


def _micro_batch(work: _Work, micro: slice, denominator: float) -> tuple[LossParts, float]:
    """The loss of a few prompts, with its graph, and how many tokens that were given (`RolloutBatch.given`) are the
    policy's first choice."""
    policy, batch, scores, loss = work.policy, work.batch, work.scores, work.loss
    wanted: tuple[tuple[Also, bool], ...] = (("entropy", loss.entropy > 0), ("top", batch.given))
    also = [name for name, asked in wanted if asked]
    device, reference_BGR = policy.device, scores.reference_BGR
    with torch.autocast(device.type, torch.bfloat16, enabled=work.bf16):
        current_BGR, *found = score_also(policy, batch.prompts[micro], batch.ids_BGR[micro], work.mask_BGR[micro],
                                         also=also, temperature=batch.decoding.temperature,
                                         checkpoint_activations=work.recompute)
    advantages_BG, cloning_BG = (torch.as_tensor(values_BG[micro], dtype=torch.float32, device=device)
                                 for values_BG in (work.advantages_BG, work.cloning_BG))
    tokens = Tokens(current_BGR, scores.old_BGR[micro].to(device), work.mask_BGR[micro].to(device), advantages_BG,
                    found[0] if loss.entropy else None)
    parts = policy_loss(work.algorithm, tokens, torch.as_tensor(batch.guided_BG[micro], device=device), cloning_BG,
                        None if reference_BGR is None else reference_BGR[micro].to(device), kl=loss.kl,
                        entropy=loss.entropy, denominator=denominator)
    return parts, float(found[-1].detach().sum()) if batch.given else 0.0
