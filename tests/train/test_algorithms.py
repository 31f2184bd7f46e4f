"""The seam of algorithms: REINFORCE without groups, added as one class and one row, goes through the whole loop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from taro.core.jsonl import read_jsonl
from taro.train.algorithms import ALGORITHMS
from taro.train.algorithms.base import TokenLoss, Tokens, make_algorithm
from taro.train.config import LossConfig, TrainConfig
from taro.train.loop import train


class Reinforce:
    """`-A log pi`, A a reward less the mean of the step, a sum over the tokens of a response, a mean over responses."""

    def __init__(self, config: LossConfig) -> None:
        assert config.kind == "reinforce"

    def advantages(self, rewards_BG: np.ndarray) -> np.ndarray:
        return np.asarray(rewards_BG - rewards_BG.mean())

    def token_loss(self, tokens: Tokens) -> TokenLoss:
        return TokenLoss(-tokens.advantages_BG.unsqueeze(-1) * tokens.logprobs_BGR, torch.zeros_like(tokens.mask_BGR))

    def denominator(self, mask_BGR: torch.Tensor, *, max_new_tokens: int) -> float:
        return float(mask_BGR.shape[0] * mask_BGR.shape[1])


def test_a_class_and_a_row_make_an_algorithm(make_config: Callable[..., TrainConfig],
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="expected an algorithm: dr_grpo, grpo"):
        LossConfig(kind="reinforce")
    monkeypatch.setitem(ALGORITHMS, "reinforce", f"{__name__}:Reinforce")
    config = make_config(loss={"kind": "reinforce", "kl": 0.01}, length={"amount": 3}, curriculum={"amount": 1})
    assert type(make_algorithm(config.loss)).__name__ == "Reinforce"
    train(config)
    steps = [row for row in read_jsonl(config.out / "metrics.jsonl") if "reward" in row]
    assert [row["step"] for row in steps] == [0, 1, 2] and all(row["grad_norm"] > 0 for row in steps)
    assert all(row["clip_fraction"] == 0 for row in steps)
    for step in range(3):
        rows = read_jsonl(config.out / "rollouts" / f"step-{step:06d}.jsonl")
        mean = np.mean([row["reward"] for row in rows])
        assert [row["advantage"] for row in rows] == pytest.approx([row["reward"] - mean for row in rows])
        assert len({row["query_id"] for row in rows}) == 2, "the mean is over both groups"
