"""One step's updates: mini-batches over its rollouts, micro-batches that only bound memory.

The loss of a mini-batch is divided by its own denominator, counted before any backward pass, so the gradient does not
depend on the micro-batch size (docs/method.md, difference 13). A non-finite loss or gradient skips the update and is
counted. Legend: B prompts, G rollouts, R response tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from taro.models.logprobs import score
from taro.models.policy import Policy
from taro.train.algorithms.base import Algorithm, Tokens, make_algorithm
from taro.train.algorithms.cloning import cloning_weights
from taro.train.algorithms.losses import LossParts, policy_loss
from taro.train.config import LossConfig, OptimizerConfig
from taro.train.rollouts import RolloutBatch, Scores

__all__ = ["Update", "make_optimizer", "update_policy"]


@dataclass(frozen=True)
class Update:
    """What the updates of one step did, averaged over them. `lr`: the learning rate of all of them; `skipped`: updates
    left out as not finite."""

    loss: float
    kl: float
    clip_fraction: float
    grad_norm: float
    lr: float
    skipped: int


@dataclass(frozen=True)
class _Work:
    """What every update of a step needs."""

    policy: Policy
    batch: RolloutBatch
    scores: Scores
    advantages_BG: np.ndarray
    cloning_BG: np.ndarray
    algorithm: Algorithm
    kl: float
    config: OptimizerConfig
    bf16: bool


def make_optimizer(policy: Policy, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the language model and head, the tower never."""
    return torch.optim.AdamW(policy.parameters(), lr=config.lr, betas=config.betas, eps=config.eps,
                             weight_decay=config.weight_decay)


def update_policy(policy: Policy, optimizer: torch.optim.Optimizer, batch: RolloutBatch, scores: Scores,
                  advantages_BG: np.ndarray, loss: LossConfig, config: OptimizerConfig, *,
                  bf16: bool = False) -> Update:
    """`inner_epochs` passes over the batch in `mini_batches` updates each. `config`: its lr is that of this step
    (`taro.train.schedules.at_step`); `bf16`: compute under autocast."""
    cloning_BG = cloning_weights(advantages_BG, mode=loss.off_policy, beta=loss.awr_beta)
    work = _Work(policy, batch, scores, advantages_BG, cloning_BG, make_algorithm(loss), loss.kl, config, bf16)
    lr, size = config.lr, len(batch.samples) // config.mini_batches
    for group in optimizer.param_groups:
        group["lr"] = lr
    done: list[tuple[float, float, float, float]] = []
    skipped = 0
    for _ in range(config.inner_epochs):
        for start in range(0, len(batch.samples), size):
            result = _mini_batch(work, optimizer, range(start, start + size))
            done.append(result)
            if math.isfinite(result[0]) and math.isfinite(result[3]):
                optimizer.step()
            else:
                skipped += 1
            optimizer.zero_grad(set_to_none=True)
    loss_mean, kl, clipped, norm = (float(np.mean(values)) for values in zip(*done, strict=True))
    return Update(loss_mean, kl, clipped, norm, lr, skipped)


def _mini_batch(work: _Work, optimizer: torch.optim.Optimizer, mini: range) -> tuple[float, float, float, float]:
    """Accumulates the mini-batch's gradient, clips it; returns loss, mean KL, clip fraction, gradient norm."""
    batch, mask_BGR = work.batch, work.batch.mask_BGR[mini.start : mini.stop]
    denominator = work.algorithm.denominator(mask_BGR, max_new_tokens=batch.decoding.max_new_tokens)
    tokens = max(int(mask_BGR.sum()), 1)
    loss = kl_sum = clipped_sum = 0.0
    for start in range(mini.start, mini.stop, work.config.micro_prompts):
        parts = _micro_batch(work, slice(start, min(start + work.config.micro_prompts, mini.stop)), denominator)
        parts.loss.backward()
        loss += float(parts.loss.detach())
        kl_sum, clipped_sum = kl_sum + parts.kl_sum, clipped_sum + parts.clipped_sum
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, work.config.grad_clip))
    return loss, kl_sum / tokens, clipped_sum / tokens, norm


def _micro_batch(work: _Work, micro: slice, denominator: float) -> LossParts:
    """The loss of a few prompts, with its graph."""
    policy, batch, scores = work.policy, work.batch, work.scores
    device, reference_BGR = policy.device, scores.reference_BGR
    with torch.autocast(device.type, torch.bfloat16, enabled=work.bf16):
        current_BGR = score(policy, batch.prompts[micro], batch.ids_BGR[micro], batch.mask_BGR[micro],
                            temperature=batch.decoding.temperature,
                            checkpoint_activations=work.config.checkpoint_activations)
    advantages_BG, cloning_BG = (torch.as_tensor(values_BG[micro], dtype=torch.float32, device=device)
                                 for values_BG in (work.advantages_BG, work.cloning_BG))
    tokens = Tokens(current_BGR, scores.old_BGR[micro].to(device), batch.mask_BGR[micro].to(device), advantages_BG)
    return policy_loss(work.algorithm, tokens, torch.as_tensor(batch.guided_BG[micro], device=device), cloning_BG,
                       None if reference_BGR is None else reference_BGR[micro].to(device), kl=work.kl,
                       denominator=denominator)
