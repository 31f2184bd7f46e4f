"""The rollouts that are being decoded: B slots of prompts, G rows each, their caches, and what has been drawn.

A slot's prompt is read once, and the forced prefixes of its rows in one more pass, whatever their lengths: nothing that
is given is decoded. Rows stand at places of their own, so prompts come and go at any time: when all rows of a slot are
done, another prompt takes it (`admit`); when none waits, `shrink` leaves out what is done, rows and prompts apart, a
layer's cache at a time. A row that is done costs its share of a step until then, and changes nothing.
Legend: A prompts in all, B slots, G rollouts, N rows, C cells (B * G), P prefix tokens (padded), R response tokens,
K key-value heads, d head width, D width, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from taro.models.attention import causal
from taro.models.decoder.body import Caches, Chosen, LayerBody, Places, layer_of, next_token_of, normed
from taro.models.decoder.forced import ForcedPass
from taro.models.decoder.prefix import PrefixAttention
from taro.models.decoder.weights import layers_of, shape_of
from taro.models.logprobs import token_logprobs
from taro.models.policy import Policy
from taro.models.prompt import Prompt
from taro.models.sampler import Decoding, Rollouts

__all__ = ["Drawn", "Rows", "cache_bytes", "compute_dtype"]


def cache_bytes(policy: Policy, *, P: int, G: int, R: int, dtype: torch.dtype, penalised: bool = False) -> int:
    """What a prompt of P tokens and its G rollouts of at most R hold in memory while they are decoded."""
    shape = shape_of(policy.language_model)
    one = 2 * shape.K * shape.d * dtype.itemsize * len(policy.language_model.lm.layers)
    return one * (P + G * R) + (G * len(policy.banned_V) if penalised else 0)


class Drawn:
    """What is drawn for all A * G rollouts. A column past R takes what rows that are done would write."""

    def __init__(self, policy: Policy, A: int, G: int, R: int, uniforms_AGR: np.ndarray | None) -> None:
        device, many = policy.device, A * G
        self.A, self.G, self.R = A, G, R
        self.ids = torch.full((many, R + 1), policy.pad_id, dtype=torch.long, device=device)
        self.logprobs = torch.zeros((many, R + 1), dtype=torch.float32, device=device)
        self.mask = torch.zeros((many, R + 1), dtype=torch.bool, device=device)
        self.ended = torch.zeros(many, dtype=torch.bool, device=device)
        self.uniforms = None if uniforms_AGR is None else torch.from_numpy(uniforms_AGR).reshape(many, R).to(device)

    def rollouts(self, forced: Sequence[Sequence[int]]) -> Rollouts:
        """Of all prompts."""
        lengths = torch.tensor([len(ids) for ids in forced], dtype=torch.long, device=self.ids.device)
        ids, mask, logprobs = (one[:, : self.R].reshape(self.A, self.G, self.R).contiguous()
                               for one in (self.ids, self.mask, self.logprobs))
        return Rollouts(ids, mask, logprobs, self.ended.view(self.A, self.G), lengths.view(self.A, self.G))


class Rows:
    """See the module. `forced`: of all A * G rollouts; slots, P: prompts at once, and tokens of the longest; body,
    next_token: as `taro.models.decoder.body` makes them, or compiled."""

    def __init__(self, policy: Policy, drawn: Drawn, forced: Sequence[Sequence[int]], decoding: Decoding, *,
                 slots: int, P: int, prefix: PrefixAttention, fused: bool = True) -> None:
        self.policy, self.drawn, self.forced, self.decoding, self.prefix = policy, drawn, forced, decoding, prefix
        model, device = policy.language_model, policy.device
        self.dtype = compute_dtype(policy)
        self.shape = shape_of(model)
        self.layers = layers_of(model, self.dtype, fused=fused)
        self.head_VD = next(model.head.parameters()).detach().to(self.dtype)
        self.body: LayerBody = layer_of(self.shape, prefix)
        self.next_token: Callable[..., Chosen] = next_token_of(decoding)
        self.ends = torch.tensor(policy.eos_ids, device=device)
        self.banned_V = policy.banned_V
        N, G, (_, K, d, *_) = slots * drawn.G, drawn.G, self.shape

        def cache(*shape: int) -> list[torch.Tensor]:
            return [torch.zeros(shape, dtype=self.dtype, device=device) for _ in self.layers]

        self.prefix_k, self.prefix_v = cache(slots, K, P, d), cache(slots, K, P, d)
        self.own_k, self.own_v = cache(N, K, drawn.R, d), cache(N, K, drawn.R, d)
        whole = partial(torch.zeros, dtype=torch.long, device=device)
        self.number_N, self.at_N, self.next_N, self.lengths_B = whole(N), whole(N), whole(N), whole(slots)
        self.done_N = torch.ones(N, dtype=torch.bool, device=device)
        self.cell_N, self.row_C = torch.arange(N, device=device), torch.arange(N, device=device)
        self.slot_N = torch.arange(slots).repeat_interleave(G)
        self.hidden_ND = torch.zeros((N, model.lm.config.hidden_size), dtype=model.lm.norm.weight.dtype, device=device)
        self.seen_NV = None if decoding.repetition_penalty == 1.0 else torch.zeros(
            (N, len(self.banned_V)), dtype=torch.bool, device=device)

    def admit(self, slot: int, number: int, prompt: Prompt) -> None:
        """Prompt `number` of all takes a slot whose rows are done, and all of them there still."""
        P, G, device = len(prompt.ids_P), self.drawn.G, self.policy.device
        rows = (self.slot_N == slot).nonzero()[:, 0].to(device)
        assert len(rows) == G, f"slot {slot} has {len(rows)} rows, expected {G}"

        def read(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            self.prefix_k[layer][slot, :, :P], self.prefix_v[layer][slot, :, :P] = k[0], v[0]
            return causal(layer, q, k, v)

        ids, positions = prompt.ids_P.to(device), prompt.positions_3P.to(device)[:, None]
        last_D = self.policy.language_model(ids[None], positions, read, video=prompt.video)[0, -1]
        self.lengths_B[slot] = P
        self.number_N[rows] = torch.arange(number * G, number * G + G, device=device)
        self.at_N[rows], self.done_N[rows], self.next_N[rows] = 0, False, prompt.next_position
        self.hidden_ND[rows] = last_D.to(self.hidden_ND.dtype)
        if self.seen_NV is not None:
            seen_V = torch.zeros_like(self.seen_NV[0]).index_fill(0, ids, True)
            self.seen_NV[rows] = seen_V
        begun = {row: self.forced[number * G + g] for g, row in enumerate(rows.tolist()) if self.forced[number * G + g]}
        if begun:
            self._begin(begun, slot, last_D)

    def _begin(self, begun: dict[int, Sequence[int]], slot: int, last_D: torch.Tensor) -> None:
        """Reads the forced prefixes of rows of one slot, as much at once as `ForcedPass` takes."""
        R, length = self.drawn.R, int(self.lengths_B[slot])
        passes = ForcedPass(self.policy, self.prefix, self.shape)
        for rows, ids in passes.parts(begun, length):
            at = torch.tensor(rows, device=self.policy.device)
            caches = [(k[slot : slot + 1, :, :length], v[slot : slot + 1, :, :length], own_k, own_v)
                      for k, v, own_k, own_v in zip(self.prefix_k, self.prefix_v, self.own_k, self.own_v, strict=True)]
            hidden_NFD = passes.read(at, ids, self.next_N[at], caches)
            for row, given, hidden_FD in zip(rows, ids, hidden_NFD, strict=True):
                F, number = len(given), int(self.number_N[row])
                tokens = torch.tensor(list(given), device=at.device)
                before = torch.cat([last_D[None], hidden_FD[: F - 1]])
                self.drawn.ids[number, :F], self.drawn.mask[number, :F] = tokens, True
                self.drawn.logprobs[number, :F] = token_logprobs(
                    self.policy, before, tokens, temperature=self.decoding.temperature or 1.0).float()
                self.hidden_ND[row] = hidden_FD[F - 1].to(self.hidden_ND.dtype)
                self.at_N[row], self.done_N[row] = F, F == R
                if self.seen_NV is not None:
                    self.seen_NV[row, tokens] = True

    def addresses(self) -> list[int]:
        """Where everything lies that a step reads or writes and that outlives it."""
        state = [self.number_N, self.at_N, self.next_N, self.lengths_B, self.done_N, self.cell_N, self.row_C,
                 self.hidden_ND, *([] if self.seen_NV is None else [self.seen_NV])]
        caches = [*self.prefix_k, *self.prefix_v, *self.own_k, *self.own_v]
        return [one.data_ptr() for one in (*state, *caches, self.head_VD, *self.layers[0].qkv)]

    def progress(self) -> tuple[np.ndarray, np.ndarray]:
        """Which rows are done, and their places [N]. Waits for the device."""
        done, at = torch.stack([self.done_N.long(), self.at_N]).cpu().numpy()
        return done.astype(bool), at

    @torch.no_grad()
    def choose(self) -> None:
        """The next token of every row that is not done."""
        drawn, R = self.drawn, self.drawn.R
        alive = ~self.done_N
        uniform = None if drawn.uniforms is None else drawn.uniforms[self.number_N, self.at_N.clamp(max=R - 1)]
        token, logprob = self.next_token(self.hidden_ND, self.head_VD, self.banned_V, self.seen_NV, uniform)
        place = torch.where(alive, self.at_N, R)
        drawn.ids[self.number_N, place] = token
        drawn.logprobs[self.number_N, place] = logprob.float()
        drawn.mask[self.number_N, place] = alive
        ends = (token[:, None] == self.ends).any(-1) & alive
        drawn.ended[self.number_N] |= ends
        self.token_N = token
        self.done_N.logical_or_(ends | (self.at_N >= R - 1))
        if self.seen_NV is not None:
            self.seen_NV[torch.arange(len(token), device=token.device), token] |= alive

    @torch.no_grad()
    def forward(self, *, reach: int) -> None:
        """Reads the tokens chosen: hidden states behind them. reach: own keys that are looked at, past every place."""
        model, dtype = self.policy.language_model, self.hidden_ND.dtype
        at_N = self.at_N.clamp(max=reach - 1)
        x_ND = model.lm.embed_tokens.weight[self.token_N].to(dtype)
        cos, sin = model.lm.rotary_emb(x_ND[:, None], (self.next_N + at_N)[None, :, None].expand(3, -1, 1))
        places = Places(at_N, self.cell_N, self.row_C, self.lengths_B, cos[:, 0], sin[:, 0])
        for number, weights in enumerate(self.layers):
            caches = Caches(self.prefix_k[number], self.prefix_v[number], self.own_k[number][:, :, :reach],
                            self.own_v[number][:, :, :reach])
            x_ND = self.body(x_ND, weights, caches, places)
        norm: Any = model.lm.norm
        self.hidden_ND.copy_(normed(x_ND, norm.weight, norm.variance_epsilon))
        self.at_N.add_(1 - self.done_N.long())

    def shrink(self, rows: np.ndarray, slots: np.ndarray) -> None:
        """Leaves only these rows and slots (numbers, ascending), a layer at a time: two copies of all caches would not
        fit where one just does."""
        device, G = self.policy.device, self.drawn.G
        new_slot = np.full(len(self.lengths_B), -1)
        new_slot[slots] = np.arange(len(slots))
        column = (self.cell_N.cpu().numpy() % G)[rows]
        slot = new_slot[self.slot_N.numpy()[rows]]
        cell = np.where(slot >= 0, slot * G + column, 0)  # a row that is done may have lost its prompt
        row_C = np.zeros(len(slots) * G, dtype=np.int64)
        row_C[cell[slot >= 0]] = np.flatnonzero(slot >= 0)
        keep_N, keep_B = torch.from_numpy(rows).to(device), torch.from_numpy(slots).to(device)
        for caches, keep in ((self.prefix_k, keep_B), (self.prefix_v, keep_B), (self.own_k, keep_N),
                             (self.own_v, keep_N)):
            if len(keep) < len(caches[0]):
                for layer, cache in enumerate(caches):
                    caches[layer] = cache[keep]
        self.number_N, self.at_N, self.next_N, self.done_N, self.hidden_ND = (
            one[keep_N] for one in (self.number_N, self.at_N, self.next_N, self.done_N, self.hidden_ND))
        self.seen_NV = None if self.seen_NV is None else self.seen_NV[keep_N]
        self.lengths_B = self.lengths_B[keep_B]
        self.slot_N = torch.from_numpy(np.maximum(slot, 0))
        self.cell_N, self.row_C = torch.from_numpy(cell).to(device), torch.from_numpy(row_C).to(device)


def compute_dtype(policy: Policy) -> torch.dtype:
    """Of products: autocast's where it is on, else the weights'."""
    kind = policy.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return next(policy.language_model.head.parameters()).dtype
