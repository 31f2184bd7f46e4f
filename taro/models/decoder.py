"""One forward pass of the language model for everything taro does with it: prefill, packed scoring, decoding.

The layers are the stock modules (so checkpoints, peft adapters and transformers' fixes apply); what differs between
the uses is attention alone, handed in as a function. Positions are always ours (positions.py).

Legend: B rows, T tokens, D width, H heads, K key-value heads, d head width, M video tokens, L deepstack levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint as recompute

__all__ = ["Attend", "Deepstack", "causal", "hidden_states", "masked"]

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(layer, queries [B, H, T, d], keys [B, K, T, d], values [B, K, T, d]) -> mixed values [B, H, T, d]"""


@dataclass(frozen=True)
class Deepstack:
    """Further features of a video (Qwen3-VL): level l [M, D] is added to the hidden states that language layer l puts
    out, at the tokens `places_M` of every row. Levels [B, M, D] hold a video of its own for each row."""

    places_M: torch.Tensor
    levels_LMD: tuple[torch.Tensor, ...]

    def __post_init__(self) -> None:
        assert all(level.shape[-2:-1] == self.places_M.shape for level in self.levels_LMD)

    def add(self, layer: int, x_BTD: torch.Tensor) -> torch.Tensor:
        """The hidden states after `layer`, its level added; unchanged past the last level."""
        if layer >= len(self.levels_LMD):
            return x_BTD
        level = self.levels_LMD[layer].to(device=x_BTD.device, dtype=x_BTD.dtype)
        return x_BTD.index_add(1, self.places_M.to(x_BTD.device), level.expand(len(x_BTD), *level.shape[-2:]))


def hidden_states(
    lm: Any,
    embeds_BTD: torch.Tensor,
    positions_3BT: torch.Tensor,
    attend: Attend,
    *,
    checkpoint: bool = False,
    deepstack: Deepstack | None = None,
) -> torch.Tensor:
    """Hidden states [B, T, D] after the final norm.

    Args:
        lm: stock text model (`layers`, `rotary_emb`, `norm`).
        embeds_BTD: token embeddings with video features in place.
        positions_3BT: M-RoPE positions.
        attend: the attention of this use.
        checkpoint: recompute each layer in the backward pass instead of keeping its activations.
        deepstack: levels to add after the first layers; rows that hold a video's tokens need it, tokens decoded after
            them do not.
    """
    cos, sin = lm.rotary_emb(embeds_BTD, positions_3BT)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    x = embeds_BTD
    for number, layer in enumerate(lm.layers):
        if checkpoint:
            x = recompute(_layer, number, layer, x, cos, sin, attend, use_reentrant=False)
        else:
            x = _layer(number, layer, x, cos, sin, attend)
        if deepstack is not None:
            x = deepstack.add(number, x)
    normed: torch.Tensor = lm.norm(x)
    return normed


def causal(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Plain causal attention."""
    return scaled_dot_product_attention(q, *_repeat(q, k, v), is_causal=True)


def masked(mask_B1TT: torch.Tensor) -> Attend:
    """Attention under a boolean mask (True: may be seen), broadcastable to [B, H, T, T]."""

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(q, *_repeat(q, k, v), attn_mask=mask_B1TT)

    return attend


def _repeat(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    times = q.shape[1] // k.shape[1]
    return (k, v) if times == 1 else (k.repeat_interleave(times, 1), v.repeat_interleave(times, 1))


def _layer(
    number: int, layer: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, attend: Attend
) -> torch.Tensor:
    attn = layer.self_attn
    B, T, _ = x.shape
    normed = layer.input_layernorm(x)
    q, k, v = (project(normed).view(B, T, -1, attn.head_dim) for project in (attn.q_proj, attn.k_proj, attn.v_proj))
    if hasattr(attn, "q_norm"):  # Qwen3: queries and keys are normalised a head at a time
        q, k = attn.q_norm(q), attn.k_norm(k)
    q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))
    mixed = attend(number, _rotate(q, cos, sin), _rotate(k, cos, sin), v)
    x = x + attn.o_proj(mixed.transpose(1, 2).reshape(B, T, -1))
    out: torch.Tensor = x + layer.mlp(layer.post_attention_layernorm(x))
    return out


def _rotate(x_BHTd: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x_BHTd.shape[-1] // 2
    turned = torch.cat([-x_BHTd[..., half:], x_BHTd[..., :half]], dim=-1)
    return x_BHTd * cos.to(x_BHTd.dtype) + turned * sin.to(x_BHTd.dtype)
