"""Tokens a second of each phase of a step.

Rollouts count the tokens that were drawn; scores and update the tokens of the step's rows (each prompt once, and all of
its responses), once, however many passes a phase takes over them."""

from __future__ import annotations

from collections.abc import Mapping

from taro.train.ranks import Ranks
from taro.train.rollouts import RolloutBatch

__all__ = ["phase_speeds"]


def phase_speeds(batch: RolloutBatch, seconds: Mapping[str, float], ranks: Ranks) -> dict[str, float]:
    """Tokens a second of all ranks together, by phase. `seconds`: of each phase, on this rank."""
    responses = int(batch.mask_BGR.sum())
    rows = responses + sum(len(prompt.ids_P) for prompt in batch.prompts)
    drawn, rows = (int(one) for one in ranks.sum([responses - int(batch.forced_BG.sum()), rows]))
    tokens = {"rollouts": drawn, "scores": rows, "update": rows}
    return {name: count / max(seconds[name], 1e-9) for name, count in tokens.items() if name in seconds}
