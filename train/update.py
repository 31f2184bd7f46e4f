"""One step's updates: mini-batches over its rollouts, micro-batches that only bound memory.

The loss of a mini-batch is divided by its own global denominator, counted before any backward pass, so the gradient
does not depend on the micro-batch size (METHOD 4, row 13). A non-finite loss or gradient skips the update and says so.
Legend: B prompts, G rollouts, R response tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from taro.models.logprobs import score
from taro.models.policy import Policy
from taro.train.algorithms.losses import cloning_weights, policy_loss
from taro.train.config import OptimizerConfig, TrainConfig
from taro.train.rollouts import RolloutBatch, Scores, autocast

__all__ = ["Update", "learning_rate", "make_optimizer", "update_policy"]


@dataclass(frozen=True)
class Update:
    """What the updates of one step did, averaged over them. `skipped`: updates left out as not finite."""

    loss: float
    kl: float
    clip_fraction: float
    grad_norm: float
    skipped: int


def make_optimizer(policy: Policy, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the language model and head, the tower never."""
    return torch.optim.AdamW(policy.parameters(), lr=config.lr, betas=config.betas, eps=config.eps,
                             weight_decay=config.weight_decay)


def learning_rate(config: OptimizerConfig, step: int) -> float:
    """Constant after a linear warm-up.

    >>> [round(learning_rate(OptimizerConfig(lr=1.0, warmup_steps=4), step), 2) for step in (0, 1, 3, 9)]
    [0.25, 0.5, 1.0, 1.0]
    """
    return config.lr * min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else config.lr


def update_policy(policy: Policy, optimizer: torch.optim.Optimizer, batch: RolloutBatch, scores: Scores,
                  advantages_BG: np.ndarray, config: TrainConfig) -> Update:
    """`inner_epochs` passes over the batch in `mini_batches` updates each."""
    knobs = config.optimizer
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(knobs, batch.step)
    weights_BG = cloning_weights(advantages_BG, mode=config.loss.off_policy, beta=config.loss.awr_beta)
    size = len(batch.samples) // knobs.mini_batches
    done: list[tuple[float, float, float, float]] = []
    skipped = 0
    for _ in range(knobs.inner_epochs):
        for start in range(0, len(batch.samples), size):
            mini = range(start, start + size)
            result = _mini_batch(policy, optimizer, batch, scores, advantages_BG, weights_BG, mini, config)
            done.append(result)
            if math.isfinite(result[0]) and math.isfinite(result[3]):
                optimizer.step()
            else:
                skipped += 1
            optimizer.zero_grad(set_to_none=True)
    loss, kl, clipped, norm = (float(np.mean(values)) for values in zip(*done, strict=True))
    return Update(loss, kl, clipped, norm, skipped)


def _mini_batch(policy: Policy, optimizer: torch.optim.Optimizer, batch: RolloutBatch, scores: Scores,
                advantages_BG: np.ndarray, weights_BG: np.ndarray, mini: range,
                config: TrainConfig) -> tuple[float, float, float, float]:
    """Accumulates the mini-batch's gradient, clips it; returns loss, mean KL, clip fraction, gradient norm."""
    knobs, losses, device = config.optimizer, config.loss, policy.device
    tokens = max(int(batch.mask_BGR[mini.start : mini.stop].sum()), 1)
    denominator = float(tokens)
    if losses.kind == "dr_grpo":
        denominator = float(len(mini) * config.rollout.group * config.rollout.max_new_tokens)
    loss = kl_sum = clipped_sum = 0.0
    for start in range(mini.start, mini.stop, knobs.micro_prompts):
        micro = slice(start, min(start + knobs.micro_prompts, mini.stop))
        with autocast(config, device):
            current_BGR = score(policy, batch.prompts[micro], batch.ids_BGR[micro], batch.mask_BGR[micro],
                                temperature=config.rollout.temperature,
                                checkpoint_activations=knobs.checkpoint_activations)
        reference = None if scores.reference_BGR is None else scores.reference_BGR[micro].to(device)
        parts = policy_loss(
            current_BGR, scores.old_BGR[micro].to(device), reference,
            torch.as_tensor(advantages_BG[micro], dtype=torch.float32, device=device),
            torch.as_tensor(weights_BG[micro], dtype=torch.float32, device=device),
            torch.as_tensor(batch.guided_BG[micro], device=device), batch.mask_BGR[micro].to(device),
            denominator=denominator, kl=losses.kl, clip_low=losses.clip_low, clip_high=losses.clip_high,
            dual_clip=losses.dual_clip)
        parts.loss.backward()
        loss += float(parts.loss.detach())
        kl_sum, clipped_sum = kl_sum + parts.kl_sum, clipped_sum + parts.clipped_sum
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, knobs.grad_clip))
    return loss, kl_sum / tokens, clipped_sum / tokens, norm
