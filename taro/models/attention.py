"""The attention of one use of the language model, handed to the stock layers through transformers' attention interface.

The stock layers' own forward runs; what differs between prefill, packed scoring and decoding is attention alone. An
`Attention` is a function. It travels as a keyword argument through the stock layer to `_attend`, which is registered
under `NAME`: there is no current attention to look up. So recomputation in the backward pass, threads, nested calls and
two models at once each see their own. A stock forward that hands none in runs transformers' SDPA as it always does.

Left out: attention dropout and sliding windows, which no released model of these families uses.
Legend: B rows, T tokens, H heads, K key-value heads, d head width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["Attention", "NAME", "by_group", "causal", "is_routed", "masked", "route"]

Attention = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(layer, queries [B, H, T, d], keys [B, K, T, d], values [B, K, T, d]) -> mixed values [B, H, T, d]; queries and keys
are rotated, all three have one dtype"""

NAME = "taro"
"""our entry in transformers' attention interface"""


def route(text_model: Any) -> None:
    """Makes the layers of a stock text model ask `NAME` for attention. Its weights and its own forward stay."""
    if not is_routed(text_model):
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask

        AttentionInterface.register(NAME, _attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        text_model.config._attn_implementation = NAME


def is_routed(text_model: Any) -> bool:
    """Whether `route` was called: other models would silently ignore the attention that is handed in."""
    return bool(text_model.config._attn_implementation == NAME)


def causal(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Plain causal attention."""
    return scaled_dot_product_attention(q, *_repeat(q, k, v), is_causal=True)


def masked(mask_B1TT: torch.Tensor) -> Attention:
    """Attention under a boolean mask (True: may be seen), broadcastable to [B, H, T, T]."""

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(q, *_repeat(q, k, v), attn_mask=mask_B1TT)

    return attend


def by_group(lengths: Sequence[Sequence[int]]) -> Attention:
    """Attention in a row of groups `[prefix | r_1 | .. | r_G]`, their lengths as given: causal in the prefix, each
    response over the prefix and itself. Where there are fewer queries than keys, they are those of the last tokens."""
    sizes = [size for group in lengths for size in group]

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        skipped = k.shape[2] - q.shape[2]
        parts = zip(q.split(_behind(sizes, skipped), 2), *(x.split(sizes, 2) for x in _repeat(q, k, v)), strict=True)
        mixed = []
        for group in lengths:
            queries, *before = next(parts)
            mixed.append(_last(queries, *before))
            for _ in group[1:]:
                queries, *own = next(parts)
                mixed.append(_last(queries, *(torch.cat(pair, 2) for pair in zip(before, own, strict=True))))
        return torch.cat(mixed, 2)

    return attend


def _behind(sizes: Sequence[int], skipped: int) -> list[int]:
    """The sizes of consecutive parts without the first `skipped` of their tokens."""
    left = []
    for size in sizes:
        left.append(max(size - skipped, 0))
        skipped = max(skipped - size, 0)
    return left


def _last(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention of queries that are the last of the keys' tokens."""
    T, M = q.shape[2], k.shape[2]
    if T == M:
        return scaled_dot_product_attention(q, k, v, is_causal=True)
    if not T:
        return q
    seen_TM = torch.ones(T, M, dtype=torch.bool, device=q.device).tril(M - T)
    return scaled_dot_product_attention(q, k, v, attn_mask=seen_TM)


def _repeat(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    times = q.shape[1] // k.shape[1]
    return (k, v) if times == 1 else (k.repeat_interleave(times, 1), v.repeat_interleave(times, 1))


def _attend(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
            attention_mask: torch.Tensor | None, *, attention: Attention | None = None,
            **others: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The registered function: mixed values [B, T, H, d], and no weights. Under autocast the stock rotation leaves
    queries and keys in float32; they are brought to the values' dtype, as autocast would at every product."""
    if attention is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        stock: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **others)
        return stock
    mixed = attention(module.layer_idx, query.to(value.dtype), key.to(value.dtype), value)
    return mixed.transpose(1, 2), None
