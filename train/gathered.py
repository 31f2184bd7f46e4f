"""The numbers of a step's rollouts, of all ranks together and in the order of the prompts.

Prompt i of a step lies on rank i mod world as its place i div world, so any number of ranks gives the same arrays, and
what is computed from them the same numbers. Arrays travel as safetensors in memory, never as a pickle.
Legend: B prompts of all ranks, G rollouts of a group, R response tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load, save

from taro.grounding.answers import parse_reasoning
from taro.grounding.moment import Moment
from taro.metrics.scores import first_span_hit
from taro.train.ranks import Ranks
from taro.train.rewards import Rewards
from taro.train.rollouts import RolloutBatch, Scores, StepName

__all__ = ["StepRows", "gather_prompts", "gather_rows"]

TEXTS = ".texts"


@dataclass(frozen=True)
class StepRows:
    """What metrics are computed from. `parts`: without the windows that were predicted; `old_BGR`: log-probs in
    scoring, `sampled_BGR` at sampling; `timestamps_BG`, `first_span_BG`: whether a reasoning names a time, and whether
    its first one hits; `sets`: of each prompt, "" of a run on one set; `fallbacks`: of all ranks; `lines`: of each
    prompt, for rollouts/step-N.jsonl."""

    at: StepName
    parts: Rewards
    guided_BG: np.ndarray
    forced_BG: torch.Tensor
    finished_BG: torch.Tensor
    mask_BGR: torch.Tensor
    sampled_BGR: torch.Tensor
    old_BGR: torch.Tensor
    timestamps_BG: np.ndarray
    first_span_BG: np.ndarray
    sets: tuple[str, ...]
    fallbacks: int
    lines: tuple[str, ...]


def gather_prompts(ranks: Ranks, arrays: Mapping[str, np.ndarray],
                   texts: Sequence[Any] = ()) -> tuple[dict[str, np.ndarray], list[Any]]:
    """Arrays [B, ...] and one value of JSON a prompt (or none at all), from those of each rank's own prompts. Where
    trailing dimensions differ between ranks, arrays are padded with zeros at their ends."""
    if ranks.world == 1:
        return dict(arrays), list(texts)
    data = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    data[TEXTS] = np.frombuffer(json.dumps(list(texts)).encode(), dtype=np.uint8)
    every = [load(one) for one in ranks.gather(save(data))]
    said = [json.loads(one.pop(TEXTS).tobytes()) for one in every]
    return {name: _interleaved([one[name] for one in every]) for name in arrays}, _in_turn(said)


def _interleaved(parts: Sequence[np.ndarray]) -> np.ndarray:
    shape = tuple(max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True))
    whole = np.zeros((sum(len(part) for part in parts), *shape), dtype=parts[0].dtype)
    for rank, part in enumerate(parts):
        whole[rank::len(parts)][(slice(None), *(slice(size) for size in part.shape[1:]))] = part
    return whole


def _in_turn(parts: Sequence[list[Any]]) -> list[Any]:
    whole: list[Any] = [None] * sum(len(part) for part in parts)
    for rank, part in enumerate(parts):
        whole[rank::len(parts)] = part
    return whole


def gather_rows(ranks: Ranks, batch: RolloutBatch, scores: Scores, parts: Rewards, lines: Sequence[str]) -> StepRows:
    """The rows of all ranks, from the rollouts of this one."""
    hits_BG2 = np.array([[_reasoning(text, sample.query.windows, sample.clip.duration_s) for text in texts_G]
                         for texts_G, sample in zip(batch.texts_BG, batch.samples, strict=True)],
                        dtype=bool).reshape(*parts.drop_BG.shape, 2)
    tensors = {"forced": batch.forced_BG, "finished": batch.finished_BG, "mask": batch.mask_BGR,
               "sampled": batch.sampled_BGR, "old": scores.old_BGR}
    rewards = {f"parts.{field.name}": value for field in fields(parts)
               if isinstance(value := getattr(parts, field.name), np.ndarray)}
    arrays, said = gather_prompts(
        ranks, {**rewards, **{name: tensor.numpy() for name, tensor in tensors.items()}, "guided": batch.guided_BG,
                "hits": hits_BG2},
        [[sample.from_set, line] for sample, line in zip(batch.samples, lines, strict=True)])
    B, G = arrays["guided"].shape
    found: dict[str, Any] = {name.removeprefix("parts."): arrays[name] for name in rewards}
    whole = replace(parts, **found, predicted_BG=((None,) * G,) * B, answers_BG=())
    fallbacks = int(ranks.sum([batch.fallbacks])[0])
    forced_BG, finished_BG, mask_BGR, sampled_BGR, old_BGR = (torch.from_numpy(arrays[name]) for name in tensors)
    return StepRows(batch.at, whole, arrays["guided"], forced_BG, finished_BG, mask_BGR, sampled_BGR, old_BGR,
                    arrays["hits"][..., 0], arrays["hits"][..., 1], tuple(name for name, _ in said), fallbacks,
                    tuple(line for _, line in said))


def _reasoning(text: str, windows: tuple[Moment, ...], duration_s: float) -> tuple[bool, bool]:
    reasoning = parse_reasoning(text)
    return reasoning.has_timestamp, first_span_hit(reasoning, [window.clip(duration_s) for window in windows])
