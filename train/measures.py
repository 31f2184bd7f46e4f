"""Metrics of a step: its line of metrics.jsonl, and its rollouts as rows to look at.

Everything is a mean over the step's rollouts unless its name says otherwise; nan becomes null in the file. `entropy` is
the mean of -log p of the tokens drawn (forced ones are not), whose expectation is the entropy of what they were drawn
from where `top_p` is 1: it costs nothing, and its noise is that of the step's thousands of tokens.
Legend: B prompts, G rollouts of a group, R response tokens."""

from __future__ import annotations

import json
import math
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from taro.core.files import make_folders, write_atomically
from taro.grounding.answers import parse_reasoning
from taro.grounding.moment import Moment
from taro.metrics.scores import first_span_hit
from taro.train.algorithms.advantages import zero_variance
from taro.train.rewards import Rewards
from taro.train.rollouts import RolloutBatch, Scores
from taro.train.update import Update

__all__ = ["memory_gib", "rollout_lines", "step_measures", "write_rollouts"]


def step_measures(batch: RolloutBatch, scores: Scores, parts: Rewards, totals_BG: np.ndarray, update: Update, *,
                  margin: float, seconds: float, phases: dict[str, float]) -> dict[str, Any]:
    """The numbers of one step. `margin`: of the bonus; `seconds`: that the step took, `phases`: its phases."""
    known_BG = np.isfinite(parts.drop_BG)
    drops = parts.drop_BG[known_BG]
    lengths_BG = batch.mask_BGR.sum(-1)
    gap_BGR = (batch.sampled_BGR - scores.old_BGR).abs()  # of a token's log-prob at sampling from that in scoring
    tokens = int(lengths_BG.sum())
    drawn_BGR = batch.mask_BGR & (torch.arange(batch.mask_BGR.shape[-1]) >= batch.forced_BG[..., None])
    hits_BG = [[_reasoning(text, sample.query.windows, sample.clip.duration_s) for text in texts_G]
               for texts_G, sample in zip(batch.texts_BG, batch.samples, strict=True)]
    return {
        "epoch": batch.at.epoch, "phase": "guided" if batch.guided_BG.any() else "free",
        "reward": float(parts.total_BG.mean()), "format": float(parts.format_BG.mean()),
        "tiou": float(parts.tiou_BG.mean()), "iou": float(parts.iou_BG.mean()), "bonus": float(parts.bonus_BG.mean()),
        "drop_mean": float(drops.mean()) if len(drops) else math.nan,
        "drop_std": float(drops.std()) if len(drops) else math.nan,
        "drop_above": _share_above(parts.drop_BG, margin),
        "no_drop": int((~known_BG).sum()),
        "timestamps": float(np.mean([[hit[0] for hit in row] for row in hits_BG])),
        "first_span": float(np.mean([[hit[1] for hit in row] for row in hits_BG])),
        "reward_std": float(totals_BG.std(axis=-1).mean()),
        "zero_variance": float(zero_variance(totals_BG).mean()),
        "guided": float(batch.guided_BG.mean()), "guided_fallbacks": batch.fallbacks,
        "kl": update.kl, "clip_fraction": update.clip_fraction, "length": float(lengths_BG.float().mean()),
        "length_min": int(lengths_BG.min()), "length_max": int(lengths_BG.max()),
        "entropy": float(-batch.sampled_BGR[drawn_BGR].mean()) if drawn_BGR.any() else math.nan,
        "truncated": float((~batch.finished_BG).float().mean()), "logprob_gap": float(gap_BGR[batch.mask_BGR].mean()),
        "loss": update.loss, "grad_norm": update.grad_norm, "skipped": update.skipped,
        "lr": update.lr, "tokens_per_s": tokens / max(seconds, 1e-9),
        "memory_gib": memory_gib(), "seconds": seconds, "phases": phases,
        **update.further, **_by_set(batch, parts),
    }


def _by_set(batch: RolloutBatch, parts: Rewards) -> dict[str, Any]:
    """`sets`: the same of each of several shard sets; nothing where there is one."""
    names_B = np.array([sample.from_set for sample in batch.samples])
    return {} if not all(names_B) else {"sets": {str(name): {
        "prompts": int((names_B == name).sum()), "reward": float(parts.total_BG[names_B == name].mean()),
        "tiou": float(parts.tiou_BG[names_B == name].mean())} for name in sorted(set(names_B))}}


def _share_above(drop_BG: np.ndarray, margin: float) -> float:
    """Share of the rollouts that have a drop whose drop is above their group's mean plus margin."""
    above = known = 0
    for drop_G in drop_BG:
        drops = drop_G[np.isfinite(drop_G)]
        known += len(drops)
        above += int((drops > drops.mean() + margin).sum()) if len(drops) else 0
    return above / known if known else math.nan


def _reasoning(text: str, windows: tuple[Moment, ...], duration_s: float) -> tuple[bool, bool]:
    reasoning = parse_reasoning(text)
    return reasoning.has_timestamp, first_span_hit(reasoning, [window.clip(duration_s) for window in windows])


def memory_gib() -> float:
    """Most memory held so far: the GPU's allocations where there is one, the process's resident set otherwise."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def rollout_lines(batch: RolloutBatch, parts: Rewards, advantages_BG: np.ndarray) -> list[str]:
    """Of each prompt one JSON row a rollout: its text, its reward parts, its drop, its advantage, and of several shard
    sets the one it comes from."""
    lines = []
    for b, sample in enumerate(batch.samples):
        place = {name: value for name, value in (("set", sample.from_set), ("repeat", sample.repeat)) if value}
        rows = []
        for g, text in enumerate(batch.texts_BG[b]):
            predicted, drop = parts.predicted_BG[b][g], float(parts.drop_BG[b, g])
            answers = parts.answers_BG[b][g] if parts.answers_BG else ()
            several = {"answers": [[window.start_s, window.end_s] for window in answers]} if len(answers) > 1 else {}
            rows.append(json.dumps({
                "step": batch.at.step, "key": sample.clip.key, "query_id": sample.query.id, "query": sample.query.text,
                "g": g, "guided": bool(batch.guided_BG[b, g]), "text": text,
                "forced_tokens": int(batch.forced_BG[b, g]), "reward": float(parts.total_BG[b, g]),
                "format": float(parts.format_BG[b, g]), "tiou": float(parts.tiou_BG[b, g]),
                "iou": float(parts.iou_BG[b, g]), "bonus": float(parts.bonus_BG[b, g]),
                "drop": drop if math.isfinite(drop) else None, "advantage": float(advantages_BG[b, g]),
                "predicted": None if predicted is None else [predicted.start_s, predicted.end_s],
                "windows": [[window.start_s, window.end_s] for window in sample.query.windows],
                "duration_s": sample.clip.duration_s, **several, **place}))
        lines.append("".join(row + "\n" for row in rows))
    return lines


def write_rollouts(path: Path, lines: Sequence[str]) -> None:
    """Writes the lines of a step's rollouts. The file is whole or not there."""
    make_folders(path.parent)
    write_atomically(path, "".join(lines).encode())
