"""Algorithms by name: how rewards become advantages, and what a token of a free rollout costs.

One file an algorithm (the contract is `taro.train.algorithms.base.Algorithm`) and one row of `ALGORITHMS`. The formulas
are pure functions in `advantages` and `losses`. What guided rollouts cost is the same under every algorithm: `cloning`.
"""

from __future__ import annotations

from typing import Any

__all__ = ["ALGORITHMS", "OWN_SETTINGS"]

ALGORITHMS = {
    "dapo": "taro.train.algorithms.dapo:DAPO",
    "dr_grpo": "taro.train.algorithms.dr_grpo:DrGRPO",
    "grpo": "taro.train.algorithms.grpo:GRPO",
    "gspo": "taro.train.algorithms.gspo:GSPO",
}
"""`loss.kind` -> module:class, called with the `LossConfig`; a name and no import, since settings need no torch"""

OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "dapo": {"clip_high": 0.28, "dual_clip": None, "kl": 0.0},
    "gspo": {"clip_low": 3e-4, "clip_high": 4e-4, "dual_clip": None},
}
"""`loss.kind` -> its paper's values of the other settings of `loss`, which hold where these are not given"""
