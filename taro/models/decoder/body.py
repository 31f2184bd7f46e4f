"""One token through one layer, and from hidden states to the next token: functions of tensors alone.

All layers have the same shapes, so one compiled `layer` serves them all, their weights its inputs. Roundings are those
of the stock layers, under autocast too: what goes from layer to layer and norms have their own precision, products have
that of the weights. Caches are written in place.
Legend: N rows, B prompts, C cells (prompts times rollouts, B * G), R response tokens, K key-value heads, Q queries per
key-value head, P prefix tokens, d head width, D width, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn.functional import linear

from taro.models.decoder.prefix import PrefixAttention, merge
from taro.models.decoder.weights import Layer, Shape
from taro.models.picking import pick_by_blocks
from taro.models.sampler import Decoding

__all__ = ["Caches", "Chosen", "LayerBody", "Places", "layer_of", "next_token_of", "normed"]


class Caches(NamedTuple):
    """Keys and values of one layer: of prompts [B, K, P, d], of rows [N, K, R, d]."""

    prefix_k: torch.Tensor
    prefix_v: torch.Tensor
    own_k: torch.Tensor
    own_v: torch.Tensor


class Places(NamedTuple):
    """Where rows stand. at_N: a row's place among its own keys; cell_N: its cell; row_C: a cell's row, any where it has
    none; lengths_B: of the prompts; cos, sin [N, d]: of the rotary table."""

    at_N: torch.Tensor
    cell_N: torch.Tensor
    row_C: torch.Tensor
    lengths_B: torch.Tensor
    cos_Nd: torch.Tensor
    sin_Nd: torch.Tensor


class Chosen(NamedTuple):
    """Tokens [N], and their log-probs [N] at the sampling temperature."""

    token_N: torch.Tensor
    logprob_N: torch.Tensor


LayerBody = Callable[[torch.Tensor, Layer, Caches, Places], torch.Tensor]
"""(x [N, D], weights, caches, places) -> x behind the layer; the rows' keys and values are added to the caches"""


def normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """The stock RMS norm."""
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def layer_of(shape: Shape, prefix: PrefixAttention) -> LayerBody:
    """(x [N, D], weights, caches, places) -> x behind the layer; the rows' keys and values are added to the caches."""
    H, K, d, eps, head_eps, activation = shape
    Q = H // K

    def layer(x_ND: torch.Tensor, w: Layer, caches: Caches, places: Places) -> torch.Tensor:
        dtype, N = w.out.dtype, x_ND.shape[0]
        q, k, v = _project(normed(x_ND, w.norm, eps).to(dtype), w.qkv, w.qkv_bias).view(N, H + 2 * K, d).split(
            [H, K, K], 1)
        if w.head_norms:
            q, k = normed(q, w.head_norms[0], head_eps), normed(k, w.head_norms[1], head_eps)
        q, k = (_rotated(one, places).to(dtype) for one in (q, k))
        rows = torch.arange(N, device=x_ND.device)
        caches.own_k[rows, :, places.at_N] = k.to(caches.own_k.dtype)
        caches.own_v[rows, :, places.at_N] = v.to(caches.own_v.dtype)
        q_NKQd = q.reshape(N, K, Q, d)
        mixed = merge(*_shared(q_NKQd, caches, places, prefix), *_own(q_NKQd, caches, places))
        x_ND = x_ND + linear(mixed.reshape(N, H * d), w.out, w.out_bias[0] if w.out_bias else None)
        gate, up = _project(normed(x_ND, w.mlp_norm, eps).to(dtype), w.gate_up, ()).chunk(2, -1)
        return x_ND + linear(activation(gate) * up, w.down)

    return layer


def _project(x_ND: torch.Tensor, weights: tuple[torch.Tensor, ...], biases: tuple[torch.Tensor, ...]) -> torch.Tensor:
    if len(weights) == 1:
        return linear(x_ND, weights[0], biases[0] if biases else None)
    parts = [linear(x_ND, weight, biases[n] if biases else None) for n, weight in enumerate(weights)]
    return torch.cat(parts, -1)


def _rotated(x_NHd: torch.Tensor, places: Places) -> torch.Tensor:
    low, high = x_NHd.chunk(2, -1)
    return x_NHd * places.cos_Nd[:, None] + torch.cat([-high, low], -1) * places.sin_Nd[:, None]


def _shared(q_NKQd: torch.Tensor, caches: Caches, places: Places,
            prefix: PrefixAttention) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of rows to their prompts: mixed values [N, K, Q, d] and log-sum-exps [N, K, Q]."""
    _, K, Q, d = q_NKQd.shape
    B = caches.prefix_k.shape[0]
    cells = q_NKQd[places.row_C].view(B, -1, K, Q, d).transpose(1, 2).reshape(B, K, -1, d)
    mixed, sums = prefix(cells, caches.prefix_k, caches.prefix_v, places.lengths_B)
    mixed = mixed.reshape(B, K, -1, Q, d).transpose(1, 2).reshape(-1, K, Q, d)[places.cell_N]
    return mixed, sums.reshape(B, K, -1, Q).transpose(1, 2).reshape(-1, K, Q)[places.cell_N]


def _own(q_NKQd: torch.Tensor, caches: Caches, places: Places) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of rows to their own tokens so far, this one included."""
    wide = torch.promote_types(q_NKQd.dtype, torch.float32)
    scores = ((q_NKQd * q_NKQd.shape[-1] ** -0.5) @ caches.own_k.transpose(-1, -2)).to(wide)
    later_NR = torch.arange(caches.own_k.shape[2], device=q_NKQd.device) > places.at_N[:, None]
    scores = scores.masked_fill(later_NR[:, None, None], float("-inf"))
    sums = torch.logsumexp(scores, -1)
    return (scores - sums[..., None]).exp().to(q_NKQd.dtype) @ caches.own_v, sums


def next_token_of(decoding: Decoding) -> Callable[..., Chosen]:
    """(hidden states [N, D], the head's weight [V, D], banned [V], tokens seen [N, V] or None, draws [N] or None) ->
    the next tokens, and their log-probs as scoring gives them."""

    def next_token(hidden_ND: torch.Tensor, head_VD: torch.Tensor, banned_V: torch.Tensor,
                   seen_NV: torch.Tensor | None, uniform_N: torch.Tensor | None) -> Chosen:
        logits_NV = linear(hidden_ND.to(head_VD.dtype), head_VD)
        logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)) / (decoding.temperature or 1.0)
        logits_NV = logits_NV.masked_fill(banned_V, float("-inf"))
        token_N = pick_by_blocks(logits_NV, decoding, seen_NV, uniform_N)
        return Chosen(token_N, logits_NV.gather(1, token_N[:, None])[:, 0] - torch.logsumexp(logits_NV, -1))

    return next_token
