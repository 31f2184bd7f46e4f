"""The learning rate of a step: a linear warm-up, then constant, or a fall to `optimizer.min_lr` as a line or a cosine.

A function of (step, steps of the whole run) alone, so a resumed run goes on exactly. Left out: restarts, and rates that
look at the loss."""

from __future__ import annotations

import math

from taro.train.config import OptimizerConfig

__all__ = ["at_step", "learning_rate"]


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """lr of `step`, counted from 0, of `steps` in all. With W warm-up steps it is `lr (step + 1) / W` before step W;
    from there `min_lr + (lr - min_lr) f(p)` with `p = (step - W) / (steps - W)`, f(p) = 1, 1 - p or (1 + cos(pi p)) / 2
    (cosine: SGDR, arXiv 1608.03983, eq. 5, without restarts). p = 0 at the first step after the warm-up; p = 1 would
    come one step after the last, so no step is wasted on `min_lr` 0.

    >>> def rates(**knobs): return [round(learning_rate(OptimizerConfig(lr=1.0, **knobs), s, 6), 3) for s in range(6)]
    >>> rates(warmup_steps=4)
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    >>> rates(warmup_steps=2, schedule="linear")
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    >>> rates(schedule="cosine", min_lr=0.5)
    [1.0, 0.967, 0.875, 0.75, 0.625, 0.533]
    """
    if step < config.warmup_steps:
        return config.lr * ((step + 1) / config.warmup_steps)
    if config.schedule == "constant":
        return config.lr
    p = min(1.0, (step - config.warmup_steps) / max(steps - config.warmup_steps, 1))
    share = 1 - p if config.schedule == "linear" else (1 + math.cos(math.pi * p)) / 2
    return config.min_lr + (config.lr - config.min_lr) * share


def at_step(config: OptimizerConfig, step: int, steps: int) -> OptimizerConfig:
    """The settings with `lr` as it is at that step."""
    return config.model_copy(update={"lr": learning_rate(config, step, steps)})
