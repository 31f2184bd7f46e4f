"""Log-probabilities of a group's responses, video and prompt read once for the whole group.

Rows come from packing.py. Works under autograd, with or without recomputation of layers (a cache of keys and values
with recomputation is silently wrong; a packed row is right). Logits exist for a chunk of tokens at a time, in the
backward pass too: they are recomputed there, which costs one more product with the head. What else the logits tell of
a token (`Also`) comes from the same chunk, and costs nothing where it is not asked for.
Legend: C what is scored, B prompts, G rollouts, R response tokens, M tokens, N log-probs of a row, D width, V
vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch.utils.checkpoint import checkpoint as recompute

from taro.models.offload import Recompute
from taro.models.packing import PackedBatch, Packer, one_group_a_row
from taro.models.policy import Policy
from taro.models.prompt import Prompt

__all__ = ["Also", "masked_logits", "row_logprobs", "score", "score_also", "token_logprobs"]

TOKENS_AT_ONCE = 2048
"""bounds the fp32 logits [tokens, V] that exist at a time"""

Also = Literal["entropy", "top"]
"""entropy: of the distribution that the token is drawn from, in nats, with a gradient; top: 1 where the token is its
most likely one, else 0"""


def score(policy: Policy, prompts: Sequence[Prompt], ids_BGR: torch.Tensor, mask_BGR: torch.Tensor, *,
          temperature: float = 1.0, checkpoint_activations: Recompute = False,
          packer: Packer = one_group_a_row) -> torch.Tensor:
    """log pi(o_t | video, query, o_<t) [B, G, R], fp32 (float64 of a float64 policy); 0 where `mask_BGR` is False.

    Args:
        ids_BGR: response tokens, valid ones first; mask_BGR: which are valid.
        temperature: logits are divided by it, as in sampling.
        checkpoint_activations: recompute the layers in the backward pass; their inputs are kept, or offloaded.
        packer: lays the groups out in rows.

    Raises ValueError where prompts, ids and mask do not fit each other."""
    return score_also(policy, prompts, ids_BGR, mask_BGR, temperature=temperature,
                      checkpoint_activations=checkpoint_activations, packer=packer)[0]


def score_also(policy: Policy, prompts: Sequence[Prompt], ids_BGR: torch.Tensor, mask_BGR: torch.Tensor, *,
               also: Sequence[Also] = (), temperature: float = 1.0, checkpoint_activations: Recompute = False,
               packer: Packer = one_group_a_row) -> torch.Tensor:
    """`score`, and what `also` names, [1 + len(also), B, G, R]."""
    if not ids_BGR.shape == mask_BGR.shape or len(prompts) != len(ids_BGR):
        raise ValueError(f"{len(prompts)} prompts, ids {tuple(ids_BGR.shape)}, mask {tuple(mask_BGR.shape)}")
    scores = torch.zeros(1 + len(also), ids_BGR.numel(), dtype=torch.float32, device=policy.device)
    for row in packer(prompts, ids_BGR, mask_BGR):
        found_CN = _row_scores(policy, row, also, temperature=temperature, checkpoint=checkpoint_activations)
        scores = scores.to(found_CN.dtype).index_copy(1, row.to_N.to(policy.device), found_CN)
    return scores.view(len(scores), *ids_BGR.shape)


def row_logprobs(policy: Policy, row: PackedBatch, *, temperature: float, checkpoint: Recompute) -> torch.Tensor:
    """fp32 log-probs [N] of the row's targets."""
    return _row_scores(policy, row, (), temperature=temperature, checkpoint=checkpoint)[0]


def _row_scores(policy: Policy, row: PackedBatch, also: Sequence[Also], *, temperature: float,
                checkpoint: Recompute) -> torch.Tensor:
    device = policy.device
    hidden_TD = policy.language_model(row.ids_T.to(device)[None], row.positions_3T.to(device)[:, None],
                                      row.attention(device), video=row.video, checkpoint=checkpoint)[0]
    hidden_ND = hidden_TD[row.before_N.to(device)]
    return _token_scores(policy, hidden_ND, row.targets_N.to(device), also, temperature=temperature)


def masked_logits(policy: Policy, hidden_MD: torch.Tensor, temperature: float) -> torch.Tensor:
    """fp32 logits [M, V] over the temperature, tokens that no response may hold at -inf: what is sampled from and what
    is scored, so that the two cannot drift apart."""
    logits: torch.Tensor = policy.language_model.head(hidden_MD)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits = logits / temperature  # a line of its own: what stood before is freed, and two of them are the most
    return logits.masked_fill(policy.banned_V, float("-inf"))


def token_logprobs(policy: Policy, hidden_MD: torch.Tensor, ids_M: torch.Tensor, *,
                   temperature: float) -> torch.Tensor:
    """fp32 log-probs [M] of `ids_M` after hidden states `hidden_MD`. Logits exist for a chunk of tokens at a time; for
    gradients they are recomputed, since all of them, [M, V] in fp32, would be gigabytes."""
    return _token_scores(policy, hidden_MD, ids_M, (), temperature=temperature)[0]


def _token_scores(policy: Policy, hidden_MD: torch.Tensor, ids_M: torch.Tensor, also: Sequence[Also], *,
                  temperature: float) -> torch.Tensor:
    """[1 + len(also), M]: log-probs of `ids_M`, and what `also` names."""

    def chunk(hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        logp_MV = torch.log_softmax(masked_logits(policy, hidden, temperature), dim=-1)
        found = [logp_MV.gather(-1, ids[:, None])[:, 0]]
        for name in also:
            if name == "entropy":  # a banned token has p = 0 and log p = -inf: 0, in the gradient too
                found.append(-(logp_MV.exp() * logp_MV.masked_fill(policy.banned_V, 0.0)).sum(-1))
            else:
                found.append((logp_MV.detach().argmax(-1) == ids).to(logp_MV.dtype))
        return torch.stack(found)

    kept = torch.is_grad_enabled()
    parts = [recompute(chunk, hidden, ids, use_reentrant=False) if kept else chunk(hidden, ids)
             for hidden, ids in zip(hidden_MD.split(TOKENS_AT_ONCE), ids_M.split(TOKENS_AT_ONCE), strict=True)]
    return torch.cat(parts, dim=1)
