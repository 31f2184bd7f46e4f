"""Evaluation of a policy on a shard set: greedy or sampled, every query answered or counted as a miss.

Responses come from `taro.models.sampler`, scores from `taro.metrics.answers`; this module only asks, so that a score of
`taro eval`, of validation during training and of the quickstart is one and the same number. Queries whose video never
reached the shards stay in the denominator, as misses (docs/method.md, difference 9). Legend: B prompts decoded at once.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from taro.core import draws
from taro.grounding.answers import parse_answer, parse_answers
from taro.metrics.answers import AnswerRow, UnaskedRow, row_from_json, row_to_json
from taro.metrics.scores import Prediction
from taro.shards.skipped import Row, missed_rows, row_windows, skipped_rows
from taro.shards.together import read_samples

if TYPE_CHECKING:
    from taro.grounding.prompts import Asking
    from taro.models.policy import Policy
    from taro.models.sampler import Decoding
    from taro.shards.reader import QueryRef, Sample, ShardSet
    from taro.train.ranks import Ranks

__all__ = ["Questions", "evaluate_policy", "missing_predictions", "readable_misses", "unasked_rows"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Questions:
    """Which queries of a set are asked: all of a split, or `limit` of them drawn once by the seed. `seed`: also of
    sampled answers; `ranks`: who share the work, None: this process alone."""

    split: str | None = None
    limit: int | None = None
    seed: int = 0
    ranks: Ranks | None = None

    def of(self, shard_set: ShardSet) -> Sequence[QueryRef]:
        """References of the queries, in set order."""
        refs = shard_set.queries(split=self.split)
        if self.limit is None or self.limit >= len(refs):
            return refs
        chosen = draws.rng("evaluation-subset", self.seed, len(refs)).permutation(len(refs))[: self.limit]
        return [refs[index] for index in sorted(chosen.tolist())]

    def are_all(self, shard_set: ShardSet) -> bool:
        """Whether the limit leaves none out: then misses count."""
        return self.limit is None or self.limit >= len(shard_set.queries(split=self.split))


def evaluate_policy(policy: Policy, shard_set: ShardSet, asking: Asking, decoding: Decoding, *,
                    questions: Questions | None = None, batch_prompts: int = 16, bf16: bool | None = None,
                    progress: Callable[[int, int], None] | None = None) -> list[AnswerRow]:
    """Answers every query that is asked, once each. Many ranks take turns, a batch each, so that batches and answers
    are those of one rank; every rank returns all rows, in the order of the set.

    Args: decoding: temperature 0 is greedy; sampled draws depend on (seed, clip, query) alone; questions: None: all of
    the set; bf16: compute under autocast, None: on cuda; progress: called with (answered, all), on all ranks equally
    often."""
    from taro.train.ranks import ALONE

    questions = questions or Questions()
    ranks = questions.ranks or ALONE
    refs = questions.of(shard_set)
    shard_set = shard_set.reading(shard_set.encoder)  # without the frame variants that a run may read
    bf16 = policy.device.type == "cuda" if bf16 is None else bf16
    batches = [refs[start : start + batch_prompts] for start in range(0, len(refs), batch_prompts)]
    rows: list[AnswerRow] = []
    for turn in range(0, len(batches), ranks.world):
        mine = batches[turn + ranks.rank] if turn + ranks.rank < len(batches) else []
        answered = _answer(policy, [*read_samples(shard_set, mine)], asking, decoding, questions.seed,
                           bf16=bf16) if mine else []
        rows += answered if ranks.world == 1 else _gathered(ranks, answered)
        if progress is not None:
            progress(len(rows), len(refs))
    return rows


def _answer(policy: Policy, samples: Sequence[Sample], asking: Asking, decoding: Decoding, seed: int, *,
            bf16: bool) -> list[AnswerRow]:
    """The answers of one batch."""
    import torch

    from taro.models.asking import ask
    from taro.models.decoding import generate

    prompts = [ask(policy, asking, sample.features, sample.query.text) for sample in samples]
    uniforms_BGR = None if decoding.temperature == 0 else np.stack([
        draws.uniforms(decoding.max_new_tokens, "evaluation", seed, sample.clip.key, sample.query.id)[None]
        for sample in samples])
    with torch.autocast(policy.device.type, torch.bfloat16, enabled=bf16):
        drawn = generate(policy, prompts, G=1, decoding=decoding, uniforms_BGR=uniforms_BGR)
    rows = []
    for sample, prompt, ids_GR, mask_GR, finished_G in zip(
            samples, prompts, drawn.ids_BGR.cpu(), drawn.mask_BGR.cpu(), drawn.finished_BG.cpu(), strict=True):
        ids, finished = ids_GR[0][mask_GR[0]], bool(finished_G[0])
        rows.append(_row(sample, prompt.opened + policy.decode(ids), len(ids), finished, asking.protocol))
    return rows


def _gathered(ranks: Ranks, rows: Sequence[AnswerRow]) -> list[AnswerRow]:
    """The rows of all ranks, in rank order."""
    every = ranks.gather(json.dumps([row_to_json(row) for row in rows]).encode())
    return [row_from_json(row) for one in every for row in json.loads(one)]


def _row(sample: Sample, text: str, tokens: int, finished: bool, protocol: str) -> AnswerRow:
    return AnswerRow(sample.clip.key, sample.query.id, sample.query.text, sample.clip.video.path_hint,
                   sample.clip.video.sha256, text, parse_answer(text, protocol=protocol), sample.query.windows,
                   sample.clip.duration_s, tokens, finished, parse_answers(text, protocol=protocol),
                   sample.query.unclipped)


def missing_predictions(shard_set: ShardSet, split: str | None) -> list[Prediction]:
    """Queries of the annotations whose video never became features, as misses, of all splits or one. Rows that the
    linter dropped, and rows that a filter or a split of the set left out, were no queries and are left out."""
    return [_missing(row) for row in missed_rows(shard_set, split)]


def readable_misses(shard_set: ShardSet, split: str | None) -> list[Prediction]:
    """`missing_predictions`, where they can be read: training goes on without pyarrow, and says what is not counted."""
    if shard_set.manifest.counts.skipped and importlib.util.find_spec("pyarrow") is None:
        log.warning("%s: %s rows in skipped.parquet are not read without pyarrow, so no miss counts in the validation "
                    "scores; pip install pyarrow", shard_set.place, f"{shard_set.manifest.counts.skipped:,}")
        return []
    return missing_predictions(shard_set, split)


def unasked_rows(shard_set: ShardSet, split: str | None) -> list[UnaskedRow]:
    """Queries that were not asked since their windows lie outside of the real clip: they are no misses, and whoever
    scores the file of answers must know them."""
    if not shard_set.manifest.counts.skipped:
        return []
    return [UnaskedRow(row["row_id"], row["query"], row["video"], row["duration_s"], row["reason"])
            for row in skipped_rows(shard_set) if row["stage"] == "windows" and row["duration_s"] is not None
            and split in (None, row["split"])]


def _missing(row: Row) -> Prediction:
    duration_s, annotated = row["duration_s"], row_windows(row)
    windows = tuple(window.clip(math.inf if duration_s is None else duration_s) for window in annotated)
    return Prediction(query_id=row["row_id"], video=row["video"], predicted=None, windows=windows, missing=True,
                      duration_s=duration_s, unclipped=annotated if annotated != windows else None)
