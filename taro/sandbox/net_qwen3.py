"""Rows of the sandbox's Qwen3-VL for net.py: a timestamp, a start token, the features and an end token for each patch.

The tower is taro.models's own. What is made here is what differs in a batch whose rows hold videos of other lengths:
the tokens between runs, their positions, and where each row's deepstack levels go.

Legend: B rows, S temporal patches of the longest, N tokens of a patch, R text tokens, D width, L levels."""

from __future__ import annotations

from typing import Any

import torch

from taro.models.families.qwen3_vl import encode_with_levels
from taro.models.language_model import VideoTokens
from taro.sandbox.data import Examples

__all__ = ["row_positions", "stamped_rows"]

STAMP, END = 2, 1
"""tokens before and after a run"""


def stamped_rows(model: Any, batch: Examples, patches_QPC: torch.Tensor,
                 before: int) -> tuple[torch.Tensor, torch.Tensor, VideoTokens]:
    """Embeddings [B, S * (STAMP + N + END), D] of the video's part of each row; positions [3, B, .] of whole rows with
    `before` tokens before it and R after; the features at their places in whole rows."""
    visual, embed, config = model.model.visual, model.model.language_model.embed_tokens, model.config
    B, S, device = len(batch), batch.stamps_NS.shape[1], batch.ids_NR.device
    side = round(patches_QPC.shape[1] ** 0.5)
    main, levels = encode_with_levels(visual, patches_QPC, (side, side))
    N, D = main.shape[1:]
    start, end = (embed(torch.tensor(token, device=device)).expand(B, S, 1, D)
                  for token in (config.vision_start_token_id, config.vision_end_token_id))
    stamps = embed(batch.stamps_NS)[:, :, None]
    rows = torch.cat([stamps, start, main.view(B, S, N, D).to(stamps.dtype), end], 2)
    run = STAMP + N + END
    index = torch.arange(S, device=device)[:, None] * run + torch.arange(STAMP, STAMP + N, device=device)
    main_BMD, *levels_BMD = (x.reshape(B, S * N, D) for x in (main, *levels))
    video = VideoTokens(before + index.flatten(), main_BMD, tuple(levels_BMD))
    cells = side // visual.spatial_merge_size
    positions = row_positions(batch.patches_N, S, cells, before=before, text=batch.ids_NR.shape[1])
    return rows.flatten(1, 2), positions, video


def row_positions(patches_B: torch.Tensor, S: int, cells: int, *, before: int, text: int) -> torch.Tensor:
    """Positions [3, B, T] of rows of S runs of `cells` x `cells` features, of which a row uses `patches_B`: as
    `taro.models.families.positions.interleaved_positions` gives them to each row's used tokens."""
    device, B = patches_B.device, len(patches_B)
    stride = STAMP + cells + END
    place = torch.arange(cells, device=device)
    run = torch.cat([torch.arange(STAMP, device=device).expand(3, STAMP),
                     STAMP + torch.stack([torch.zeros(cells, cells, dtype=torch.long, device=device),
                                          place[:, None].expand(cells, cells), place.expand(cells, cells)]).flatten(1),
                     torch.full((3, END), STAMP + cells, device=device)], 1)
    video = before + (torch.arange(S, device=device)[:, None] * stride + run[:, None]).flatten(1)
    head = torch.arange(before, device=device).expand(3, B, before)
    tail = (before + patches_B * stride)[:, None] + torch.arange(text, device=device)
    return torch.cat([head, video[:, None].expand(3, B, -1), tail.expand(3, B, text)], -1)
