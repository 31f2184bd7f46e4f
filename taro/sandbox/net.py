"""Batched training forward of the sandbox's models over the stock modules; net_qwen3.py has Qwen3-VL's rows.

Rows have one layout: 4 tokens before the video, a slot for the longest video, a slot for text; what a row does not use
is masked, and positions say where things are (taro.models.families.positions, here for a whole batch). The loss is over
the assistant's tokens.

Two functions repeat taro.models on purpose, for Qwen2.5-VL. `tower_features` is
taro.models.families.tower.encode_patches for the one case of the sandbox, a frame that is one window: the general one
builds its window layout with numpy, caches it and copies it to the device at every call, which breaks a compiled graph
and waits for the GPU; here all is tensor code of one graph. `batch_positions` is taro.models.families.positions for
rows of different lengths, without a loop over rows. Tests compare both, and the log-probabilities of whole examples,
with the originals.

Legend: B rows, T cells shown, S temporal patches, N tokens of a patch, R text tokens, D width."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy, interpolate, linear, scaled_dot_product_attention

from taro.models.attention import masked, route
from taro.models.families.pixels import to_patches
from taro.models.language_model import hidden_states
from taro.sandbox.data import Examples
from taro.sandbox.models import MEAN, STD
from taro.sandbox.net_qwen3 import stamped_rows

__all__ = ["BEFORE", "FlatPatches", "batch_positions", "pixels", "text_logits", "token_losses", "tower_features"]

BEFORE = 4
"""tokens before the video: <|im_start|>, user, a line break, <|vision_start|>"""


class FlatPatches(torch.nn.Module):
    """The stock patch embedding as one matrix product: its convolution has stride equal to its kernel, and cudnn is
    slow at it. Shares the convolution's weights, under their names."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.proj = stock.proj

    def forward(self, pixels_PC: torch.Tensor) -> torch.Tensor:
        """[P, C] to [P, D]."""
        return linear(pixels_PC, self.proj.weight.flatten(1), self.proj.bias)


def pixels(frames_BTHWC: torch.Tensor, flip_B: torch.Tensor, noise: float, patch_px: int = 14) -> torch.Tensor:
    """Normalised patches [B * S, P, C] of square uint8 frames, mirrored where flip_B, with noise of that deviation; at
    the nearest size that whole merged patches fill, which only differs from preprocessing by its rounding to uint8."""
    B, T, side, _, _ = frames_BTHWC.shape
    x = frames_BTHWC.float() / 255
    x = torch.where(flip_B.view(B, 1, 1, 1, 1), x.flip(3), x).permute(0, 1, 4, 2, 3).reshape(B * T, 3, side, side)
    shown = max(1, round(side / (2 * patch_px))) * 2 * patch_px
    if shown != side:
        x = interpolate(x, size=(shown, shown), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    if noise:
        x = x + noise * torch.randn_like(x)
    mean, std = (torch.tensor(value, device=x.device).view(3, 1, 1) for value in (MEAN, STD))
    return to_patches((x - mean) / std, patch_size=patch_px, merge=2)


def tower_features(visual: Any, patches_QPC: torch.Tensor) -> torch.Tensor:
    """Features [Q, N, D] of Q temporal patches of square frames no larger than a window."""
    Q, P, C = patches_QPC.shape
    side, merge, device = round(P**0.5), visual.spatial_merge_size, patches_QPC.device
    assert side * visual.patch_size <= visual.window_size, "a frame larger than a window"
    places = torch.arange(side, device=device, dtype=torch.float32).expand(side, side)
    cells = (side // merge, merge, side // merge, merge)
    rows, columns = (grid.reshape(cells).transpose(1, 2).reshape(-1) for grid in (places.T, places))
    width = visual.blocks[0].attn.qkv.out_features // 3 // visual.blocks[0].attn.num_heads
    inverse = 10000.0 ** (-torch.arange(0, width // 2, 2, device=device, dtype=torch.float32) / (width // 2))
    angles = torch.cat([rows[:, None] * inverse, columns[:, None] * inverse], -1).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    x = visual.patch_embed(patches_QPC.reshape(Q * P, C)).view(Q, P, -1)
    for block in visual.blocks:
        q, k, v = block.attn.qkv(block.norm1(x)).view(Q, P, 3, block.attn.num_heads, width).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(_rotate(q, cos, sin), _rotate(k, cos, sin), v)
        x = x + block.attn.proj(mixed.transpose(1, 2).reshape(Q, P, -1))
        x = x + block.mlp(block.norm2(x))
    merged: torch.Tensor = visual.merger(x.reshape(Q * P, -1)).view(Q, P // merge**2, -1)
    return merged


def _rotate(x_QHPd: torch.Tensor, cos_Pd: torch.Tensor, sin_Pd: torch.Tensor) -> torch.Tensor:
    x = x_QHPd.float()
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return (x * cos_Pd + turned * sin_Pd).to(x_QHPd.dtype)


def batch_positions(patches_B: torch.Tensor, seconds_B: torch.Tensor, slots: tuple[int, int, int], text: int,
                    rate: float) -> torch.Tensor:
    """Positions [3, B, L] of the row layout: as `taro.models.families.positions` gives them to each row's used
    tokens. slots: temporal patches, rows and columns of merged cells that the video slot holds."""
    S, rows, columns = slots
    device, B = patches_B.device, len(patches_B)
    index_S = torch.arange(S, device=device, dtype=torch.float64)
    time_BS = torch.floor(index_S[None] * rate * seconds_B.double()[:, None]).long()
    last_B = time_BS.gather(1, patches_B[:, None] - 1)[:, 0].clamp(min=max(rows, columns) - 1)
    shape = (B, S, rows, columns)
    video = torch.stack([time_BS[:, :, None, None].expand(shape),
                         torch.arange(rows, device=device)[None, None, :, None].expand(shape),
                         torch.arange(columns, device=device)[None, None, None].expand(shape)]).flatten(2) + BEFORE
    head = torch.arange(BEFORE, device=device).expand(3, B, BEFORE)
    tail = (BEFORE + last_B + 1)[:, None] + torch.arange(text, device=device)
    return torch.cat([head, video, tail.expand(3, B, text)], -1)


def text_logits(model: Any, batch: Examples, patches_QPC: torch.Tensor, before_ids: torch.Tensor) -> torch.Tensor:
    """Logits [B, R - 1, V] that predict text tokens 1 to R - 1."""
    lm, R = model.model.language_model, batch.ids_NR.shape[1]
    route(lm)
    B, S, device = len(batch), batch.cells_NT.shape[1] // 2, batch.ids_NR.device
    head = lm.embed_tokens(before_ids).expand(B, BEFORE, -1)
    stamped = None
    if model.config.model_type == "qwen3_vl":
        rows, positions, stamped = stamped_rows(model, batch, patches_QPC, BEFORE)
    else:
        visual = model.model.visual
        rows = tower_features(visual, patches_QPC).view(B, -1, head.shape[-1]).to(head.dtype)
        cells = round(patches_QPC.shape[1] ** 0.5) // visual.spatial_merge_size
        rate = visual.config.tokens_per_second
        positions = batch_positions(batch.patches_N, batch.seconds_N, (S, cells, cells), R, rate)
    x = torch.cat([head, rows, lm.embed_tokens(batch.ids_NR)], 1)
    length, run = x.shape[1], rows.shape[1] // S
    video = torch.arange(S * run, device=device) < batch.patches_N[:, None] * run
    seen = torch.ones(B, length, dtype=torch.bool, device=device)
    seen = torch.cat([seen[:, :BEFORE], video, seen[:, -R:]], 1)
    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None] & seen[:, None, None]
    hidden = hidden_states(lm, x, positions, masked(mask), video=stamped)[:, -R:-1]
    logits: torch.Tensor = model.lm_head(hidden)
    return logits


def token_losses(model: Any, batch: Examples, patches_QPC: torch.Tensor, before_ids: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of the assistant's tokens."""
    logits = text_logits(model, batch, patches_QPC, before_ids)
    place = torch.arange(1, batch.ids_NR.shape[1], device=logits.device)[None]
    counts = (place >= batch.prompt_N[:, None]) & (place < batch.total_N[:, None])
    nll = cross_entropy(logits.float().flatten(0, 1), batch.ids_NR[:, 1:].flatten(), reduction="none")
    return (nll.view_as(counts) * counts).sum() / counts.sum()
