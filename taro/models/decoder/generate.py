"""`Sampler` by a decoder of its own body: see `generate`.

Where taro.models.grouped calls the stock layers, this one calls one function for all layers (body.py), which may be
compiled; it decodes with q, k, v and gate, up each in one product (weights.py), reads a prompt's keys once for all of
its rollouts (prefix.py), picks tokens inside the step, prefills forced prefixes (forced.py), admits prompts as others
leave, and leaves out rows that are done (rows.py). On a GPU a step is a CUDA graph of one of few sizes (steps.py).
Legend: A prompts in all, G rollouts, R response tokens, N rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from taro.models.decoder.prefix import PREFIX
from taro.models.decoder.rows import Drawn, Rows, cache_bytes, compute_dtype
from taro.models.decoder.steps import Steps, sizes_of, smallest
from taro.models.policy import Policy
from taro.models.prompt import Prompt
from taro.models.sampler import Decoding, Forced, Rollouts

__all__ = ["How", "generate", "prompts_at_once"]


@dataclass(frozen=True)
class How:
    """How tokens are decoded; none of it changes which.

    at_once: prompts in flight, None: as many as `memory_bytes` holds, or all; memory_bytes: of keys, values and tokens
    seen (one prompt is in flight however little it is); check_every: tokens between looks at what is done, each of
    which waits for a GPU; compiled: one compiled layer body and picking, None: not; graphs: a step is a CUDA graph,
    None: on a GPU; prefix: a name of `PREFIX`; fused: projections of one input in one product; sizes: the fewer, the
    fewer graphs are captured and the more rows are computed that are done."""

    at_once: int | None = None
    memory_bytes: int | None = None
    check_every: int = 8
    compiled: bool = False
    graphs: bool | None = None
    prefix: str = "plain"
    fused: bool = True
    sizes: float = 0.75


def prompts_at_once(policy: Policy, prompts: Sequence[Prompt], *, G: int, decoding: Decoding, how: How) -> int:
    """Prompts in flight: within the budget of `how`, and no more than there are; at least one."""
    most = len(prompts) if how.at_once is None else min(how.at_once, len(prompts))
    if how.memory_bytes is not None:
        one = cache_bytes(policy, P=max(len(prompt.ids_P) for prompt in prompts), G=G, R=decoding.max_new_tokens,
                          dtype=compute_dtype(policy), penalised=decoding.repetition_penalty != 1.0)
        most = min(most, how.memory_bytes // one)
    return max(most, 1)


@torch.no_grad()
def generate(policy: Policy, prompts: Sequence[Prompt], *, G: int, decoding: Decoding, forced: Forced | None = None,
             uniforms_BGR: np.ndarray | None = None, how: How | None = None) -> Rollouts:
    """G responses of a policy to each prompt: `Sampler`, see the module. Raises ValueError as it does."""
    A, R, how = len(prompts), decoding.max_new_tokens, how or How()
    if decoding.temperature > 0 and (uniforms_BGR is None or uniforms_BGR.shape != (A, G, R)):
        got = None if uniforms_BGR is None else uniforms_BGR.shape
        raise ValueError(f"sampling needs uniforms of shape {(A, G, R)}, got {got}")
    flat: list[Sequence[int]] = [[]] * (A * G) if forced is None else [row[:R] for group in forced for row in group]
    if len(flat) != A * G:
        raise ValueError(f"forced prefixes for {len(flat)} rollouts, expected {A} prompts x {G}")
    drawn = Drawn(policy, A, G, R, None if decoding.temperature == 0 else uniforms_BGR)
    slots = prompts_at_once(policy, prompts, G=G, decoding=decoding, how=how)
    rows = Rows(policy, drawn, flat, decoding, slots=slots, P=max(len(prompt.ids_P) for prompt in prompts),
                prefix=PREFIX[how.prefix], fused=how.fused)
    graphs = policy.device.type == "cuda" if how.graphs is None else how.graphs
    steps = Steps(rows, compiled=how.compiled, graphs=graphs)
    waiting = deque(enumerate(prompts))
    row_sizes, slot_sizes = sizes_of(slots * G, how.sizes), sizes_of(slots, how.sizes)
    while True:
        done_N, at_N = rows.progress()
        if waiting:
            going = set(rows.slot_N.numpy()[~done_N].tolist())
            for slot in [slot for slot in range(slots) if slot not in going][: len(waiting)]:
                rows.admit(slot, *waiting.popleft())
            done_N, at_N = rows.progress()
        if done_N.all():
            if not waiting:
                return drawn.rollouts(flat)
            continue
        if not waiting:
            kept = _kept(rows, done_N, row_sizes, slot_sizes)
            if kept is not None:
                rows.shrink(*kept)
                done_N, at_N = done_N[kept[0]], at_N[kept[0]]
        left = R - int(at_N[~done_N].min())
        steps.run(min(how.check_every, left), furthest=int(at_N[~done_N].max()))


def _kept(rows: Rows, done_N: np.ndarray, row_sizes: list[int],
          slot_sizes: list[int]) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows and slots of the next smaller size that holds those that are not done, filled up with some that are; None
    where that is all of them."""
    slot_N, slots = rows.slot_N.numpy(), len(rows.lengths_B)
    going_B = np.isin(np.arange(slots), slot_N[~done_N])
    count = smallest(row_sizes, int((~done_N).sum())), smallest(slot_sizes, int(going_B.sum()))
    if count == (len(done_N), slots):
        return None
    order = [np.argsort(~going, kind="stable")[:n] for going, n in zip((~done_N, going_B), count, strict=True)]
    return np.sort(order[0]), np.sort(order[1])
