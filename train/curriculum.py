"""When a rollout is guided: a hard switch after the guided phase, or a linearly falling probability.

`hard` is the paper's: epoch 0 guided, the rest free. `linear` guides each rollout with probability
`max(0, 1 - progress / amount)`. Both can be measured in epochs or in steps. Legend: G rollouts of a group."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from taro.core import draws
from taro.core.config import Config

__all__ = ["Curriculum", "guide_probability", "guided_rollouts"]


class Curriculum(Config):
    """How long rollouts open with a guided prefix."""

    schedule: Literal["hard", "linear", "off"] = "hard"
    """hard: every rollout until `amount` has passed, none after; linear: a falling share; off: never"""
    unit: Literal["epochs", "steps"] = "epochs"
    """of `amount`"""
    amount: int = Field(1, ge=1, le=10_000_000)
    """guided epochs or steps (hard), or where the probability reaches 0 (linear)"""


def guide_probability(curriculum: Curriculum, *, step: int, epoch: int, steps_per_epoch: int) -> float:
    """Probability that a rollout of this step is guided.

    >>> hard = Curriculum(unit="steps", amount=15)
    >>> [guide_probability(hard, step=s, epoch=0, steps_per_epoch=9) for s in (0, 14, 15)]
    [1.0, 1.0, 0.0]
    >>> linear = Curriculum(schedule="linear")
    >>> [guide_probability(linear, step=s, epoch=0, steps_per_epoch=4) for s in (0, 1, 3, 4)]
    [1.0, 0.75, 0.25, 0.0]
    """
    if curriculum.schedule == "off":
        return 0.0
    if curriculum.schedule == "hard":
        return 1.0 if (epoch if curriculum.unit == "epochs" else step) < curriculum.amount else 0.0
    length_steps = curriculum.amount * (steps_per_epoch if curriculum.unit == "epochs" else 1)
    return max(0.0, 1.0 - step / length_steps)


def guided_rollouts(probability: float, G: int, *, seed: int, epoch: int, step: int, sample: str) -> np.ndarray:
    """Which of the G rollouts are guided, bool [G]; every draw depends on (seed, epoch, step, sample) and its rollout.

    >>> guided_rollouts(1.0, 3, seed=0, epoch=0, step=0, sample="v:1").tolist()
    [True, True, True]
    """
    return draws.uniforms(G, "guide", seed, epoch, step, sample) < probability
