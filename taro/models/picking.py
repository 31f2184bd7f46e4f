"""The next token of each row: greedy, or the one at which a draw from [0, 1) falls in the cumulative probabilities.

What shapes the distribution, in transformers' order: repetition penalty, temperature (the caller's), top-k, top-p. Two
ways to find the draw's token: `pick` sums up all probabilities in float64; `pick_by_blocks` sums up blocks, then the
one block that the draw falls in, which reads the logits twice instead of writing several float64 tables of their size.
Both give the same token unless the draw is within float64's rounding of a boundary.
Legend: N rows, V vocabulary, J blocks of W tokens."""

from __future__ import annotations

import torch

from taro.models.sampler import Decoding

__all__ = ["pick", "pick_by_blocks"]

WIDTH = 1024
"""tokens of a block"""


def pick(logits_NV: torch.Tensor, decoding: Decoding, seen_NV: torch.Tensor | None,
         uniform_N: torch.Tensor | None) -> torch.Tensor:
    """Next tokens [N]: greedy, or the first token at which the cumulative probability passes the uniform draw.
    seen_NV: tokens of prompt and response so far, needed where the repetition penalty is not 1."""
    logits_NV = _shaped(logits_NV, decoding, seen_NV)
    if decoding.temperature == 0 or uniform_N is None:
        return logits_NV.argmax(-1)
    probs = torch.softmax(logits_NV.double(), -1)
    if decoding.top_p < 1.0:
        probs = _top_p(probs, decoding.top_p)
    cumulative = probs.cumsum(-1)
    target = uniform_N.double()[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=probs.shape[-1] - 1)


def pick_by_blocks(logits_NV: torch.Tensor, decoding: Decoding, seen_NV: torch.Tensor | None,
                   uniform_N: torch.Tensor | None) -> torch.Tensor:
    """As `pick`, see the module; fit for a compiled graph."""
    logits_NV = _shaped(logits_NV, decoding, seen_NV)
    if decoding.temperature == 0 or uniform_N is None:
        return logits_NV.argmax(-1)
    N, V = logits_NV.shape
    logits_NV = logits_NV.double()
    weights = (logits_NV - logits_NV.amax(-1, keepdim=True)).exp()  # the draw is scaled by their sum instead
    if decoding.top_p < 1.0:
        weights = _top_p(weights / weights.sum(-1, keepdim=True), decoding.top_p)
    weights_NJW = torch.nn.functional.pad(weights, (0, -V % WIDTH)).view(N, -1, WIDTH)
    upto_NJ = weights_NJW.sum(-1).cumsum(-1)
    total_N1 = upto_NJ[:, -1:]
    target_N1 = uniform_N.double()[:, None] * total_N1
    # The first block past the draw; no later one than that which completes the sum, whatever is rounded.
    block_N1 = torch.minimum((upto_NJ <= target_N1).sum(-1, keepdim=True), (upto_NJ < total_N1).sum(-1, keepdim=True))
    before_N1 = torch.where(block_N1 > 0, upto_NJ.gather(1, (block_N1 - 1).clamp(min=0)), 0.0)
    inside_NW = weights_NJW.gather(1, block_N1[:, :, None].expand(N, 1, WIDTH))[:, 0]
    upto_NW = inside_NW.cumsum(-1)
    place_N1 = torch.minimum((upto_NW <= target_N1 - before_N1).sum(-1, keepdim=True),
                             (upto_NW < upto_NW[:, -1:]).sum(-1, keepdim=True))
    return (block_N1 * WIDTH + place_N1)[:, 0]


def _shaped(logits_NV: torch.Tensor, decoding: Decoding, seen_NV: torch.Tensor | None) -> torch.Tensor:
    """Logits after repetition penalty and top-k."""
    if decoding.repetition_penalty != 1.0:
        assert seen_NV is not None, "a repetition penalty needs the tokens seen"
        penalty = decoding.repetition_penalty
        # A token already seen (prompt included) is divided by the penalty where its logit is positive, multiplied
        # where negative (Keskar et al., 2019), on the logits before the temperature; the order does not matter.
        punished = torch.where(logits_NV > 0, logits_NV / penalty, logits_NV * penalty)
        logits_NV = torch.where(seen_NV, punished, logits_NV)
    if 0 < decoding.top_k < logits_NV.shape[-1]:
        least_N1 = logits_NV.topk(decoding.top_k, dim=-1).values[:, -1:]
        logits_NV = logits_NV.masked_fill(logits_NV < least_N1, float("-inf"))
    return logits_NV


def _top_p(probs_NV: torch.Tensor, top_p: float) -> torch.Tensor:
    """Zero for tokens past the most likely ones that together reach `top_p`."""
    ordered, order = probs_NV.sort(-1, descending=True)
    drop = ordered.cumsum(-1) - ordered >= top_p
    return probs_NV.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), 0.0)
