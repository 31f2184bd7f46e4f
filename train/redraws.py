"""The rollouts of a step and their scores; groups whose rewards are all equal are drawn again, some rounds at most.

Such a group has advantages of 0 and teaches nothing. DAPO (arXiv 2503.14476, section 3.2, eq. 11) samples further
prompts until the batch is full of groups that differ. Here the same prompts are drawn again, `rollout.redraws` rounds
at most: every epoch still takes each query once, the samples of a step stay a function of (seed, step), so a resumed
run is exact, and a rank redraws its own prompts without asking the others. Each round has draws of its own names;
whether a rollout is guided, its prefix and the disruption of its video stay. A group that stays equal is kept as it was
drawn last, and counted. Legend: B prompts, G rollouts, R response tokens, N prompts that are drawn again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from taro.shards.reader import Sample
from taro.train.algorithms.advantages import zero_variance
from taro.train.open import Run
from taro.train.rewards import compute_rewards
from taro.train.rollouts import RolloutBatch, Scores, StepName, roll_out, score_batch

__all__ = ["Drawn", "draw", "draw_step", "score_reference"]


class Drawn(NamedTuple):
    """A step's rollouts and scores; redrawn: groups that were drawn again, each counted once a round."""

    batch: RolloutBatch
    scores: Scores
    redrawn: int


def draw_step(run: Run, samples: Sequence[Sample], at: StepName, *, guide: float) -> Drawn:
    """Rollouts of this rank's prompts, scored. The reference, whose passes ranks may share, scores once at the end."""
    batch, scores = _draw(run, samples, at, guide)
    redrawn = 0
    for number in range(1, run.config.rollout.redraws + 1):
        equal_N = np.flatnonzero(zero_variance(compute_rewards(batch, scores, run.config.reward).total_BG)
                                 ) if batch.samples else np.zeros(0, dtype=int)
        if not len(equal_N) or run.asked:  # asked to stop: every rank does, at its next pause
            break
        redrawn += len(equal_N)
        again = _draw(run, [batch.samples[b] for b in equal_N], replace(at, round=number), guide)
        batch, scores = _with_batch(batch, again[0], equal_N), _with_scores(scores, again[1], equal_N)
    return Drawn(batch, replace(scores, reference_BGR=score_reference(run, batch)), redrawn)


def score_reference(run: Run, batch: RolloutBatch) -> torch.Tensor | None:
    """Log-probs [B, G, R] under the start policy, None of a run without one."""
    if run.reference is None:
        return None
    with run.phases("scores"):
        return run.reference(batch)


def draw(run: Run, samples: Sequence[Sample], at: StepName, guide: float) -> RolloutBatch:
    """The rollouts of one round; after the first one the run may stop."""
    with run.phases("rollouts"):
        batch = roll_out(run.sampling, run.asking, samples, run.config.rollout, at, guide=guide, bf16=run.bf16)
    if not at.round:  # of later rounds each rank has its own number
        run.pause()
    return batch


def _draw(run: Run, samples: Sequence[Sample], at: StepName, guide: float) -> tuple[RolloutBatch, Scores]:
    batch = draw(run, samples, at, guide)
    with run.phases("scores"):
        return batch, score_batch(run.policy, None, batch, run.config.reward, bf16=run.bf16)


def _with_batch(batch: RolloutBatch, again: RolloutBatch, places_N: np.ndarray) -> RolloutBatch:
    """The batch with the rollouts of `again` at some of its prompts."""
    texts = list(batch.texts_BG)
    for place, texts_G in zip(places_N, again.texts_BG, strict=True):
        texts[place] = texts_G
    ids_BGR, mask_BGR, sampled_BGR, forced_BG, finished_BG = (
        _put(getattr(batch, name), getattr(again, name), places_N)
        for name in ("ids_BGR", "mask_BGR", "sampled_BGR", "forced_BG", "finished_BG"))
    return replace(batch, texts_BG=tuple(texts), ids_BGR=ids_BGR, mask_BGR=mask_BGR, sampled_BGR=sampled_BGR,
                   forced_BG=forced_BG, finished_BG=finished_BG)


def _with_scores(scores: Scores, again: Scores, places_N: np.ndarray) -> Scores:
    over_BGR = _put(torch.from_numpy(scores.over_BGR), torch.from_numpy(again.over_BGR), places_N)
    return replace(scores, old_BGR=_put(scores.old_BGR, again.old_BGR, places_N), over_BGR=over_BGR.numpy(),
                   disrupted_BGR=_put(scores.disrupted_BGR, again.disrupted_BGR, places_N))


def _put(old: torch.Tensor, new: torch.Tensor, places_N: np.ndarray) -> torch.Tensor:
    """`old` with the rows of `new` at these places; of two [B, G, R] the shorter is padded with 0, behind its mask."""
    if old.ndim == 3:
        R = max(old.shape[-1], new.shape[-1])
        old, new = (torch.nn.functional.pad(x, (0, R - x.shape[-1])) for x in (old, new))
    merged = old.clone()
    merged[torch.from_numpy(places_N)] = new
    return merged
