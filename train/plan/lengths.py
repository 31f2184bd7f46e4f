"""Tokens of the prompts that a run is trained on: those of the video by the shard set's own records, those of the text
by the policy's tokenizer where its folder is here, else by counting words and signs.

Left out: reading features. Legend: P prompt tokens, M of them the video's, S temporal patches, N tokens of a patch."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taro.grounding.prompts import Asking
    from taro.train.data import TrainingData, TrainingSet

__all__ = ["Lengths", "count_words", "lengths_of", "token_counter"]

TURN = 30
"""tokens that a chat template writes around the user's text, the video's start and end among them"""
PATCH = 12
"""tokens that Qwen3-VL writes before each temporal patch: its time, a start, an end"""
_WORD = re.compile(r"[^\W_]{1,8}|\S")


@dataclass(frozen=True)
class Lengths:
    """Prompts in tokens. longest, mean: of prompts; video: of the longest video; known: by a shard set, not assumed."""

    longest: int
    mean: float
    video: int
    queries: int
    known: bool = True


def count_words(text: str) -> int:
    """Tokens of a text, roughly: words up to eight letters and signs; a little over what Qwen's tokenizer gives.

    >>> count_words("From 0.0s to 6.5s, a woman sits.")
    13
    """
    return len(_WORD.findall(text))


def token_counter(folder: Path | None) -> Callable[[str], int]:
    """Counts the tokens of a text: with the tokenizer of a model folder, or roughly where there is none."""
    if folder is None:
        return count_words
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def lengths_of(data: TrainingData, asking: Asking, levels: int, folder: Path | None) -> Lengths:
    """The prompts of the queries that a run draws."""
    count = token_counter(folder)
    prompts, videos = list[int](), list[int]()
    for one in data.drawn:
        found = _of_set(one, asking, levels, count)
        prompts += [video + text for video, text in found]
        videos += [video for video, _ in found]
    return Lengths(max(prompts), sum(prompts) / len(prompts), max(videos), len(prompts))


def _of_set(one: TrainingSet, asking: Asking, levels: int, count: Callable[[str], int]) -> list[tuple[int, int]]:
    """(tokens of the video, of the text) of each query."""
    grids = one.shard_set.features_shapes({ref.key for ref in one.refs})
    return [(grids[ref.key][0] * grids[ref.key][1],
             count(asking.text(ref.known.text)) + TURN + (PATCH * grids[ref.key][0] if levels else 0))
            for ref in one.refs]
