"""Forced prefixes read in one pass: rows of different lengths over one prompt's keys, each causal among its own tokens.

Legend: N rows, F forced tokens (padded on the right), K key-value heads, Q queries per key-value head, P prefix tokens,
R response tokens, d head width, D width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from taro.models.decoder.prefix import PrefixAttention, merge
from taro.models.decoder.weights import Shape
from taro.models.policy import Policy

__all__ = ["ForcedPass"]

MOST_SCORES = 2**26
"""attention scores of a layer that exist at a time: 256 MiB in float32"""

LayerCaches = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""keys and values of the prompt [1, K, P, d]; of all rows [N', K, R, d], which are written"""


class ForcedPass:
    """See the module."""

    def __init__(self, policy: Policy, prefix: PrefixAttention, shape: Shape) -> None:
        self._policy, self._prefix, self._shape = policy, prefix, shape

    def parts(self, begun: Mapping[int, Sequence[int]],
              length: int) -> Iterator[tuple[list[int], list[Sequence[int]]]]:
        """Rows and their forced tokens, as many rows at a time as have room."""
        longest = max(len(ids) for ids in begun.values())
        at_once = max(MOST_SCORES // (self._shape.H * longest * (length + longest)), 1)
        rows = list(begun)
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            yield part, [begun[row] for row in part]

    def read(self, rows_N: torch.Tensor, ids: Sequence[Sequence[int]], next_N: torch.Tensor,
             caches: Sequence[LayerCaches]) -> torch.Tensor:
        """Hidden states [N, F, D]; keys and values go to the rows' own, those of padding too, which a row overwrites
        before it looks at them."""
        F, device = max(len(one) for one in ids), rows_N.device
        padded_NF = torch.tensor([[*one, *[0] * (F - len(one))] for one in ids], device=device)
        positions = (next_N[:, None] + torch.arange(F, device=device)).expand(3, -1, -1)
        lengths_1 = torch.tensor([caches[0][0].shape[2]], device=device)
        K, Q, d = self._shape.K, self._shape.H // self._shape.K, self._shape.d
        later_FF = torch.ones((F, F), dtype=torch.bool, device=device).triu(1)

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            prefix_k, prefix_v, own_k, own_v = caches[layer]
            own_k[rows_N, :, :F], own_v[rows_N, :, :F] = k.to(own_k.dtype), v.to(own_v.dtype)
            q_NKQFd = q.view(-1, K, Q, F, d)
            mixed, sums = self._prefix(q_NKQFd.transpose(0, 1).reshape(1, K, -1, d), prefix_k, prefix_v, lengths_1)
            mixed = mixed.reshape(K, -1, Q, F, d).transpose(0, 1)
            sums = sums.reshape(K, -1, Q, F).transpose(0, 1)
            scores = (q_NKQFd * d**-0.5) @ k[:, :, None].transpose(-1, -2)
            scores = scores.to(torch.promote_types(q.dtype, torch.float32)).masked_fill(later_FF, float("-inf"))
            own_sums = torch.logsumexp(scores, -1)
            own = (scores - own_sums[..., None]).exp().to(v.dtype) @ v[:, :, None]
            return merge(mixed, sums, own, own_sums).reshape(-1, K * Q, F, d).to(v.dtype)

        hidden_NFD: torch.Tensor = self._policy.language_model(padded_NF, positions, attend)
        return hidden_NFD
