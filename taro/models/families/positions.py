"""M-RoPE positions of a prompt that holds one video: computed here, in one function, and always passed to the model.

Released Qwen2.5-VL weights were trained with the text after a video starting at `max(t, h, w) + 1`; several versions of
transformers start it elsewhere, or truncate the seconds per patch, so nothing here asks the stock model.
Legend: S temporal patches, N tokens of a video or patch, P prompt tokens; axis 0 of every positions tensor is (time,
height, width)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["interleaved_positions", "video_positions"]


def video_positions(start: int, grid_thw: tuple[int, int, int], seconds_per_patch: float, *, tokens_per_second: float,
                    merge: int) -> tuple[torch.Tensor, int]:
    """Positions of a video's tokens, and the position of the text token that follows it.

    Time index of patch i: `floor(i * tokens_per_second * seconds_per_patch)`; rows and columns count merged cells; all
    three are offset by `start`. Text resumes at the largest of them plus one.

    Args:
        start: position of the first video token, one past the text before it.
        grid_thw: patches before merging; t temporal patches.
        seconds_per_patch: 2 / effective fps.
        tokens_per_second: from the checkpoint's vision config (2 for the released models).
        merge: side of a merged cell in patches.

    Returns:
        LongTensor [3, t * h/merge * w/merge] and the next position.

    >>> video_positions(15, (32, 12, 20), 1.0, tokens_per_second=2, merge=2)[1]
    78
    >>> video_positions(15, (32, 12, 20), 0.5, tokens_per_second=2, merge=2)[1]
    47
    >>> video_positions(15, (32, 12, 20), 1.9, tokens_per_second=2, merge=2)[1]
    133
    """
    t, h, w = grid_thw[0], grid_thw[1] // merge, grid_thw[2] // merge
    time = torch.floor(torch.arange(t, dtype=torch.float64) * tokens_per_second * seconds_per_patch).long()
    axes = torch.meshgrid(time, torch.arange(h), torch.arange(w), indexing="ij")
    positions_3N = torch.stack([axis.reshape(-1) for axis in axes]) + start
    return positions_3N, int(positions_3N.max()) + 1


def interleaved_positions(lengths: Sequence[int], cell_3N: torch.Tensor, extent: int) -> tuple[torch.Tensor, int]:
    """Positions [3, P] of texts with equal runs of visual tokens between them, and the position of the next token,
    where every rollout of the group starts.

    Args:
        lengths: tokens of each text, one text more than there are runs.
        cell_3N: positions of a run that starts at 0.
        extent: how far a run moves what follows it.

    >>> cell, extent = video_positions(0, (1, 4, 6), 0.0, tokens_per_second=0, merge=2)
    >>> positions, following = interleaved_positions((2, 1, 3), cell, extent)
    >>> positions[:, [0, 1, 2, 7, 8, 9, -1]].tolist(), following
    ([[0, 1, 2, 2, 5, 6, 11], [0, 1, 2, 3, 5, 6, 11], [0, 1, 2, 4, 5, 6, 11]], 12)
    """
    parts, at = [torch.arange(lengths[0]).expand(3, -1)], lengths[0]
    for length in lengths[1:]:
        parts += [cell_3N + at, torch.arange(at + extent, at + extent + length).expand(3, -1)]
        at += extent + length
    return torch.cat(parts, dim=1), at
