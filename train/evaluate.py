"""Evaluation of a policy on a shard set: greedy or sampled, every query answered or counted as a miss.

Responses come from `taro.models.sampler`, scores from `taro.metrics.answers`; this module only asks, so that a score of
`taro eval`, of validation during training and of the quickstart is one and the same number. Queries whose video never
reached the shards stay in the denominator, as misses (docs/method.md, difference 9). Legend: B prompts decoded at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from taro.core import draws
from taro.core.errors import ConfigError, ShardError
from taro.grounding.answers import parse_answer, parse_answers
from taro.metrics.answers import AnswerRow
from taro.metrics.scores import Prediction

if TYPE_CHECKING:
    from taro.grounding.prompts import Asking
    from taro.models.policy import Policy
    from taro.models.sampler import Decoding
    from taro.shards.reader import QueryRef, Sample, ShardSet

__all__ = ["Questions", "evaluate_policy", "missing_predictions"]

ANNOTATION_STAGES = {"annotations", "windows"}
"""stages of skipped.parquet that say nothing about a video"""


@dataclass(frozen=True)
class Questions:
    """Which queries of a set are asked: all of a split, or `limit` of them drawn once by the seed. `seed`: also of
    sampled answers."""

    split: str | None = None
    limit: int | None = None
    seed: int = 0

    def of(self, shard_set: ShardSet) -> list[QueryRef]:
        """References of the queries, in set order."""
        refs = shard_set.queries(split=self.split)
        if self.limit is None or self.limit >= len(refs):
            return list(refs)
        chosen = draws.rng("evaluation-subset", self.seed, len(refs)).permutation(len(refs))[: self.limit]
        return [refs[index] for index in sorted(chosen.tolist())]


def evaluate_policy(policy: Policy, shard_set: ShardSet, asking: Asking, decoding: Decoding, *,
                    questions: Questions | None = None, batch_prompts: int = 16, bf16: bool | None = None,
                    progress: Callable[[int, int], None] | None = None) -> list[AnswerRow]:
    """Answers every query that is asked, once each.

    Args: decoding: temperature 0 is greedy; sampled draws depend on (seed, clip, query) alone; questions: None: all of
    the set; bf16: compute under autocast, None: on cuda; progress: called with (answered, all)."""
    import torch

    from taro.models.asking import ask
    from taro.models.grouped import generate

    questions = questions or Questions()
    refs = questions.of(shard_set)
    shard_set = shard_set.reading(shard_set.encoder)  # without the frame variants that a run may read
    bf16 = policy.device.type == "cuda" if bf16 is None else bf16
    rows: list[AnswerRow] = []
    for start in range(0, len(refs), batch_prompts):
        samples = [shard_set.sample(ref) for ref in refs[start : start + batch_prompts]]
        prompts = [ask(policy, asking, sample.features, sample.query.text) for sample in samples]
        uniforms_BGR = None if decoding.temperature == 0 else np.stack([
            draws.uniforms(decoding.max_new_tokens, "evaluation", questions.seed, sample.clip.key,
                           sample.query.id)[None] for sample in samples])
        with torch.autocast(policy.device.type, torch.bfloat16, enabled=bf16):
            drawn = generate(policy, prompts, G=1, decoding=decoding, uniforms_BGR=uniforms_BGR)
        for sample, prompt, ids_GR, mask_GR, finished_G in zip(
                samples, prompts, drawn.ids_BGR.cpu(), drawn.mask_BGR.cpu(), drawn.finished_BG.cpu(), strict=True):
            ids, finished = ids_GR[0][mask_GR[0]], bool(finished_G[0])
            rows.append(_row(sample, prompt.opened + policy.decode(ids), len(ids), finished, asking.protocol))
        if progress is not None:
            progress(len(rows), len(refs))
    return rows


def _row(sample: Sample, text: str, tokens: int, finished: bool, protocol: str) -> AnswerRow:
    return AnswerRow(sample.clip.key, sample.query.id, sample.query.text, sample.clip.video.path_hint,
                   sample.clip.video.sha256, text, parse_answer(text, protocol=protocol), sample.query.windows,
                   sample.clip.duration_s, tokens, finished, parse_answers(text, protocol=protocol))


def missing_predictions(shard_set: ShardSet, split: str | None) -> list[Prediction]:
    """Queries of the annotations whose video never became features, as misses.

    The ledger of a set does not hold a row's split, so they are counted where the whole set is asked for or `split` is
    the one that the set was made with. Rows that the linter dropped were no queries and are left out."""
    import importlib.util

    from taro.shards.manifest import read_skipped

    manifest = shard_set.manifest
    if manifest.counts.skipped == 0 or (split is not None and manifest.provenance.split != split):
        return []
    if importlib.util.find_spec("pyarrow") is None:
        raise ConfigError(f"{shard_set.place}: {manifest.counts.skipped} rows are in its skipped.parquet, which "
                          "must be read to count misses; pip install pyarrow")
    rows = read_skipped(shard_set.store)
    if len(rows) != manifest.counts.skipped:
        raise ShardError(f"{shard_set.place}: skipped.parquet holds {len(rows)} rows, the manifest counts "
                         f"{manifest.counts.skipped}; misses cannot be counted: fetch the file again, or run `taro "
                         "preprocess` again")
    return [Prediction(query_id=str(row["row_id"]), video=str(row["video"]), predicted=None, windows=(), duration_s=0.0,
                       missing=True)
            for row in rows if row["stage"] not in ANNOTATION_STAGES]
