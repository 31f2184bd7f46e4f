"""Attention of a group's queries to their prompt's keys, and its merge with attention to a row's own keys.

All rollouts of a prompt ask the same keys, so their queries are rows of one product: the keys are read once a group.
A softmax over two sets of keys is that over each, weighed by their log-sum-exps. Ways to attend to a prefix, all with
one contract (`PrefixAttention`): `plain` writes it out and runs everywhere; `flash_whole` and `flash_blocks` are
torch's flash attention on a GPU, `flash_whole` for prompts of one length.
Legend: B prompts, K key-value heads, M queries of a prompt and key-value head, P prefix tokens (padded), d head width,
S blocks of a prefix."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["PREFIX", "PrefixAttention", "flash_blocks", "flash_whole", "merge", "merge_blocks", "plain"]

PrefixAttention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
                           tuple[torch.Tensor, torch.Tensor]]
"""(queries [B, K, M, d], keys [B, K, P, d], values [B, K, P, d], lengths [B]) -> mixed values [B, K, M, d] and
log-sum-exps of the scaled scores [B, K, M], at least float32; no key at or past a prompt's length counts"""

BLOCK = 512
"""keys of a prefix that one part of `flash_blocks` reads"""


def plain(q_BKMd: torch.Tensor, k_BKPd: torch.Tensor, v_BKPd: torch.Tensor,
          lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `PrefixAttention`."""
    wide = torch.promote_types(q_BKMd.dtype, torch.float32)
    scores = ((q_BKMd * q_BKMd.shape[-1] ** -0.5) @ k_BKPd.transpose(-1, -2)).to(wide)
    past_BP = torch.arange(k_BKPd.shape[2], device=q_BKMd.device) >= lengths_B[:, None]
    scores = scores.masked_fill(past_BP[:, None, None], float("-inf"))
    sums_BKM = torch.logsumexp(scores, -1)
    return (scores - sums_BKM[..., None]).exp().to(v_BKPd.dtype) @ v_BKPd, sums_BKM


def flash_whole(q_BKMd: torch.Tensor, k_BKPd: torch.Tensor, v_BKPd: torch.Tensor,
                lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `PrefixAttention`; only for prompts that are all P long."""
    found = torch.ops.aten._scaled_dot_product_flash_attention(q_BKMd, k_BKPd, v_BKPd, 0.0, False, False)
    return found[0], found[1]


def _flash_sequences(q_NMd: torch.Tensor, k_Xd: torch.Tensor, v_Xd: torch.Tensor, starts_N: torch.Tensor,
                     used_N: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of N sequences, each of M queries over the `used_N` keys from `starts_N` on, at most `most`: mixed
    values [N * M, d] and log-sum-exps [N * M], in whatever shape; of a sequence without keys they may be anything."""
    N, M, d = q_NMd.shape
    bounds_q = (torch.arange(N + 1, device=q_NMd.device) * M).int()
    bounds_k = torch.cat([starts_N, starts_N.new_full((1,), len(k_Xd))]).int()
    found = torch.ops.aten._flash_attention_forward(
        q_NMd.reshape(-1, 1, d), k_Xd[:, None], v_Xd[:, None], bounds_q, bounds_k, M, most, 0.0, False, False,
        scale=d**-0.5, seqused_k=used_N.int())
    return found[0], found[1]


def flash_blocks(q_BKMd: torch.Tensor, k_BKPd: torch.Tensor, v_BKPd: torch.Tensor, lengths_B: torch.Tensor,
                 attend: Callable[..., tuple[torch.Tensor, torch.Tensor]] = _flash_sequences,
                 ) -> tuple[torch.Tensor, torch.Tensor]:
    """See `PrefixAttention`. Each block of a prefix is a sequence of its own, of as many keys as the prompt has there,
    so that prompts may differ in length and all of the GPU is at work; the blocks are merged by log-sum-exp."""
    (B, K, P, d), M = k_BKPd.shape, q_BKMd.shape[2]
    S = -(-P // BLOCK)
    starts_S = torch.arange(S, device=q_BKMd.device) * BLOCK
    used_BS = (lengths_B[:, None] - starts_S).clamp(0, BLOCK)
    used = used_BS[:, None].expand(B, K, S).reshape(-1)
    starts = (torch.arange(B * K, device=q_BKMd.device)[:, None] * P + starts_S).reshape(-1)
    q = q_BKMd[:, :, None].expand(B, K, S, M, d).reshape(-1, M, d)
    mixed, sums = attend(q, k_BKPd.reshape(-1, d), v_BKPd.reshape(-1, d), starts, used, BLOCK)
    mixed_BKSMd, sums_BKSM = mixed.view(B, K, S, M, d), sums.reshape(B, K, S, M)
    return merge_blocks(mixed_BKSMd, sums_BKSM.masked_fill((used_BS == 0)[:, None, :, None], float("-inf")))


def merge_blocks(mixed_BKSMd: torch.Tensor, sums_BKSM: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One attention from those over S blocks of its keys; a block without keys has the log-sum-exp -inf."""
    sums_BKM = torch.logsumexp(sums_BKSM, 2)
    shares = (sums_BKSM - sums_BKM[:, :, None]).exp()[..., None]
    wide = torch.where(shares > 0, mixed_BKSMd.to(shares.dtype), 0.0)  # what lies in an empty block may be anything
    return (wide * shares).sum(2).to(mixed_BKSMd.dtype), sums_BKM


def merge(one: torch.Tensor, sums: torch.Tensor, other: torch.Tensor, other_sums: torch.Tensor) -> torch.Tensor:
    """Mixed values [..., d] over two sets of keys, from those over each and their log-sum-exps [...]."""
    share = torch.sigmoid(sums - other_sums)[..., None]
    return (one * share + other * (1 - share)).to(one.dtype)


PREFIX: dict[str, PrefixAttention] = {"plain": plain, "flash_whole": flash_whole, "flash_blocks": flash_blocks}
"""ways to attend to a prefix, by name"""
