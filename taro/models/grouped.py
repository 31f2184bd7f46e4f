"""Grouped decoding: the prefix's keys and values are computed and stored once per prompt, never once per rollout.

Each rollout attends to its prompt's prefix and to its own tokens; the two parts share one softmax. Groups whose
rollouts have all ended leave the batch. Sampling needs one uniform number per token (inverse CDF), handed in, so a
draw depends on its name alone (taro.core.draws) and not on the batch, the device or the order of calls. On a GPU a
token's forward pass is a CUDA graph, captured anew when prompts leave: hundreds of small kernels cost more to launch
than to run.
Legend: B prompts, G rollouts, P prefix tokens (padded), R response tokens, K key-value heads, Q queries per key-value
head, d head width, V vocabulary. Rows are B * G, prompt-major."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from taro.models.attention import causal
from taro.models.logprobs import masked_logits
from taro.models.picking import pick
from taro.models.policy import Policy
from taro.models.prompt import Prompt
from taro.models.sampler import Decoding, Forced, Rollouts

__all__ = ["generate"]

CHECK_EVERY = 8
"""tokens between checks for finished groups (each one waits for the device)"""


@torch.no_grad()
def generate(policy: Policy, prompts: Sequence[Prompt], *, G: int, decoding: Decoding, forced: Forced | None = None,
             uniforms_BGR: np.ndarray | None = None) -> Rollouts:
    """G responses of a policy to each prompt: `Sampler`, by grouped decoding. Raises ValueError as it does."""
    R, B, device = decoding.max_new_tokens, len(prompts), policy.device
    if decoding.temperature > 0 and (uniforms_BGR is None or uniforms_BGR.shape != (B, G, R)):
        got = None if uniforms_BGR is None else uniforms_BGR.shape
        raise ValueError(f"sampling needs uniforms of shape {(B, G, R)}, got {got}")
    forced_NR, forced_N = _forced(forced, B, G, R, device)
    prefix = _Prefix(policy, prompts)
    state = _Rows(policy, prefix, prompts, G, R)
    uniforms_NR = None if uniforms_BGR is None else torch.from_numpy(uniforms_BGR).reshape(B * G, R).to(device)
    ids = torch.full((B * G, R), policy.pad_id, dtype=torch.long, device=device)
    logprobs = torch.zeros((B * G, R), dtype=torch.float32, device=device)
    mask = torch.zeros((B * G, R), dtype=torch.bool, device=device)
    ended = torch.zeros(B * G, dtype=torch.bool, device=device)
    ends = torch.tensor(policy.eos_ids, device=device)
    hidden = prefix.last_BD.repeat_interleave(G, 0)
    for t in range(R):
        rows = state.rows
        logits = masked_logits(policy, hidden, decoding.temperature or 1.0)
        picked = pick(logits, decoding, state.seen, None if uniforms_NR is None else uniforms_NR[rows, t])
        token = torch.where(t < forced_N[rows], forced_NR[rows, t], picked)
        alive = ~ended[rows]
        token = torch.where(alive, token, policy.pad_id)
        ids[rows, t], mask[rows, t] = token, alive
        chosen = torch.log_softmax(logits, -1).gather(-1, token[:, None])[:, 0]
        logprobs[rows, t] = torch.where(alive, chosen, 0.0).float()
        ended[rows] |= torch.isin(token, ends) & (t >= forced_N[rows])
        if t + 1 == R or (t % CHECK_EVERY == CHECK_EVERY - 1 and state.drop_finished(ended)):
            break
        if len(state.rows) != len(rows):
            token = token[torch.isin(rows, state.rows)]
        hidden = state.step(token, t)
    shape = (B, G, R)
    return Rollouts(ids.view(shape), mask.view(shape), logprobs.view(shape), ended.view(B, G), forced_N.view(B, G))


def _forced(forced: Forced | None, B: int, G: int, R: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    flat: list[Sequence[int]] = [[]] * (B * G) if forced is None else [row for group in forced for row in group]
    if len(flat) != B * G:
        raise ValueError(f"forced prefixes for {len(flat)} rollouts, expected {B} prompts x {G}")
    padded = torch.zeros((B * G, R), dtype=torch.long)
    for n, row in enumerate(flat):
        padded[n, : min(len(row), R)] = torch.tensor(list(row[:R]), dtype=torch.long)
    lengths = torch.tensor([min(len(row), R) for row in flat], dtype=torch.long)
    return padded.to(device), lengths.to(device)


class _Prefix:
    """Keys and values of every prompt, [B, K, P, d] a layer, padded on the right; each prompt is read on its own."""

    def __init__(self, policy: Policy, prompts: Sequence[Prompt]) -> None:
        device = policy.device
        lengths = [len(prompt.ids_P) for prompt in prompts]
        self.B, self.P = len(prompts), max(lengths)
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        last = []
        for b, prompt in enumerate(prompts):
            ids, positions = prompt.ids_P.to(device)[None], prompt.positions_3P.to(device)[:, None]
            read = policy.language_model(ids, positions, partial(self._read, b), video=prompt.video)
            last.append(read[0, -1].clone())  # a view would keep the whole prompt's hidden states
        self.last_BD = torch.stack(last)
        self.valid_BP = torch.arange(self.P, device=device) < torch.tensor(lengths, device=device)[:, None]

    def _read(self, b: int, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """The attention of prompt b; puts its keys and values where they will be read, so there is one copy of them."""
        if layer == len(self.keys):  # the first prompt tells width and dtype
            shape = (self.B, k.shape[1], self.P, k.shape[3])
            self.keys.append(k.new_zeros(shape))
            self.values.append(v.new_zeros(shape))
        self.keys[layer][b, :, : k.shape[2]] = k[0]
        self.values[layer][b, :, : v.shape[2]] = v[0]
        return causal(layer, q, k, v)

    def keep(self, going_B: torch.Tensor) -> None:
        """Drops the other prompts, a layer at a time: two copies of all keys would not fit where one just does."""
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            self.keys[layer], self.values[layer] = keys[going_B], values[going_B]
        self.valid_BP = self.valid_BP[going_B]


class _Rows:
    """The rollouts still being decoded: their own keys and values, positions, and the prefix rows of their prompts."""

    def __init__(self, policy: Policy, prefix: _Prefix, prompts: Sequence[Prompt], G: int, R: int) -> None:
        device, B = policy.device, len(prompts)
        self.policy, self.G, self.prefix = policy, G, prefix
        self.rows = torch.arange(B * G, device=device)
        self.next_N = torch.tensor([p.next_position for p in prompts], device=device).repeat_interleave(G)
        _, K, _, d = prefix.keys[0].shape
        shape = (B * G, K, R, d)
        self.own = [(key.new_zeros(shape), key.new_zeros(shape)) for key in prefix.keys]
        self.slots_R = torch.arange(R, device=device)
        self.graph: _Graph | None = None
        self.seen = torch.zeros((B * G, len(policy.banned_V)), dtype=torch.bool, device=device)
        for b, prompt in enumerate(prompts):
            self.seen[b * G : (b + 1) * G, prompt.ids_P.to(device)] = True

    def step(self, token_N: torch.Tensor, t: int) -> torch.Tensor:
        """Feeds the t-th response tokens; returns their hidden states [N, D]."""
        self.seen.scatter_(1, token_N[:, None], True)
        if token_N.device.type != "cuda":
            return self._forward(token_N, torch.tensor([t]), seen=t + 1)
        if self.graph is None:
            self.graph = _Graph(self, token_N, t)
        return self.graph.replay(token_N, t)

    def _forward(self, token_N: torch.Tensor, at_1: torch.Tensor, *, seen: int) -> torch.Tensor:
        """Hidden states [N, D] of the tokens at place `at_1`; own keys before `seen` are read, later ones masked."""
        positions = (self.next_N + at_1)[None, :, None].expand(3, -1, 1)
        later = self.slots_R[:seen] > at_1

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            keys, values = self.own[layer]
            keys.index_copy_(2, at_1, k.to(keys.dtype))
            values.index_copy_(2, at_1, v.to(values.dtype))
            return self._mix(layer, q[:, :, 0], keys[:, :, :seen], values[:, :, :seen], later)

        hidden_N1D: torch.Tensor = self.policy.language_model(token_N[:, None], positions, attend)
        return hidden_N1D[:, 0]

    def _mix(self, layer: int, q_NHd: torch.Tensor, own_k: torch.Tensor, own_v: torch.Tensor,
             later: torch.Tensor) -> torch.Tensor:
        """One softmax over prefix and own tokens, those `later` left out: [N, H, 1, d]."""
        keys, values = self.prefix.keys[layer], self.prefix.values[layer]
        B, K, P, d = keys.shape
        N, H, _ = q_NHd.shape
        Q = H // K
        q = q_NHd.view(N, K, Q, d) * d**-0.5
        grouped = q.view(B, self.G, K, Q, d).transpose(1, 2).reshape(B, K, self.G * Q, d)
        shared = (grouped @ keys.transpose(-1, -2)).masked_fill(~self.prefix.valid_BP[:, None, None], float("-inf"))
        shared = shared.view(B, K, self.G, Q, P).transpose(1, 2).reshape(N, K, Q, P)
        own = (q @ own_k.transpose(-1, -2)).masked_fill(later, float("-inf"))
        weights = torch.softmax(torch.cat([shared, own], -1).float(), -1).to(q.dtype)
        on_prefix = weights[..., :P].view(B, self.G, K, Q, P).transpose(1, 2).reshape(B, K, self.G * Q, P) @ values
        on_prefix = on_prefix.view(B, K, self.G, Q, d).transpose(1, 2).reshape(N, K, Q, d)
        return (on_prefix + weights[..., P:] @ own_v).reshape(N, H, 1, d)

    def drop_finished(self, ended: torch.Tensor) -> bool:
        """Drops prompts whose rollouts have all ended; True where none is left."""
        going_B = (~ended[self.rows]).view(-1, self.G).any(-1)
        if bool(going_B.all()):
            return False
        if not bool(going_B.any()):
            return True
        self.graph = None
        keep_N = going_B.repeat_interleave(self.G)
        self.rows, self.next_N, self.seen = self.rows[keep_N], self.next_N[keep_N], self.seen[keep_N]
        for layer, (keys, values) in enumerate(self.own):
            self.own[layer] = keys[keep_N], values[keep_N]
        self.prefix.keep(going_B)
        return False


class _Graph:
    """One token's forward pass of `rows` as a CUDA graph. It lives inside one call of `generate`, and so inside one
    autocast context: the cast weights that it was captured with stay where they are."""

    def __init__(self, rows: _Rows, token_N: torch.Tensor, t: int) -> None:
        self.token_N, self.at_1 = token_N.clone(), torch.tensor([t], device=token_N.device)
        slots = len(rows.slots_R)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries set themselves up in the first passes, which a capture must not see
            for _ in range(2):
                rows._forward(self.token_N, self.at_1, seen=slots)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._hidden_ND = rows._forward(self.token_N, self.at_1, seen=slots)

    def replay(self, token_N: torch.Tensor, t: int) -> torch.Tensor:
        """Hidden states [N, D] after the t-th tokens."""
        self.token_N.copy_(token_N)
        self.at_1.fill_(t)
        self._graph.replay()
        return self._hidden_ND
