"""The algorithms by hand, and their seam: REINFORCE without groups, added as one class and one row, trains."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from taro.core.jsonl import read_jsonl
from taro.train.algorithms import ALGORITHMS
from taro.train.algorithms.base import TokenLoss, Tokens, make_algorithm
from taro.train.algorithms.losses import policy_loss
from taro.train.config import LossConfig, TrainConfig
from taro.train.loop import train


class Reinforce:
    """`-A log pi`, A a reward less the mean of the step, a sum over the tokens of a response, a mean over responses."""

    by_group = False

    def __init__(self, config: LossConfig) -> None:
        assert config.kind == "reinforce"

    def advantages(self, rewards_BG: np.ndarray) -> np.ndarray:
        return np.asarray(rewards_BG - rewards_BG.mean())

    def token_loss(self, tokens: Tokens) -> TokenLoss:
        return TokenLoss(-tokens.advantages_BG.unsqueeze(-1) * tokens.logprobs_BGR, torch.zeros_like(tokens.mask_BGR))

    def token_weights(self, mask_BGR: torch.Tensor) -> torch.Tensor:
        return torch.ones(())

    def denominator(self, mask_BGR: torch.Tensor, *, max_new_tokens: int) -> float:
        return float(mask_BGR.shape[0] * mask_BGR.shape[1])


def test_a_class_and_a_row_make_an_algorithm(make_config: Callable[..., TrainConfig],
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="expected an algorithm: dapo, dr_grpo, grpo, gspo"):
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


def loss_of(kind: str, log_ratio_BGR: torch.Tensor, mask_BGR: torch.Tensor, advantages_BG: torch.Tensor, *,
            guided_BG: torch.Tensor | None = None, **knobs: float) -> tuple[float, torch.Tensor, float]:
    """Loss, its gradient by the log-probs, and clipped tokens, where the old log-probs are all 0."""
    algorithm = make_algorithm(LossConfig.model_validate({"kind": kind}))
    lp = log_ratio_BGR.clone().requires_grad_()
    tokens = Tokens(lp, torch.zeros_like(lp), mask_BGR, advantages_BG)
    guided_BG = torch.zeros_like(advantages_BG, dtype=torch.bool) if guided_BG is None else guided_BG
    parts = policy_loss(algorithm, tokens, guided_BG, torch.ones_like(advantages_BG), None, kl=0.0,
                        denominator=algorithm.denominator(mask_BGR, max_new_tokens=9), **knobs)
    parts.loss.backward()
    assert lp.grad is not None
    return parts.loss.item(), lp.grad, parts.clipped_sum


def test_each_algorithm_has_its_papers_settings_where_none_are_given() -> None:
    def own(kind: str, **knobs: object) -> tuple[object, ...]:
        x = LossConfig.model_validate({"kind": kind, **knobs})
        return x.clip_low, x.clip_high, x.dual_clip, x.kl

    assert own("grpo") == own("dr_grpo") == (0.2, 0.2, 3.0, 0.01)
    assert own("dapo") == (0.2, 0.28, None, 0.0)
    assert own("gspo") == (3e-4, 4e-4, None, 0.01)
    assert own("dapo", clip_high=0.3, kl=0.1) == (0.2, 0.3, None, 0.1)
    written = LossConfig(kind="gspo").model_dump(mode="json")
    assert LossConfig.model_validate(written) == LossConfig(kind="gspo"), "config.yaml says the same"


def test_dapo_by_hand() -> None:
    # Ratios 1.25 and 1.5 of A = 1: 1.25 is inside of 1 + 0.28, 1.5 is clipped. Ratio 5 of A = -1: no dual clip.
    ratios = torch.tensor([[[1.25, 1.5, 1.0], [5.0, 1.0, 1.0]]])
    mask = torch.tensor([[[True, True, False], [True, False, False]]])
    loss, gradient, clipped = loss_of("dapo", ratios.log(), mask, torch.tensor([[1.0, -1.0]]))
    assert loss == pytest.approx((-1.25 - 1.28 + 5.0) / 3, rel=1e-5)  # over all 3 tokens, eq. 12
    torch.testing.assert_close(gradient, torch.tensor([[[-1.25 / 3, 0, 0], [5 / 3, 0, 0]]]))
    assert clipped == 1


def test_gspo_by_hand() -> None:
    # s = exp(mean log-ratio), eq. 7: exp(2e-4) is inside of 1 + 4e-4, exp(1e-3) is clipped; guided: -log pi.
    log_ratios = torch.tensor([[[1e-4, 3e-4, 7.0], [1e-3, 1e-3, 1e-3], [1e-3, 7.0, 7.0], [-2.0, -4.0, 7.0]]])
    mask = torch.tensor([[[True, True, False], [True, True, True], [True, False, False], [True, True, False]]])
    A = torch.tensor([[2.0, 1.0, -1.0, 0.5]])
    loss, gradient, clipped = loss_of("gspo", log_ratios, mask, A, guided_BG=torch.tensor([[False] * 3 + [True]]))
    s = [math.exp(2e-4), 1 + 4e-4, math.exp(1e-3)]
    assert loss == pytest.approx((-2 * s[0] - s[1] + s[2] + 3.0) / 4, rel=1e-5)  # a mean over responses, eq. 5
    expected = torch.tensor([[[-s[0] / 4, -s[0] / 4, 0], [0, 0, 0], [s[2] / 4, 0, 0], [-1 / 8, -1 / 8, 0]]])
    torch.testing.assert_close(gradient, expected)
    assert clipped == 3, "a response is clipped as a whole"


@pytest.mark.parametrize("kind", ["dapo", "gspo", "grpo", "dr_grpo"])
def test_a_tokens_loss_does_not_depend_on_other_prompts(kind: str) -> None:
    torch.manual_seed(0)
    lp, old, mask = torch.randn(3, 2, 4) / 9, torch.randn(3, 2, 4) / 9, torch.rand(3, 2, 4) > 0.3
    tokens = Tokens(torch.where(mask, lp, 0), torch.where(mask, old, 0), mask, torch.randn(3, 2))
    algorithm = make_algorithm(LossConfig(kind=kind))
    whole = algorithm.token_loss(tokens).loss_BGR
    for b in range(3):
        one = Tokens(*(x[b : b + 1] for x in (tokens.logprobs_BGR, tokens.old_BGR, mask, tokens.advantages_BG)))
        torch.testing.assert_close(algorithm.token_loss(one).loss_BGR, whole[b : b + 1])


def test_entropy_lowers_the_loss_by_its_weight_and_masked_tokens_have_none() -> None:
    algorithm = make_algorithm(LossConfig())
    entropy = torch.tensor([[[0.5, 1.5, math.nan]]], requires_grad=True)
    mask = torch.tensor([[[True, True, False]]])
    tokens = Tokens(torch.zeros(1, 1, 3), torch.zeros(1, 1, 3), mask, torch.zeros(1, 1), entropy)
    parts = policy_loss(algorithm, tokens, torch.zeros(1, 1, dtype=torch.bool), torch.zeros(1, 1), None, entropy=0.1,
                        denominator=2.0)
    parts.loss.backward()
    assert (parts.loss.item(), parts.entropy_sum) == (pytest.approx(-0.1), pytest.approx(2.0))
    assert entropy.grad is not None and entropy.grad.tolist() == [[pytest.approx([-0.05, -0.05, 0.0])]]
