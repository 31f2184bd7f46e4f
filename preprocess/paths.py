"""Candidate reasoning paths: per query, seeded subsets of the clip's captions (docs/method.md).

`random`, the paper's: k ~ Uniform{1..n}, k captions without replacement, in chronological order. `overlap`: every
caption that overlaps the ground truth, plus d ~ Uniform{0..h} hard distractors, drawn without replacement from the h
captions outside the ground truth whose words are most like the query's (the upper half, at least three where there are
as many); ties go to the earlier caption.

A draw depends on (seed, clip, query, tag) alone. Subsets are distinct as far as there are enough of them: a subset
that was drawn before is drawn again, up to `TRIES` times, and then kept, so a list always has its full length."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from taro.core.draws import rng
from taro.grounding.moment import Moment
from taro.grounding.records import CandidatePaths, DenseCaption

__all__ = ["candidate_paths"]

TRIES = 64
"""draws for one place in the list before a repeat is accepted"""


def candidate_paths(captions: Sequence[DenseCaption], windows: Sequence[Moment], query: str, *, count: int, seed: int,
                    clip_key: str, query_id: str) -> CandidatePaths:
    """`count` subsets of each tag, as ascending indices into `captions`, which must be in chronological order. No
    captions: no paths. No caption overlaps the ground truth: `overlap` holds distractors alone."""
    n = len(captions)
    if n == 0 or count == 0:
        return CandidatePaths()
    inside = [i for i, caption in enumerate(captions) if any(
        min(caption.end_s, window.end_s) > max(caption.start_s, window.start_s) for window in windows)]
    hard = _hard(captions, inside, query)

    def any_subset(draws: np.random.Generator) -> list[int]:
        size = int(draws.integers(1, n + 1))
        return sorted(int(i) for i in draws.choice(n, size=size, replace=False))

    def with_truth(draws: np.random.Generator) -> list[int]:
        least = 0 if inside else 1
        extra = int(draws.integers(least, len(hard) + 1)) if hard else 0
        chosen = [int(i) for i in draws.choice(len(hard), size=extra, replace=False)] if extra else []
        return sorted([*inside, *(hard[i] for i in chosen)])

    random = _distinct(any_subset, rng("paths", seed, clip_key, query_id, "random"), count)
    overlap = _distinct(with_truth, rng("paths", seed, clip_key, query_id, "overlap"), count)
    return CandidatePaths(random=random, overlap=overlap)


def _distinct(draw: Callable[[np.random.Generator], list[int]], draws: np.random.Generator,
              count: int) -> list[list[int]]:
    seen: set[tuple[int, ...]] = set()
    paths: list[list[int]] = []
    exhausted = False
    for _ in range(count):
        path = draw(draws)
        for _ in range(0 if exhausted else TRIES):
            if tuple(path) not in seen:
                break
            path = draw(draws)
        exhausted = exhausted or tuple(path) in seen
        seen.add(tuple(path))
        paths.append(path)
    return paths


def _hard(captions: Sequence[DenseCaption], inside: Sequence[int], query: str) -> list[int]:
    words = _words(query)

    def likeness(i: int) -> float:
        other = _words(captions[i].text)
        return len(words & other) / max(len(words | other), 1)

    outside = [i for i in range(len(captions)) if i not in set(inside)]
    ranked = sorted(outside, key=lambda i: (-likeness(i), i))
    return ranked[: max(3, (len(ranked) + 1) // 2)]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
