"""Keys and values of a prompt's beginning, from one pass over a group, for another pass that begins alike.

Attention is causal: what a layer computes at a token depends on the tokens before it alone. So two passes under the
same weights, over rows that are equal up to some token, have the same keys and values there, and a pass over a
disrupted video need not go through what lies before the first patch that moved. The first pass keeps them, with or
without a gradient; the second, which has none, goes through the tokens behind them.

    kept = KeptPrefixes([shared_tokens(prompt, disrupted)])
    score(policy, [prompt], ids_BGR, mask_BGR, packer=kept.keep)
    score(policy, [disrupted], ids_BGR, mask_BGR, packer=kept.reuse)

Left out: reuse under dropout or after an update, which the caller must rule out.
Legend: B prompts, G rollouts, R response tokens, S temporal patches, N tokens of a patch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from taro.models.attention import Attention
from taro.models.language_model import VideoTokens
from taro.models.packing import PackedBatch, pack
from taro.models.prompt import Prompt

__all__ = ["KeptPrefixes", "shared_tokens"]


def shared_tokens(prompt: Prompt, other: Prompt) -> int:
    """How many tokens of a prompt come before the first whose features differ in `other`, a prompt of the same tokens:
    all of them where none does."""
    mine, theirs = prompt.features, other.features
    different_S = torch.zeros(len(mine.main_SND), dtype=torch.bool, device=mine.main_SND.device)
    for a, b in zip((mine.main_SND, *mine.deepstack_LSND), (theirs.main_SND, *theirs.deepstack_LSND), strict=True):
        different_S |= (a != b).flatten(1).any(1)
    moved = different_S.nonzero()
    if not len(moved):
        return len(prompt.ids_P)
    return int(prompt.places_M[int(moved[0]) * mine.main_SND.shape[1]])


class KeptPrefixes:
    """Of B prompts. `keep` and `reuse` are `taro.models.packing.Packer`s for the two passes, in this order and over the
    same responses. `tokens_B`: how many tokens of each prompt are kept; 0 keeps none."""

    def __init__(self, tokens_B: Sequence[int]) -> None:
        self._prefixes = [_Prefix(tokens) for tokens in tokens_B]

    def of(self, places: Sequence[int]) -> KeptPrefixes:
        """Those of some of the prompts, shared with these."""
        some = KeptPrefixes(())
        some._prefixes = [self._prefixes[place] for place in places]
        return some

    def keep(self, prompts: Sequence[Prompt], ids_BGR: torch.Tensor, mask_BGR: torch.Tensor) -> Iterator[PackedBatch]:
        """Plain rows, one a group, that leave their first keys and values here."""
        for b, (_, prefix) in enumerate(zip(prompts, self._prefixes, strict=True)):
            row = pack(prompts, ids_BGR, mask_BGR, groups=[b])
            yield _Keeping(**_values(row), prefix=prefix) if prefix.tokens else row

    def reuse(self, prompts: Sequence[Prompt], ids_BGR: torch.Tensor, mask_BGR: torch.Tensor) -> Iterator[PackedBatch]:
        """Rows that begin behind what was kept, which they take with them: each can be gone through once."""
        for b, (prompt, prefix) in enumerate(zip(prompts, self._prefixes, strict=True)):
            assert prefix.tokens < len(prompt.ids_P), "the prompt's last token predicts the first of every response"
            row = pack(prompts, ids_BGR, mask_BGR, groups=[b])
            yield (_Behind(**_values(_tail(row, prefix.tokens)), prefix=prefix, whole=row) if prefix.tokens else row)


class _Prefix:
    """Of one prompt: keys and values of its first `tokens` tokens by layer, [1, K heads, tokens, d] each."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._full = False

    def add(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Keeps a layer's, the first time that it is met: a recomputed layer's are the same."""
        if not self._full and layer not in self._kept:
            self._kept[layer] = k[:, :, : self.tokens].detach().clone(), v[:, :, : self.tokens].detach().clone()

    def take(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Gives a layer's away."""
        self._full = True
        return self._kept.pop(layer)


@dataclass(frozen=True)
class _Keeping(PackedBatch):
    """A row whose first keys and values are kept."""

    prefix: _Prefix

    def attention(self, device: torch.device) -> Attention:
        """As of any row."""
        inner = super().attention(device)

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            self.prefix.add(layer, k, v)
            return inner(layer, q, k, v)

        return attend


@dataclass(frozen=True)
class _Behind(PackedBatch):
    """The tokens of the row `whole` behind the kept ones, which they see."""

    prefix: _Prefix
    whole: PackedBatch

    def attention(self, device: torch.device) -> Attention:
        """Over the kept keys and values and the row's own."""
        inner = self.whole.attention(device)

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            before = self.prefix.take(layer)
            keys, values = (torch.cat([old.to(new.dtype), new], 2) for old, new in zip(before, (k, v), strict=True))
            return inner(layer, q, keys, values)

        return attend


def _values(row: PackedBatch) -> dict[str, Any]:
    return {field.name: getattr(row, field.name) for field in fields(PackedBatch)}


def _tail(row: PackedBatch, start: int) -> PackedBatch:
    """The tokens of a row from `start` on."""
    video, there_M = row.video, row.video.places_M >= start
    there = there_M.to(video.main_MD.device)
    tail = VideoTokens(video.places_M[there_M] - start, video.main_MD[there], tuple(x[there] for x in video.levels_LMD))
    return replace(row, ids_T=row.ids_T[start:], positions_3T=row.positions_3T[:, start:], group_T=row.group_T[start:],
                   response_T=row.response_T[start:], video=tail, before_N=row.before_N - start)
