"""The sensitivity of a policy: how much less likely its reasonings become when a video's order is broken, and how.

Rollouts are sampled and scored by the code of training (`taro.train.rollouts`), so a drop here is the drop of the
reward; then each is scored again under every condition: a disruption of one kind and radius, at both boundaries or at
one. Responses are the policy's own, none is guided; every draw is a function of (seed, clip, query, rollout), of step 0
and epoch 0. `frame` is of the one radius that the set's variants were made with, and of both boundaries. Left out: what
the numbers say (`taro.train.sensitivity.report`).
Legend: B prompts, G rollouts of a group, R response tokens, C conditions, N rollouts, K bins of relative position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from taro.core.errors import ConfigError
from taro.grounding.boundaries import BOUNDARIES, boundary_windows
from taro.grounding.moment import Moment
from taro.shards.together import read_samples
from taro.train.config import RolloutConfig
from taro.train.data import sample_name
from taro.train.disruption import KINDS, Disruption
from taro.train.evaluate import Questions
from taro.train.rewards import log_prob_drop, rewards
from taro.train.rollouts import RolloutBatch, StepName, counted_tokens, disrupt, roll_out, score_prompts
from taro.train.sensitivity.stats import means_by_position

if TYPE_CHECKING:
    import torch

    from taro.grounding.prompts import Asking
    from taro.models.policy import Policy
    from taro.shards.reader import ShardSet

__all__ = ["POSITIONS", "MeasuredRollout", "Sensitivity", "conditions", "measure_sensitivity"]

POSITIONS = 10
"""bins of relative position in a reasoning"""


@dataclass(frozen=True)
class MeasuredRollout:
    """A sampled rollout. `pieces`: the texts of the tokens that its drop counts; `gaps`: log-prob lost by each under
    the lead condition, empty where the video had no such disruption; `stretches`: what that condition is about."""

    key: str
    query_id: str
    query: str
    video: str
    text: str
    predicted: Moment | None
    windows: tuple[Moment, ...]
    duration_s: float
    iou: float
    pieces: tuple[str, ...]
    gaps: tuple[float, ...]
    stretches: tuple[Moment, ...]

    @property
    def group(self) -> str:
        """The prompt that it answers."""
        return f"{self.key}/{self.query_id}"


@dataclass(frozen=True)
class Sensitivity:
    """All rollouts under all conditions. drops_CN: nan where a rollout has no counted token or its video no such
    disruption; disrupted_CN: which had one; positions_CNK: mean drop by relative position in the counted tokens."""

    conditions: tuple[Disruption, ...]
    rollouts: tuple[MeasuredRollout, ...]
    drops_CN: np.ndarray
    disrupted_CN: np.ndarray
    positions_CNK: np.ndarray

    def __post_init__(self) -> None:
        shape = (len(self.conditions), len(self.rollouts))
        assert self.drops_CN.shape == self.disrupted_CN.shape == shape, f"{self.drops_CN.shape}, expected {shape}"
        assert self.positions_CNK.shape == (*shape, POSITIONS), f"{self.positions_CNK.shape}"


def conditions(kinds: Sequence[str], radii_s: Sequence[float], boundaries: Sequence[str], *,
               frame_s: float | None = None) -> tuple[Disruption, ...]:
    """All combinations, of `frame` the one that exists. The first is the lead: the first kind at 3 s, the method's
    radius, with both boundaries where those are asked for.

    Args: frame_s: radius of the set's frame variants; None: any.
    Raises ConfigError: a name that does not exist, a radius that is not positive, `frame` at another radius."""
    for words, known, what in ((kinds, KINDS, "kind"), (boundaries, BOUNDARIES, "boundary")):
        for word in words:
            if word not in known:
                raise ConfigError(f"{word}: no such {what} of disruption; expected some of: {', '.join(known)}")
    if not kinds or not radii_s or not boundaries:
        raise ConfigError("expected at least one kind, one radius and one boundary, got none of one of them")
    for radius_s in radii_s:
        if not 0 < radius_s < float("inf"):
            raise ConfigError(f"radius {radius_s:g}: expected seconds above 0")
    found = [Disruption(kind, radius_s, boundary)  # type: ignore[arg-type]  # checked above
             for kind in dict.fromkeys(kinds) for radius_s in dict.fromkeys(radii_s)
             for boundary in dict.fromkeys(boundaries)
             if kind != "frame" or (boundary == "both" and frame_s in (None, radius_s))]
    if "frame" in kinds and not any(condition.kind == "frame" for condition in found):
        where = "at one radius" if frame_s is None else f"here within {frame_s:g} s"
        raise ConfigError(f"frame: variants shuffle both boundaries, {where}; expected that radius and the boundary "
                          "both among those asked for")
    lead = next((c for c in found if (c.kind, c.dt_s, c.boundary) == (kinds[0], 3.0, "both")), found[0])
    return (lead, *(condition for condition in found if condition is not lead))


def measure_sensitivity(policy: Policy, shard_set: ShardSet, asking: Asking, asked: Sequence[Disruption], *,
                        questions: Questions | None = None, rollout: RolloutConfig | None = None,
                        over: Literal["reasoning", "response"] = "reasoning",
                        progress: Callable[[int, int], None] | None = None) -> Sensitivity:
    """Samples a group of responses to each query and scores them under every condition that is asked for.

    Args: questions: None: all queries of the set; rollout: size of a group, of a batch and of a response; over: tokens
    whose drop counts (answers alone have only the response); progress: called with (measured, all)."""
    if asking.no_think and over == "reasoning":
        raise ConfigError("answers alone have no reasoning whose drop could be measured; measure it over the response")
    questions, rollout = questions or Questions(), rollout or RolloutConfig()
    refs, bf16 = questions.of(shard_set), policy.device.type == "cuda"
    if not refs:
        raise ConfigError(f"{shard_set.place}: no query of split {questions.split!r} has a clip; the set has "
                          f"{shard_set.splits_text}")
    rollouts: list[MeasuredRollout] = []
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for start in range(0, len(refs), rollout.batch_prompts):
        samples = [*read_samples(shard_set, refs[start : start + rollout.batch_prompts])]
        batch = roll_out(policy, asking, samples, rollout, StepName(questions.seed, 0, 0), bf16=bf16)
        old_BGR, over_BGR = score_prompts(policy, batch.prompts, batch, bf16=bf16), counted_tokens(policy, batch, over)
        found = [_under(policy, batch, old_BGR, over_BGR, condition, bf16=bf16) for condition in asked]
        rollouts += _rows(policy, batch, over_BGR, found[0][3], found[0][1], asked[0])
        drops, disrupted, positions = (np.stack([row[i] for row in found]) for i in range(3))
        parts.append((drops.reshape(len(asked), -1), disrupted.reshape(len(asked), -1),
                      positions.reshape(len(asked), -1, POSITIONS)))
        if progress is not None:
            progress(min(start + rollout.batch_prompts, len(refs)), len(refs))
    drops_CN, disrupted_CN, positions_CNK = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    return Sensitivity(tuple(asked), tuple(rollouts), drops_CN, disrupted_CN, positions_CNK)


def _under(policy: Policy, batch: RolloutBatch, old_BGR: torch.Tensor, over_BGR: np.ndarray, condition: Disruption, *,
           bf16: bool) -> tuple[np.ndarray, ...]:
    """drop [B, G], disrupted [B, G], means by position [B, G, K] and gaps [B, G, R] under one condition."""
    prompts, changed_B = disrupt(batch, condition)
    disrupted_BGR = score_prompts(policy, prompts, batch, bf16=bf16)
    drop_BG = log_prob_drop(old_BGR.numpy(), disrupted_BGR.numpy(), over_BGR)
    gap_BGR = old_BGR.numpy().astype(np.float64) - disrupted_BGR.numpy().astype(np.float64)
    positions_BGK = np.array([[means_by_position(gap_R, over_R, POSITIONS)
                               for gap_R, over_R in zip(gap_GR, over_GR, strict=True)]
                              for gap_GR, over_GR in zip(gap_BGR, over_BGR, strict=True)])
    changed_BG = np.broadcast_to(changed_B[:, None], drop_BG.shape)
    return (np.where(changed_BG, drop_BG, np.nan), changed_BG,
            np.where(changed_BG[..., None], positions_BGK, np.nan), gap_BGR)


def _rows(policy: Policy, batch: RolloutBatch, over_BGR: np.ndarray, gap_BGR: np.ndarray, changed_BG: np.ndarray,
          lead: Disruption) -> list[MeasuredRollout]:
    windows_B = [tuple(w.clip(s.clip.duration_s) for w in s.query.windows) for s in batch.samples]
    parts = rewards(batch.texts_BG, windows_B, [s.clip.duration_s for s in batch.samples], np.zeros(changed_BG.shape))
    rows = []
    for b, sample in enumerate(batch.samples):
        times_S = sample.features.times_S
        stretches = tuple(Moment(float(times_S[w[0]]), float(times_S[w[-1]])) for w in boundary_windows(
            times_S, windows_B[b], dt_s=lead.dt_s, boundary=lead.boundary))
        for g, text in enumerate(batch.texts_BG[b]):
            counted_R = over_BGR[b, g].astype(bool)
            pieces = tuple(policy.decode([int(i)]) for i in batch.ids_BGR[b, g][counted_R.nonzero()[0]])
            gaps = tuple(float(x) for x in gap_BGR[b, g][counted_R]) if changed_BG[b, g] else ()
            rows.append(MeasuredRollout(sample.clip.key, sample.query.id, sample.query.text, sample.clip.video.sha256,
                                        text, parts.predicted_BG[b][g], windows_B[b], sample.clip.duration_s,
                                        float(parts.iou_BG[b, g]), pieces, gaps, stretches))
    assert len({sample_name(sample) for sample in batch.samples}) == len(batch.samples)
    return rows
