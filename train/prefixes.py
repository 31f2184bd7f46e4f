"""Guided prefixes: which captions open a rollout's reasoning, and the tokens that say so.

A guided rollout takes one of the query's candidate paths, never one that another rollout of its group took; `online`
draws fresh subsets instead. Where the paths run out, or the clip has no captions, the rollout is free, and counted as
a fallback. Left out: how captions and paths are made (stage 1). Legend: G rollouts of a group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from taro.core import draws
from taro.grounding.records import ClipRecord, DenseCaption, QueryRecord

if TYPE_CHECKING:
    from taro.grounding.prompts import PromptTemplate
    from taro.models.policy import Policy

__all__ = ["PathSource", "draw_paths", "plain_ids", "prefix_ids"]

PathSource = Literal["random", "overlap", "online"]

ONLINE_TRIES = 64
"""fresh subsets drawn before a rollout gives up finding one that its group does not have yet"""


def draw_paths(clip: ClipRecord, query: QueryRecord, guided_G: np.ndarray, *, source: PathSource, seed: int, epoch: int,
               sample: str) -> list[tuple[int, ...] | None]:
    """For each of the G rollouts the caption indices of its prefix in chronological order, or None for a free one.

    No two rollouts of the group share a path. Each draw depends on (seed, epoch, sample, rollout)."""
    if source == "online":
        return _fresh_paths(len(clip.captions), clip, guided_G, seed=seed, epoch=epoch, sample=sample)
    stored = query.paths.random if source == "random" else query.paths.overlap
    candidates = list(dict.fromkeys(_chronological(path, clip) for path in stored if path))
    order = draws.rng("path", seed, epoch, sample).permutation(len(candidates))
    return [candidates[order[g]] if guided and g < len(order) else None for g, guided in enumerate(guided_G)]


def _fresh_paths(n: int, clip: ClipRecord, guided_G: np.ndarray, *, seed: int, epoch: int,
                 sample: str) -> list[tuple[int, ...] | None]:
    taken: set[tuple[int, ...]] = set()
    paths: list[tuple[int, ...] | None] = []
    for g, guided in enumerate(guided_G):
        found = None
        generator = draws.rng("path-online", seed, epoch, sample, g)
        for _ in range(ONLINE_TRIES if guided and n else 0):
            chosen = generator.choice(n, size=int(generator.integers(1, n + 1)), replace=False)
            path = _chronological([int(index) for index in chosen], clip)
            if path not in taken:
                found = path
                taken.add(path)
                break
        paths.append(found)
    return paths


def _chronological(path: Sequence[int], clip: ClipRecord) -> tuple[int, ...]:
    return tuple(sorted(set(path), key=lambda index: (clip.captions[index].start_s, index)))


def prefix_ids(policy: Policy, template: PromptTemplate, query: str, captions: Sequence[DenseCaption], *,
               limit: int) -> list[int]:
    """Tokens of the guided prefix, at most `limit`: captions are dropped from the end until it fits. Empty (a free
    rollout) where not even one caption does. What the chat template opened (`PromptFormat.opened`) is not said twice.
    How many fit is found by bisection: n captions are tokenised at most 2 + log2(n) times."""

    opened = policy.prompts.opened

    def tokens(count: int) -> list[int]:
        return plain_ids(policy, _after(opened, template.guided_prefix(query, captions[:count]))) if count else []

    fits, found, over = 0, tokens(len(captions)), len(captions)
    if len(found) <= limit:
        return found
    found = []
    while over - fits > 1:
        middle = (fits + over) // 2
        ids = tokens(middle)
        if len(ids) <= limit:
            fits, found = middle, ids
        else:
            over = middle
    return found


def _after(opened: str, prefix: str) -> str:
    """What of a guided prefix follows what the prompt opened of the response."""
    if opened and not prefix.startswith(opened):
        return prefix.removeprefix("<think>\n")
    return prefix.removeprefix(opened)


def plain_ids(policy: Policy, text: str) -> list[int]:
    """Token ids of untrusted text: a special token spelt in a caption or query stays plain text."""
    if any(token in text for token in policy.tokenizer.all_special_tokens):
        return list(policy.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    return policy.encode_text(text)
