"""Algorithms by name: how rewards become advantages, and what a token of a free rollout costs.

One file an algorithm (the contract is `taro.train.algorithms.base.Algorithm`) and one row of `ALGORITHMS`. The formulas
are pure functions in `advantages` and `losses`. What guided rollouts cost is the same under every algorithm: `cloning`.
"""

from __future__ import annotations

__all__ = ["ALGORITHMS"]

ALGORITHMS = {
    "dr_grpo": "taro.train.algorithms.dr_grpo:DrGRPO",
    "grpo": "taro.train.algorithms.grpo:GRPO",
}
"""`loss.kind` -> module:class, called with the `LossConfig`; a name and no import, since settings need no torch"""
