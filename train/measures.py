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
from taro.train.algorithms.advantages import zero_variance
from taro.train.gathered import StepRows
from taro.train.rewards import Rewards
from taro.train.rollouts import RolloutBatch
from taro.train.update import Update

__all__ = ["memory_gib", "rollout_lines", "step_measures", "write_rollouts"]


def step_measures(rows: StepRows, totals_BG: np.ndarray, update: Update, *, margin: float, seconds: float,
                  phases: dict[str, float], memory_gib: Sequence[float]) -> dict[str, Any]:
    """The numbers of one step, all ranks together. `totals_BG`: what was learned from; `margin`: of the bonus;
    `seconds`: that the step took, `phases`: its phases; `memory_gib`: of each rank."""
    parts, mask_BGR = rows.parts, rows.mask_BGR
    known_BG = np.isfinite(parts.drop_BG)
    drops = parts.drop_BG[known_BG]
    lengths_BG = mask_BGR.sum(-1)
    gap_BGR = (rows.sampled_BGR - rows.old_BGR).abs()  # of a token's log-prob at sampling from that in scoring
    tokens = int(lengths_BG.sum())
    drawn_BGR = mask_BGR & (torch.arange(mask_BGR.shape[-1]) >= rows.forced_BG[..., None])
    return {
        "epoch": rows.at.epoch, "phase": "guided" if rows.guided_BG.any() else "free",
        "reward": float(parts.total_BG.mean()), "format": float(parts.format_BG.mean()),
        "tiou": float(parts.tiou_BG.mean()), "iou": float(parts.iou_BG.mean()), "bonus": float(parts.bonus_BG.mean()),
        "drop_mean": float(drops.mean()) if len(drops) else math.nan,
        "drop_std": float(drops.std()) if len(drops) else math.nan,
        "drop_above": _share_above(parts.drop_BG, margin),
        "no_drop": int((~known_BG).sum()),
        "timestamps": float(np.mean(rows.timestamps_BG)), "first_span": float(np.mean(rows.first_span_BG)),
        "reward_std": float(totals_BG.std(axis=-1).mean()),
        "zero_variance": float(zero_variance(totals_BG).mean()),
        "guided": float(rows.guided_BG.mean()), "guided_fallbacks": rows.fallbacks,
        "kl": update.kl, "clip_fraction": update.clip_fraction, "length": float(lengths_BG.float().mean()),
        "length_min": int(lengths_BG.min()), "length_max": int(lengths_BG.max()),
        "entropy": float(-rows.sampled_BGR[drawn_BGR].mean()) if drawn_BGR.any() else math.nan,
        "truncated": float((~rows.finished_BG).float().mean()), "logprob_gap": float(gap_BGR[mask_BGR].mean()),
        "loss": update.loss, "grad_norm": update.grad_norm, "skipped": update.skipped,
        "lr": update.lr, "tokens_per_s": tokens / max(seconds, 1e-9),
        "memory_gib": max(memory_gib), **({"memory_gib_ranks": list(memory_gib)} if len(memory_gib) > 1 else {}),
        "seconds": seconds, "phases": phases, **parts.extra_means, **update.further, **_by_set(rows),
    }


def _by_set(rows: StepRows) -> dict[str, Any]:
    """`sets`: the same of each of several shard sets; nothing where there is one."""
    names_B, parts = np.array(rows.sets), rows.parts
    return {} if not all(rows.sets) else {"sets": {str(name): {
        "prompts": int((names_B == name).sum()), "reward": float(parts.total_BG[names_B == name].mean()),
        "tiou": float(parts.tiou_BG[names_B == name].mean())} for name in sorted(set(rows.sets))}}


def _share_above(drop_BG: np.ndarray, margin: float) -> float:
    """Share of the rollouts that have a drop whose drop is above their group's mean plus margin."""
    above = known = 0
    for drop_G in drop_BG:
        drops = drop_G[np.isfinite(drop_G)]
        known += len(drops)
        above += int((drops > drops.mean() + margin).sum()) if len(drops) else 0
    return above / known if known else math.nan


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
            extra = parts.extra_of(b, g)
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
                "duration_s": sample.clip.duration_s, **({"extra": extra} if extra else {}), **several, **place}))
        lines.append("".join(row + "\n" for row in rows))
    return lines


def write_rollouts(path: Path, lines: Sequence[str]) -> None:
    """Writes the lines of a step's rollouts. The file is whole or not there."""
    make_folders(path.parent)
    write_atomically(path, "".join(lines).encode())
