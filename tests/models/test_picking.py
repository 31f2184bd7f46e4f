"""The token that a draw picks: block by block as over all; top-k, top-p and penalty as transformers has them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from taro.models.picking import WIDTH, pick, pick_by_blocks
from taro.models.sampler import Decoding

SETTINGS = [Decoding(1), Decoding(1, top_k=7), Decoding(1, top_p=0.8), Decoding(1, top_k=40, top_p=0.6),
            Decoding(1, repetition_penalty=1.3), Decoding(1, temperature=0.0, repetition_penalty=1.3)]


def logits_of(N: int, V: int, *, spread: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits with banned tokens at the front, in the middle and at the end, and the tokens that each row has seen."""
    generator = torch.Generator().manual_seed(V)
    logits = torch.randn(N, V, generator=generator) * spread
    logits[:, [0, V // 2, V - 1]] = float("-inf")
    return logits, torch.rand(N, V, generator=generator) < 0.1


@pytest.mark.parametrize("decoding", SETTINGS)
@pytest.mark.parametrize("V", [320, WIDTH, 3 * WIDTH + 17])
def test_blocks_pick_the_token_of_the_whole_sum(decoding: Decoding, V: int) -> None:
    N = 1500
    logits, seen = logits_of(N, V)
    draws = torch.rand(N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    draws[:4] = torch.tensor([0.0, 1 - 2**-53, 0.5, 1e-300], dtype=torch.float64)
    plain = pick(logits, decoding, seen, draws)
    assert len(plain.unique()) > 50
    assert torch.equal(pick_by_blocks(logits, decoding, seen, draws), plain)
    assert not bool(torch.isinf(logits.gather(1, plain[:, None])).any())


def test_the_last_draw_falls_on_the_last_token_that_may_be() -> None:
    logits = torch.full((1, 2 * WIDTH), float("-inf"))
    logits[0, [3, 9]] = 0.0
    for draw, token in ((0.0, 3), (0.49, 3), (0.51, 9), (1 - 2**-53, 9), (1.0, 9)):
        assert pick_by_blocks(logits, Decoding(1), None, torch.tensor([draw], dtype=torch.float64)).tolist() == [token]


@pytest.mark.parametrize("decoding", SETTINGS[:5])
def test_what_can_be_picked_is_what_transformers_leaves(decoding: Decoding) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

    logits, _ = logits_of(1, 64, spread=1.5)
    ids = torch.tensor([[5, 9, 11, 40]])
    seen = torch.zeros(1, 64, dtype=torch.bool).scatter(1, ids, True)
    left = logits.clone()
    if decoding.repetition_penalty != 1.0:
        left = RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty)(ids, left)
    if decoding.top_k:
        left = TopKLogitsWarper(decoding.top_k)(ids, left)
    if decoding.top_p < 1.0:
        left = TopPLogitsWarper(decoding.top_p)(ids, left)
    wanted = torch.softmax(left[0].double(), -1)
    draws = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    for way in (pick, pick_by_blocks):
        tokens = way(logits.expand(20_000, -1), decoding, seen.expand(20_000, -1), draws)
        found = torch.bincount(tokens, minlength=64) / 20_000
        assert float((found - wanted).abs().max()) <= 1.5 / 20_000


def test_greedy_takes_no_draw() -> None:
    logits, seen = logits_of(8, 100)
    greedy = replace(Decoding(1), temperature=0.0, top_k=3, top_p=0.5)
    assert torch.equal(pick_by_blocks(logits, greedy, seen, None), logits.argmax(-1))
