"""Advantages and losses: properties with hand-sized numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taro.train.algorithms.advantages import group_advantages, zero_variance
from taro.train.algorithms.base import Tokens, make_algorithm
from taro.train.algorithms.cloning import cloning_weights
from taro.train.algorithms.losses import LossParts, clipped_surrogate, k3_kl, policy_loss
from taro.train.config import LossConfig

GROUP = st.lists(st.floats(0, 2.3), min_size=2, max_size=8)


@given(GROUP, st.randoms(use_true_random=False))
def test_permuting_a_group_permutes_its_advantages(rewards: list[float], random: object) -> None:
    order = np.random.default_rng(len(rewards)).permutation(len(rewards))
    plain = group_advantages(np.array([rewards]))[0]
    permuted = group_advantages(np.array([rewards])[:, order])[0]
    np.testing.assert_allclose(permuted, plain[order], rtol=1e-9, atol=1e-9)


@given(GROUP)
def test_advantages_have_mean_zero_and_unit_bessel_spread(rewards: list[float]) -> None:
    A = group_advantages(np.array([rewards]))[0]
    assert abs(A.mean()) < 1e-6
    if np.std(rewards, ddof=1) > 1e-2:
        assert np.std(A, ddof=1) == pytest.approx(1.0, abs=1e-3)


@given(st.floats(0, 2.3), st.integers(2, 16))
def test_equal_rewards_give_exactly_zero(reward: float, G: int) -> None:
    same = np.full((1, G), reward)
    assert zero_variance(same).all()
    assert (group_advantages(same) == 0).all() and (group_advantages(same, scale="none") == 0).all()


def batch(R: int = 4) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "logprobs_BGR": -torch.rand(2, 3, R), "old_BGR": -torch.rand(2, 3, R), "reference_BGR": -torch.rand(2, 3, R),
        "advantages_BG": torch.tensor([[1.0, -1.0, 0.0], [0.5, 0.7, -1.2]]),
        "cloning_BG": torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.7, 0.0]]),
        "guided_BG": torch.tensor([[True, True, False], [False, False, False]]),
        "mask_BGR": torch.tensor([[[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]], [[1, 0, 0, 0]] * 3]).bool(),
    }


def loss_of(data: dict[str, torch.Tensor], logprobs_BGR: torch.Tensor, **knobs: float) -> LossParts:
    tokens = Tokens(logprobs_BGR, data["old_BGR"], data["mask_BGR"], data["advantages_BG"])
    return policy_loss(make_algorithm(LossConfig()), tokens, data["guided_BG"], data["cloning_BG"],
                       data["reference_BGR"], **{"denominator": 12.0, **knobs})


def grad(data: dict[str, torch.Tensor], **knobs: float) -> tuple[float, torch.Tensor]:
    lp = data["logprobs_BGR"].clone().requires_grad_()
    parts = loss_of(data, lp, **knobs)
    parts.loss.backward()
    assert lp.grad is not None
    return parts.loss.item(), lp.grad


def test_loss_equals_the_equation_written_out_in_plain_python() -> None:
    data = batch()
    total = 0.0
    for b in range(2):
        for g in range(3):
            A = data["advantages_BG"][b, g].item()
            for r in range(4):
                if not data["mask_BGR"][b, g, r]:
                    continue
                lp, old, ref = (data[k][b, g, r].item() for k in ("logprobs_BGR", "old_BGR", "reference_BGR"))
                if data["guided_BG"][b, g]:
                    total += -data["cloning_BG"][b, g].item() * lp
                else:
                    ratio = math.exp(lp - old)
                    loss = max(-A * ratio, -A * min(max(ratio, 0.8), 1.2))
                    total += min(loss, -A * 3) if A < 0 else loss
                total += 0.01 * (math.exp(ref - lp) - (ref - lp) - 1)
    assert grad(data)[0] == pytest.approx(total / 12, rel=1e-5)


def test_masked_tokens_change_neither_loss_nor_gradient_whatever_stands_there() -> None:
    data = batch()
    loss, plain = grad(data)
    longer = {k: torch.cat([v, torch.full((2, 3, 3), float("nan"))], -1) if k.endswith("BGR") and v.is_floating_point()
              else v for k, v in data.items()}
    longer["mask_BGR"] = torch.cat([data["mask_BGR"], torch.zeros(2, 3, 3, dtype=torch.bool)], -1)
    loss2, padded = grad(longer)
    assert loss2 == pytest.approx(loss, rel=1e-6)  # the sum is taken in another order
    assert torch.equal(padded[..., :4], plain) and (padded[..., 4:] == 0).all()


def test_micro_batches_add_up_to_the_global_batch() -> None:
    data = batch()
    loss, whole = grad(data)
    halves = [grad({k: v[b : b + 1] for k, v in data.items()}) for b in range(2)]
    assert sum(h[0] for h in halves) == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(torch.cat([h[1] for h in halves]), whole)


def test_zero_variance_group_has_zero_gradient() -> None:
    data = batch()
    data["advantages_BG"] = torch.zeros(2, 3)
    data["cloning_BG"] = torch.as_tensor(cloning_weights(np.zeros((2, 3))), dtype=torch.float32)
    assert (grad(data, kl=0.0)[1] == 0).all()
    for mode in ("mask", "clone", "raft"):
        assert (cloning_weights(np.zeros((1, 4)), mode=mode) == 0).all()


def test_on_policy_gradient_is_minus_advantage_per_token() -> None:
    data = batch()
    data["old_BGR"] = data["logprobs_BGR"].clone()
    data["guided_BG"] = torch.zeros(2, 3, dtype=torch.bool)
    _, gradient = grad(data, kl=0.0)
    expected = -data["advantages_BG"][..., None].expand(2, 3, 4) * data["mask_BGR"] / 12
    torch.testing.assert_close(gradient, expected)


def test_clip_stops_the_gradient_only_on_the_side_that_gains() -> None:
    old = torch.zeros(1, 1, 1)
    for log_ratio, A, moves in [(0.5, 1.0, False), (0.5, -1.0, True), (-0.5, -1.0, False), (-0.5, 1.0, True),
                                (2.0, -1.0, False)]:  # the last: dual clip
        lp = torch.full((1, 1, 1), log_ratio, requires_grad=True)
        clipped_surrogate(lp, old, torch.tensor([[A]])).sum().backward()
        assert lp.grad is not None and (lp.grad.item() != 0) == moves, (log_ratio, A)


def test_clip_high_is_separate_from_clip_low() -> None:
    lp, old, A = torch.log(torch.tensor([[[1.25]]])), torch.zeros(1, 1, 1), torch.ones(1, 1)
    assert clipped_surrogate(lp, old, A, clip_high=0.28).item() == pytest.approx(-1.25)
    assert clipped_surrogate(lp, old, A).item() == pytest.approx(-1.2)


@given(st.floats(-30, 0), st.floats(-30, 0))
def test_k3_is_never_negative_and_zero_where_equal(lp: float, ref: float) -> None:
    a, b = torch.tensor([[[lp]]], dtype=torch.float64), torch.tensor([[[ref]]], dtype=torch.float64)
    assert k3_kl(a, b).item() >= -1e-12
    assert k3_kl(a, a).item() == 0.0


def test_k3_averages_to_the_true_kl() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.4, 0.2])
    true = (p * (p / q).log()).sum()
    estimate = (p * k3_kl(p.log()[None, None], q.log()[None, None])[0, 0]).sum()
    assert estimate.item() == pytest.approx(true.item(), rel=1e-5)


def test_off_policy_modes_by_hand() -> None:
    A = np.array([[-1.0, 0.0, 0.5, 0.8]])
    assert cloning_weights(A, mode="mask").tolist() == [[0, 0, 0.5, 0.8]]
    assert cloning_weights(A, mode="clone").tolist() == [[0, 0, 1, 1]]
    assert cloning_weights(A, mode="raft").tolist() == [[0, 0, 0, 1]]
    np.testing.assert_allclose(cloning_weights(A, mode="awr", beta=0.5), np.exp(A / 0.5))


def test_guided_tokens_never_count_as_clipped_and_free_ones_do() -> None:
    data = batch(R=4)
    parts = loss_of(data, data["old_BGR"] + 1.0, denominator=1.0)
    # Of the free rollouts only those with A > 0 gain from a ratio of e: both have one valid token.
    assert parts.clipped_sum == 2.0


def test_denominators_by_hand() -> None:
    mask_BGR = batch()["mask_BGR"]
    grpo, dr_grpo = (make_algorithm(LossConfig(kind=kind)) for kind in ("grpo", "dr_grpo"))
    assert (grpo.denominator(mask_BGR, max_new_tokens=50), grpo.denominator(mask_BGR[:0], max_new_tokens=50)) == (12, 0)
    assert dr_grpo.denominator(mask_BGR, max_new_tokens=50) == 2 * 3 * 50
    rewards_BG = np.array([[1.0, 2.0, 4.5]])
    assert dr_grpo.advantages(rewards_BG).tolist() == [[-1.5, -0.5, 2.0]]
    np.testing.assert_array_equal(grpo.advantages(rewards_BG), group_advantages(rewards_BG))
