"""The Qwen2.5-VL vision tower over many temporal patches at once, and the parts that other Qwen towers share with it.

The stock forward calls attention once per window and per temporal patch, in a Python loop. In this tower a temporal
patch is encoded on its own, so all S of them share one window layout: tokens are laid out as the stock tower lays
them out (window order), and each layer runs one attention per window size (at most four). The layers are the stock
modules; only the loop is ours.
Legend: S temporal patches, P patches of one (h * w), N = P / merge**2 tokens after merging, D width, H heads."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["Layout", "axial_rotary", "encode_patches", "patch_attention", "patch_layout"]


def encode_patches(visual: Any, pixels_SPC: torch.Tensor, grid_hw: tuple[int, int]) -> torch.Tensor:
    """Features [S, N, D] of temporal patches `pixels_SPC` [S, P, C], each `grid_hw` patches high and wide.

    `visual` is the stock `Qwen2_5_VisionTransformerPretrainedModel`. S may span many clips of one frame size.
    Differentiable. Equal to the stock tower (test: 1e-6 in fp32)."""
    S, P, _ = pixels_SPC.shape
    merge = visual.spatial_merge_size
    side = visual.window_size // merge // visual.patch_size
    layout = patch_layout(*grid_hw, merge, side)
    device = pixels_SPC.device
    order_P = torch.tensor(layout.order, device=device)
    x = visual.patch_embed(pixels_SPC.reshape(S * P, -1)).view(S, P, -1)[:, order_P]
    cos, sin = axial_rotary(visual, layout, device)
    windows = [torch.tensor(index, device=device) for index in layout.windows]
    whole = [torch.arange(P, device=device)[None]]
    for number, block in enumerate(visual.blocks):
        full = number in visual.fullatt_block_indexes
        x = x + patch_attention(block.attn, block.norm1(x), cos, sin, whole if full else windows)
        x = x + block.mlp(block.norm2(x))
    merged: torch.Tensor = visual.merger(x.reshape(S * P, -1)).view(S, P // merge**2, -1)
    return merged[:, torch.tensor(layout.restore, device=device)]


class Layout:
    """Window order of one temporal patch: `order` [P] patches, `windows` per window size [count, size] places in that
    order, `restore` [N] merged cells back to raster order, `rows` and `cols` of the ordered patches."""

    def __init__(self, h: int, w: int, merge: int, side: int) -> None:
        cells_h, cells_w, unit = h // merge, w // merge, merge * merge
        raster = np.arange(cells_h * cells_w).reshape(cells_h, cells_w)
        tiles = [raster[top : top + side, left : left + side].reshape(-1)
                 for top in range(0, cells_h, side) for left in range(0, cells_w, side)]
        cells = np.concatenate(tiles)
        self.order = (cells[:, None] * unit + np.arange(unit)).reshape(-1)
        self.restore = np.argsort(cells)
        ends = np.cumsum([len(tile) * unit for tile in tiles])
        sizes: dict[int, list[np.ndarray]] = {}
        for tile, end in zip(tiles, ends, strict=True):
            sizes.setdefault(len(tile) * unit, []).append(np.arange(end - len(tile) * unit, end))
        self.windows = [np.stack(places) for places in sizes.values()]
        row, col = np.divmod(self.order // unit, cells_w)
        within_row, within_col = np.divmod(self.order % unit, merge)
        self.rows, self.cols = row * merge + within_row, col * merge + within_col


@lru_cache(maxsize=64)
def patch_layout(h: int, w: int, merge: int, side: int) -> Layout:
    """The layout of a temporal patch of h x w patches under windows of `side` merged cells; a side no smaller than the
    frame's gives one window, in which the order is the pixels' own."""
    return Layout(h, w, merge, side)


def axial_rotary(visual: Any, layout: Layout, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [P, head width] of the ordered patches: half the width turns with the row, half with the column."""
    inverse = visual.rotary_pos_emb.inv_freq.to(device=device, dtype=torch.float32)
    places_P2 = torch.tensor([*zip(layout.rows.tolist(), layout.cols.tolist(), strict=True)], device=device)
    angles = (places_P2[:, :, None].float() * inverse).flatten(1)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def patch_attention(attn: Any, x_SPD: torch.Tensor, cos_Pd: torch.Tensor, sin_Pd: torch.Tensor,
                    groups: list[torch.Tensor]) -> torch.Tensor:
    """Attention of a stock vision block inside each group of places ([count, size] a size), for all S at once."""
    S, P, _ = x_SPD.shape
    q, k, v = attn.qkv(x_SPD).view(S, P, 3, attn.num_heads, -1).unbind(2)
    q, k = _rotate(q, cos_Pd, sin_Pd), _rotate(k, cos_Pd, sin_Pd)

    def mix(places: torch.Tensor | slice, count: int, size: int) -> torch.Tensor:
        a, b, c = (t[:, places].reshape(S * count, size, attn.num_heads, -1).transpose(1, 2) for t in (q, k, v))
        out = scaled_dot_product_attention(a, b, c).transpose(1, 2)
        return out.reshape(S, count * size, attn.num_heads, -1)

    if len(groups) == 1:
        mixed = mix(slice(None), *groups[0].shape)
    else:
        mixed = torch.empty_like(q)
        for places in groups:
            mixed = mixed.index_copy(1, places.reshape(-1), mix(places.reshape(-1), *places.shape))
    projected: torch.Tensor = attn.proj(mixed.reshape(S, P, -1))
    return projected


def _rotate(x_SPHd: torch.Tensor, cos_Pd: torch.Tensor, sin_Pd: torch.Tensor) -> torch.Tensor:
    x = x_SPHd.float()
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return (x * cos_Pd[:, None] + turned * sin_Pd[:, None]).to(x_SPHd.dtype)
