"""The rewards as pure functions: format, timestamp-aware IoU, temporal-sensitivity bonus, and their sum.

Why numpy: a reward is a handful of numbers per rollout, and float64 on the CPU is exact enough to reason about by
hand. Left out: parsing (`taro.grounding.answers`), log-probabilities (`taro.models`), advantages
(`taro.train.algorithms.advantages`).
Legend: B prompts, G rollouts of a group, R response tokens. Symbols: [s, e] ground truth, [s', e'] prediction, D
duration in seconds, d_i the log-probability drop of rollout i."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from taro.core import draws
from taro.grounding.answers import format_ok, parse_answer, parse_answers
from taro.grounding.moment import Moment, best_iou, iou
from taro.grounding.protocols import merged, set_iou
from taro.train.config import Control, Gate, RewardConfig
from taro.train.data import sample_name
from taro.train.extra_rewards import Response, extra_values, overlong

if TYPE_CHECKING:
    from taro.train.rollouts import RolloutBatch, Scores

__all__ = ["Rewards", "compute_rewards", "control_totals", "format_reward", "log_prob_drop", "rewards",
           "sensitivity_bonus", "timestamp_aware_iou", "timestamp_aware_set_iou", "with_extra"]


def format_reward(text: str, *, no_think: bool = False) -> float:
    """1 where the response is `<think>...</think> <answer>...</answer>` with each tag exactly once, else 0.

    Args: text: the whole response, the guided prefix included. no_think: accept `<answer>...</answer>` alone.

    >>> format_reward("<think>\\nFrom 1.0s to 2.0s, it blinks.\\n</think>\\n<answer>1.0s to 2.0s</answer>")
    1.0
    >>> format_reward("<answer>1.0s to 2.0s</answer>")
    0.0
    """
    return float(format_ok(text, no_think=no_think))


def timestamp_aware_iou(predicted: Moment | None, windows: Sequence[Moment], duration_s: float) -> float:
    """`IoU * max(0, 1 - |s' - s| / D) * max(0, 1 - |e' - e| / D)` of the best window (TaRO, section 3.2).

    The ground truth is clipped to [0, D]. Each factor is clamped at 0: the released code does not clamp, and pays
    -0.155 for an answer of 5 to 500 s in a 30 s video.

    >>> timestamp_aware_iou(Moment(2, 8), [Moment(4, 8)], 10.0)  # 4/6 * 0.8 * 1
    0.5333333333333333
    >>> timestamp_aware_iou(Moment(5, 500), [Moment(5, 10)], 30.0)
    0.0
    """
    if predicted is None or not predicted.is_finite() or duration_s <= 0:
        return 0.0
    best = 0.0
    for window in (window.clip(duration_s) for window in windows):
        near_start = max(0.0, 1.0 - abs(predicted.start_s - window.start_s) / duration_s)
        near_end = max(0.0, 1.0 - abs(predicted.end_s - window.end_s) / duration_s)
        best = max(best, iou(predicted, window) * near_start * near_end)
    return best


def timestamp_aware_set_iou(answers: Sequence[Moment], windows: Sequence[Moment], duration_s: float) -> float:
    """The same where an answer may hold several windows, for the protocol `multi-window`:
    `|P n W| / |P u W| * max(0, 1 - |s' - s| / D) * max(0, 1 - |e' - e| / D)`.

    P and W are all time that a window of the answer, of the ground truth (clipped to [0, D]) holds; s' and s their
    first starts, e' and e their last ends. With one window each it is `timestamp_aware_iou`; naming more time than
    there is costs IoU, leaving a window out does too.

    >>> timestamp_aware_set_iou([Moment(0, 2), Moment(6, 8)], [Moment(0, 2), Moment(6, 10)], 10.0)  # 4/6 * 1 * 0.8
    0.5333333333333333
    """
    ours = merged([window for window in answers if window.is_finite()])
    theirs = merged([window.clip(duration_s) for window in windows])
    if not ours or not theirs or duration_s <= 0:
        return 0.0
    near_start = max(0.0, 1.0 - abs(ours[0].start_s - theirs[0].start_s) / duration_s)
    near_end = max(0.0, 1.0 - abs(ours[-1].end_s - theirs[-1].end_s) / duration_s)
    return set_iou(ours, theirs) * near_start * near_end


def log_prob_drop(logprobs_BGR: np.ndarray, disrupted_BGR: np.ndarray, over_BGR: np.ndarray) -> np.ndarray:
    """Drop [B, G] `d_i = mean_k log pi(r_k | V, Q, r_<k) - mean_k log pi(r_k | V', Q, r_<k)`, nan without tokens.

    Args: log-probs under the video and under the disrupted one; over_BGR: which tokens count (the reasoning).

    >>> p, q = np.log([[[.5, .5, .9]]]), np.log([[[.25, .5, .1]]])
    >>> log_prob_drop(p, q, np.array([[[True, True, False]]])).round(4).tolist()  # log(2) / 2
    [[0.3466]]
    """
    assert logprobs_BGR.shape == disrupted_BGR.shape == over_BGR.shape, (
        f"{logprobs_BGR.shape}, {disrupted_BGR.shape}, {over_BGR.shape}")
    over_BGR = over_BGR.astype(bool)
    gap_BGR = np.where(over_BGR, logprobs_BGR.astype(np.float64) - disrupted_BGR.astype(np.float64), 0.0)
    count_BG = over_BGR.sum(axis=-1)
    return np.where(count_BG > 0, gap_BGR.sum(axis=-1) / np.maximum(count_BG, 1), np.nan)


def sensitivity_bonus(drop_BG: np.ndarray, iou_BG: np.ndarray, *, alpha: float = 0.3, tau: float = 0.7,
                      margin: float = 0.0, gate: Gate = ">=") -> np.ndarray:
    """Bonus [B, G]: `alpha` where `d_i > mean_j d_j + margin` and IoU passes the gate tau, else 0.

    Each rollout has its own d (docs/method.md, difference 1). One without d (nan) leaves the group's mean and gets
    nothing.

    >>> sensitivity_bonus(np.array([[.4, .0, np.nan]]), np.array([[.9, .9, .9]])).tolist()
    [[0.3, 0.0, 0.0]]
    >>> sensitivity_bonus(np.array([[.4, .0]]), np.array([[.6, .9]])).tolist()
    [[0.0, 0.0]]
    """
    assert drop_BG.shape == iou_BG.shape, f"{drop_BG.shape}, {iou_BG.shape}"
    known_BG = np.isfinite(drop_BG)
    filled_BG = np.where(known_BG, drop_BG, 0.0)
    mean_B1 = filled_BG.sum(axis=-1, keepdims=True) / np.maximum(known_BG.sum(axis=-1, keepdims=True), 1)
    passes_BG = iou_BG >= tau if gate == ">=" else iou_BG > tau
    # A small tolerance keeps equal drops, whose mean rounds, from earning a bonus for rounding noise.
    above_BG = known_BG & (filled_BG > mean_B1 + margin + DROP_ROUNDING)
    return np.asarray(np.where(above_BG & passes_BG, alpha, 0.0))


DROP_ROUNDING = 1e-9
"""Prevents a group of equal drops from being split by the rounding of their float64 mean."""


@dataclass(frozen=True)
class Rewards:
    """The parts of the reward of B groups of G rollouts, each [B, G], and what they were made from."""

    format_BG: np.ndarray
    tiou_BG: np.ndarray
    bonus_BG: np.ndarray
    iou_BG: np.ndarray
    drop_BG: np.ndarray
    """nan where a rollout has no reasoning tokens or its video no disruption"""
    predicted_BG: tuple[tuple[Moment | None, ...], ...]
    answers_BG: tuple[tuple[tuple[Moment, ...], ...], ...] = ()
    """all windows of each answer where it may have several (`multi-window`), else empty"""
    extra_BGE: np.ndarray | None = None
    """what is added besides, by `RewardConfig.extra_names`, before its weight (`taro.train.extra_rewards`)"""
    extra: tuple[tuple[str, float], ...] = ()
    """its names and weights"""

    def __post_init__(self) -> None:
        parts = (self.format_BG, self.tiou_BG, self.bonus_BG, self.iou_BG, self.drop_BG)
        shapes = [part.shape for part in parts]
        assert len(set(shapes)) == 1 and len(shapes[0]) == 2, f"parts differ in shape: {shapes}"
        assert [len(row) for row in self.predicted_BG] == [shapes[0][1]] * shapes[0][0], (
            f"{shapes[0]} and {len(self.predicted_BG)} groups of predictions")

    @property
    def total_BG(self) -> np.ndarray:
        """`format + tIoU + bonus`, and the extra rewards by their weights, [B, G]."""
        total_BG = np.asarray(self.format_BG + self.tiou_BG + self.bonus_BG)
        if self.extra_BGE is None:
            return total_BG
        return np.asarray(total_BG + self.extra_BGE @ np.array([weight for _, weight in self.extra]))

    @staticmethod
    def joined(parts: Sequence[Rewards]) -> Rewards:
        """The rewards of a batch, from those of its parts in order."""
        arrays: dict[str, Any] = {
            field.name: np.concatenate([getattr(one, field.name) for one in parts]) for field in fields(Rewards)
            if isinstance(getattr(parts[0], field.name), np.ndarray)}
        return replace(parts[0], **arrays, predicted_BG=tuple(row for one in parts for row in one.predicted_BG),
                       answers_BG=tuple(row for one in parts for row in one.answers_BG))

    @property
    def extra_means(self) -> dict[str, float]:
        """Mean of each extra reward before its weight, by its name in metrics.jsonl."""
        if self.extra_BGE is None:
            return {}
        return {f"extra/{name}": float(self.extra_BGE[..., e].mean()) for e, (name, _) in enumerate(self.extra)}

    def extra_of(self, b: int, g: int) -> dict[str, float]:
        """The extra rewards of one rollout, by name."""
        return {} if self.extra_BGE is None else {
            name: float(value) for (name, _), value in zip(self.extra, self.extra_BGE[b, g], strict=True)}


def rewards(texts_BG: Sequence[Sequence[str]], windows_B: Sequence[Sequence[Moment]], durations_B: Sequence[float],
            drop_BG: np.ndarray, config: RewardConfig | None = None) -> Rewards:
    """All parts of the reward of B groups.

    Args: texts_BG: whole responses; windows_B, durations_B: each prompt's ground truth and length in seconds; drop_BG:
    from `log_prob_drop`; config: None: all defaults. Under its protocol `multi-window` all windows of an answer count
    against all of the ground truth.

    >>> answer = "<think>\\nFrom 2.0s to 6.0s, it blinks.\\n</think>\\n<answer>2.0s to 6.0s</answer>"
    >>> parts = rewards([[answer, "no idea"]], [[Moment(2, 6)]], [10.0], np.array([[.2, .1]]))
    >>> parts.total_BG.tolist()
    [[2.3, 0.0]]
    """
    config = RewardConfig() if config is None else config
    predicted_BG, format_BG, tiou_BG, iou_BG, answers_BG = [], [], [], [], []
    for texts_G, windows, duration_s in zip(texts_BG, windows_B, durations_B, strict=True):
        clipped = [window.clip(duration_s) for window in windows]
        predicted_G = tuple(parse_answer(text, protocol=config.protocol) for text in texts_G)
        predicted_BG.append(predicted_G)
        format_BG.append([format_reward(text, no_think=config.no_think) for text in texts_G])
        if config.protocol == "multi-window":
            answers_G = tuple(parse_answers(text, protocol=config.protocol) for text in texts_G)
            answers_BG.append(answers_G)
            tiou_BG.append([timestamp_aware_set_iou(answers, windows, duration_s) for answers in answers_G])
            iou_BG.append([set_iou(answers, clipped) for answers in answers_G])
            continue
        tiou_BG.append([timestamp_aware_iou(predicted, windows, duration_s) for predicted in predicted_G])
        iou_BG.append([0.0 if predicted is None else best_iou(predicted, clipped) for predicted in predicted_G])
    iou_array = np.array(iou_BG, dtype=np.float64).reshape(drop_BG.shape)  # also of no prompt
    bonus_BG = sensitivity_bonus(drop_BG, iou_array, alpha=config.alpha, tau=config.tau, margin=config.margin,
                                 gate=config.gate)
    return Rewards(np.array(format_BG, dtype=np.float64).reshape(drop_BG.shape),
                   np.array(tiou_BG, dtype=np.float64).reshape(drop_BG.shape), bonus_BG, iou_array, drop_BG,
                   tuple(predicted_BG), tuple(answers_BG))


def compute_rewards(batch: RolloutBatch, scores: Scores, config: RewardConfig) -> Rewards:
    """The rewards of a step's rollouts, each with its own log-probability drop."""
    drop_BG = log_prob_drop(scores.old_BGR.numpy(), scores.disrupted_BGR.numpy(), scores.over_BGR)
    drop_BG = np.where(scores.disrupted_B[:, None], drop_BG, np.nan)
    parts = rewards(batch.texts_BG, [sample.query.windows for sample in batch.samples],
                    [sample.clip.duration_s for sample in batch.samples], drop_BG, config)
    return with_extra(parts, batch, config) if config.extra_names else parts


def with_extra(parts: Rewards, batch: RolloutBatch, config: RewardConfig) -> Rewards:
    """The same with the user's rewards (`reward.extra`) and overlong shaping. Raises ConfigError where a function is
    not what `taro.train.extra_rewards` asks for."""
    lengths_BG = batch.mask_BGR.sum(-1).tolist()
    responses_BG = [[_response(parts, batch, b, g, lengths_BG[b][g]) for g in range(len(texts_G))]
                    for b, texts_G in enumerate(batch.texts_BG)]
    columns = [extra_values(responses_BG, config.extra).reshape(*parts.drop_BG.shape, len(config.extra))]
    weights = [weight for _, weight in config.extra]
    if config.overlong_tokens:
        longest = batch.decoding.max_new_tokens
        columns.append(np.array([[[overlong(tokens, longest=longest, cache=config.overlong_tokens)]
                                  for tokens in lengths_G] for lengths_G in lengths_BG]
                                ).reshape(*parts.drop_BG.shape, 1))
        weights.append(1.0)
    return replace(parts, extra_BGE=np.concatenate(columns, axis=-1),
                   extra=tuple(zip(config.extra_names, weights, strict=True)))


def _response(parts: Rewards, batch: RolloutBatch, b: int, g: int, tokens: int) -> Response:
    sample, predicted = batch.samples[b], parts.predicted_BG[b][g]
    windows = tuple((window.start_s, window.end_s) for window in sample.query.windows)
    return Response(batch.texts_BG[b][g], sample.query.text, sample.clip.key, sample.query.id, sample.clip.duration_s,
                    windows, None if predicted is None else (predicted.start_s, predicted.end_s),
                    float(parts.iou_BG[b, g]), float(parts.tiou_BG[b, g]), tokens, bool(batch.finished_BG[b, g]),
                    bool(batch.guided_BG[b, g]))


def control_totals(parts: Rewards, batch: RolloutBatch, control: Control) -> np.ndarray:
    """Total rewards [B, G]; for the honesty control, permuted inside each group."""
    if control == "none" or not batch.samples:
        return parts.total_BG
    at = batch.at
    return np.stack([draws.rng("control", at.seed, at.epoch, at.step, sample_name(sample)).permutation(totals_G)
                     for sample, totals_G in zip(batch.samples, parts.total_BG, strict=True)])
