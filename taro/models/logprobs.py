"""Log-probabilities of a group's responses, video and prompt read once for the whole group.

One packed row per prompt, `[prefix | r_1 | .. | r_G]`: every response sees the prefix and itself, and starts at the
same position. G * (P + R) tokens become P + G * R. A row is computed on its own, at its own length, so the numbers do
not depend on what else is in the batch. Works under autograd, with or without recomputation of layers (METHOD 6: a
cache with checkpointing is silently wrong; a packed row is right).

Legend: B prompts, G rollouts, P prefix tokens, R response tokens, L = P + G * R, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint as recompute

from taro.models.decoder import Deepstack, hidden_states, masked
from taro.models.policy import Policy, Prompt

__all__ = ["embed_prompt", "masked_logits", "packed_mask", "packed_positions", "prompt_deepstack", "score",
           "token_logprobs"]

TOKENS_AT_ONCE = 2048
"""bounds the fp32 logits [tokens, V] that exist at a time"""


def score(
    policy: Policy,
    prompts: Sequence[Prompt],
    ids_BGR: torch.Tensor,
    mask_BGR: torch.Tensor,
    *,
    temperature: float = 1.0,
    checkpoint_activations: bool = False,
) -> torch.Tensor:
    """log pi(o_t | video, query, o_<t) [B, G, R], fp32; 0 where `mask_BGR` is False.

    Args:
        ids_BGR: response tokens, valid ones first; mask_BGR: which are valid.
        temperature: logits are divided by it, as in sampling.
        checkpoint_activations: recompute layers and logits in the backward pass.
    """
    if not ids_BGR.shape == mask_BGR.shape or len(prompts) != len(ids_BGR):
        raise ValueError(f"{len(prompts)} prompts, ids {tuple(ids_BGR.shape)}, mask {tuple(mask_BGR.shape)}")
    rows = [
        _score_group(policy, prompt, ids, mask, temperature=temperature, checkpoint=checkpoint_activations)
        for prompt, ids, mask in zip(prompts, ids_BGR, mask_BGR, strict=True)
    ]
    return torch.stack(rows)


def _score_group(
    policy: Policy, prompt: Prompt, ids_GR: torch.Tensor, mask_GR: torch.Tensor, *, temperature: float, checkpoint: bool
) -> torch.Tensor:
    G, full_R = ids_GR.shape
    device = policy.device
    R = max(int(mask_GR.sum(-1).max()), 1)
    ids, valid = ids_GR[:, :R].to(device), mask_GR[:, :R].to(device)
    embeds = torch.cat([embed_prompt(policy, prompt), policy.lm.embed_tokens(ids.reshape(-1))])[None]
    P = len(prompt.ids_P)
    positions = packed_positions(prompt, G, R).to(device)[:, None]
    attend = masked(packed_mask(P, G, R, device)[None, None])
    deepstack = prompt_deepstack(prompt)
    hidden = hidden_states(policy.lm, embeds, positions, attend, checkpoint=checkpoint, deepstack=deepstack)[0]
    before = hidden[P - 1 : P].expand(G, 1, -1)  # predicts the first token of every response
    hidden_GRD = torch.cat([before, hidden[P:].view(G, R, -1)[:, :-1]], dim=1)
    logprobs = hidden.new_zeros((G, full_R), dtype=torch.float32)
    found = token_logprobs(policy, hidden_GRD[valid], ids[valid], temperature=temperature, checkpoint=checkpoint)
    return logprobs.index_put(tuple(valid.nonzero().T), found)


def embed_prompt(policy: Policy, prompt: Prompt) -> torch.Tensor:
    """[P, D] embeddings of the prompt; the video's tokens are its features, placed by prompt position, never by
    token id (a response may not, but a hostile checkpoint could, hold the placeholder)."""
    embeds: torch.Tensor = policy.lm.embed_tokens(prompt.ids_P.to(policy.device))
    features = prompt.features.main_SND.to(device=embeds.device, dtype=embeds.dtype).flatten(0, 1)
    return embeds.index_copy(0, prompt.places_M.to(embeds.device), features)


def prompt_deepstack(prompt: Prompt) -> Deepstack | None:
    """The further levels of the prompt's video at its tokens; None where the family has none."""
    levels = prompt.features.deepstack_LSND
    return Deepstack(prompt.places_M, tuple(level.flatten(0, 1) for level in levels)) if levels else None


def packed_positions(prompt: Prompt, G: int, R: int) -> torch.Tensor:
    """[3, P + G * R]: the prompt's own, then G times the R positions that follow it."""
    tail = torch.arange(prompt.next_position, prompt.next_position + R).repeat(G).expand(3, G * R)
    return torch.cat([prompt.positions_3P, tail.to(prompt.positions_3P.device)], dim=1)


def packed_mask(P: int, G: int, R: int, device: torch.device) -> torch.Tensor:
    """bool [L, L], True where query (row) may see key (column): earlier tokens of the prefix or of its own response."""
    index = torch.arange(P + G * R, device=device)
    group = torch.where(index < P, -1, (index - P) // R)
    return (index[:, None] >= index) & ((group == -1) | (group[:, None] == group))


def masked_logits(policy: Policy, hidden_MD: torch.Tensor, temperature: float) -> torch.Tensor:
    """fp32 logits [M, V] over the temperature, tokens that no response may hold at -inf: what is sampled from and what
    is scored, so that the two cannot drift apart."""
    logits = linear(hidden_MD, policy.head.weight).float() / temperature
    return logits.masked_fill(policy.banned_V, float("-inf"))


def token_logprobs(
    policy: Policy, hidden_MD: torch.Tensor, ids_M: torch.Tensor, *, temperature: float, checkpoint: bool = False
) -> torch.Tensor:
    """fp32 log-probs [M] of `ids_M` after hidden states `hidden_MD`; logits exist for a chunk of tokens at a time."""

    def chunk(hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        logits = masked_logits(policy, hidden, temperature)
        return torch.log_softmax(logits, dim=-1).gather(-1, ids[:, None])[:, 0]

    parts = []
    for hidden, ids in zip(hidden_MD.split(TOKENS_AT_ONCE), ids_M.split(TOKENS_AT_ONCE), strict=True):
        parts.append(recompute(chunk, hidden, ids, use_reentrant=False) if checkpoint else chunk(hidden, ids))
    return torch.cat(parts) if parts else hidden_MD.new_zeros(0, dtype=torch.float32)
