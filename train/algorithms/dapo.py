"""DAPO (arXiv 2503.14476): GRPO with clip-higher, a loss over all tokens of the mini-batch, and no KL.

Its four parts, by the paper's equations, and where they are here: clip-higher (eq. 10), `loss.clip_high` 0.28, without
the dual clip; token-level loss (eq. 12), which is GRPO's denominator here already; dynamic sampling (eq. 11),
`rollout.redraws`; overlong reward shaping (eq. 13), `reward.overlong_tokens`. The last two are asked for by name."""

from __future__ import annotations

from taro.train.algorithms.grpo import GRPO

__all__ = ["DAPO"]


class DAPO(GRPO):
    """Objective (8) of the paper: GRPO's advantages and surrogate, with the settings of `OWN_SETTINGS`."""
