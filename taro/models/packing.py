"""Packed rows: a prompt once, then every response to it, `[prefix | r_1 | .. | r_G]`, of one group or of several.

Every response sees the prefix of its group and itself, and starts at the position that follows the prefix, so
G * (P + R) tokens become P + G * R. A `PackedBatch` is one such row and all that a pass over it needs: positions, mask,
the places of the videos, and which hidden state predicts which token of which response. Another way to lay out or to
attend (full rows, FlexAttention) is another function that gives PackedBatches: `Packer`.
Legend: B prompts, G rollouts, P prefix tokens, R response tokens, T tokens of the row, M video tokens, N log-probs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from taro.models.attention import Attention, by_group, masked
from taro.models.language_model import VideoTokens
from taro.models.prompt import Prompt

__all__ = ["PackedBatch", "Packer", "one_group_a_row", "pack"]


@dataclass(frozen=True)
class PackedBatch:
    """One row of segments.

    ids_T, positions_3T: tokens and M-RoPE positions; group_T: the prompt that each belongs to; response_T: the response
    of that group, -1 for its prefix. video: features of all prompts at their places in the row. before_N: places of the
    hidden states that predict `targets_N`; to_N: where in [B, G, R] (flattened) their log-probs belong."""

    ids_T: torch.Tensor
    positions_3T: torch.Tensor
    group_T: torch.Tensor
    response_T: torch.Tensor
    video: VideoTokens
    before_N: torch.Tensor
    targets_N: torch.Tensor
    to_N: torch.Tensor

    def __post_init__(self) -> None:
        T = (len(self.ids_T),)
        assert self.positions_3T.shape == (3, *T) and self.group_T.shape == self.response_T.shape == T
        assert self.before_N.shape == self.targets_N.shape == self.to_N.shape

    def mask_TT(self, device: torch.device) -> torch.Tensor:
        """bool [T, T], True where query (row) may see key (column): earlier tokens of its group's prefix or of its own
        response."""
        group, response = self.group_T.to(device), self.response_T.to(device)
        index = torch.arange(len(group), device=device)
        shared = (response == -1) | (response[:, None] == response)
        return (index[:, None] >= index) & (group[:, None] == group) & shared

    def attention(self, device: torch.device) -> Attention:
        """The attention of this row, or of its last tokens over the keys of all. A CPU computes what `mask_TT` shows
        and little besides; a GPU, where many small products cost more than a large one, all of it under the mask."""
        if device.type == "cpu":
            return by_group(self.lengths())
        mask_TT = self.mask_TT(device)

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return masked(mask_TT[-q.shape[2] :][None, None])(layer, q, k, v)

        return attend

    def lengths(self) -> list[list[int]]:
        """Of each group: tokens of its prefix, then of each response that has any."""
        responses_T = self.response_T + 1
        parts = torch.unique_consecutive(torch.stack([self.group_T, responses_T]), dim=1, return_counts=True)
        found: list[list[int]] = []
        for response, count in zip(parts[0][1].tolist(), parts[1].tolist(), strict=True):
            found += [] if response else [[]]
            found[-1].append(count)
        return found


Packer = Callable[[Sequence[Prompt], torch.Tensor, torch.Tensor], Iterator[PackedBatch]]
"""(B prompts, ids [B, G, R], mask [B, G, R]) -> rows that hold every valid token of every response once"""


def one_group_a_row(prompts: Sequence[Prompt], ids_BGR: torch.Tensor, mask_BGR: torch.Tensor) -> Iterator[PackedBatch]:
    """A row for each prompt, at its own length: its numbers do not depend on what else is in the batch."""
    for b in range(len(prompts)):
        yield pack(prompts, ids_BGR, mask_BGR, groups=[b])


def pack(prompts: Sequence[Prompt], ids_BGR: torch.Tensor, mask_BGR: torch.Tensor, *,
         groups: Sequence[int]) -> PackedBatch:
    """One row, on the CPU, of the prompts numbered `groups` and the valid tokens of their responses, no padding among
    them. ids_BGR: response tokens, valid ones first; mask_BGR: which are valid."""
    ids_BGR, mask_BGR = ids_BGR.cpu(), mask_BGR.cpu()
    _, G, width = ids_BGR.shape
    parts: list[list[torch.Tensor]] = [[] for _ in range(8)]
    ids, positions, group, response, places, before, targets, to = parts
    start = 0
    for b in groups:
        prompt, P = prompts[b], len(prompts[b].ids_P)
        g_N, r_N = mask_BGR[b].nonzero(as_tuple=True)
        N, first = len(g_N), start + P
        ids += [prompt.ids_P.cpu(), ids_BGR[b, g_N, r_N]]
        positions += [prompt.positions_3P.cpu(), (prompt.next_position + r_N).expand(3, N)]
        group.append(torch.full((P + N,), b))
        response += [torch.full((P,), -1), g_N]
        places.append(prompt.places_M.cpu() + start)
        before.append(torch.where(r_N == 0, first - 1, first - 1 + torch.arange(N)))  # of a response: the prompt's last
        targets.append(ids[-1])
        to.append((b * G + g_N) * width + r_N)
        start += P + N
    videos = [prompts[b].video for b in groups]
    levels = zip(*(x.levels_LMD for x in videos), strict=True)
    video = VideoTokens(torch.cat(places), torch.cat([x.main_MD for x in videos]), tuple(map(torch.cat, levels)))
    return PackedBatch(torch.cat(ids), torch.cat(positions, 1), torch.cat(group), torch.cat(response), video,
                       torch.cat(before), torch.cat(targets), torch.cat(to))
