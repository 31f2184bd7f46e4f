"""One step of the loop: samples, rollouts, scores (current, reference, disrupted), rewards, advantages, update, log.

Each rank draws, scores and learns from prompts of its own; metrics are of all ranks together. Where a step makes one
update, its forward pass gives the old log-probs (`taro.train.one_pass`), else a pass of their own does."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from taro.core.errors import TaroError
from taro.shards.reader import Sample
from taro.train.algorithms.base import make_algorithm
from taro.train.config import OptimizerConfig
from taro.train.curriculum import guide_probability
from taro.train.gap import check_gap
from taro.train.gathered import gather_prompts, gather_rows
from taro.train.measures import memory_gib, rollout_lines, step_measures, write_rollouts
from taro.train.one_pass import OnePass, Seen, in_one_pass
from taro.train.open import Run
from taro.train.redraws import draw, draw_step, score_reference
from taro.train.rewards import compute_rewards, control_totals
from taro.train.rollouts import RolloutBatch, StepName
from taro.train.schedules import at_step
from taro.train.speed import phase_speeds
from taro.train.update import (
    Update,
    Work,
    accumulate,
    apply_gradient,
    learned_tokens,
    recompute_of,
    update_of,
    update_policy,
)

__all__ = ["finish_step", "stop_if_nonfinite", "train_step"]

log = logging.getLogger(__name__)


def train_step(run: Run) -> dict[str, Any]:
    """One step: returns its line of metrics.jsonl."""
    started, config, step, ranks = time.monotonic(), run.config, run.state.step, run.ranks
    with run.phases("samples"):
        epoch, samples = run.ahead.take(step)
    run.pause()
    guide = guide_probability(config.curriculum, step=step, epoch=epoch, steps_per_epoch=run.data.steps_per_epoch)
    at, optimizer = StepName(config.seed, epoch, step), at_step(config.optimizer, step, run.steps)
    learn = _learn_in_one_pass if in_one_pass(config) else _score_first
    batch, seen, redrawn, finish = learn(run, samples, at, guide, optimizer)
    check_gap(batch, seen.scores, config.rollout.max_gap, ranks)
    with run.phases("rewards"):
        totals_BG = gather_prompts(ranks, {"totals": seen.totals_BG})[0]["totals"]
        lines = rollout_lines(batch, seen.parts, seen.advantages_BG)
        rows = gather_rows(ranks, batch, seen.scores, seen.parts, lines)
    dump = run.folder / "rollouts" / f"step-{step:06d}.jsonl"
    if config.checkpoint.dump_rollouts and ranks.first:  # what an update learns from is on the disk, whatever it does
        write_rollouts(dump, rows.lines)
    with run.phases("update"):
        update = finish()
        run.refresh()
    memory = [float(one) for one in ranks.all_of([memory_gib()])[:, 0]]
    values = step_measures(rows, totals_BG, update, margin=config.reward.margin, seconds=time.monotonic() - started,
                           phases=run.phases.take(), memory_gib=memory)
    if config.rollout.redraws:
        values["redrawn"] = int(ranks.sum([redrawn])[0])
    values["tokens_per_s_by_phase"] = phase_speeds(batch, values["phases"], ranks)
    if update.skipped and not config.checkpoint.dump_rollouts and ranks.first:
        write_rollouts(dump, rows.lines)
    finish_step(run, values, update)
    run.log_rollouts(step, "".join(rows.lines).splitlines())
    for sign in run.watch.see(values) if ranks.first else ():
        log.warning("step %d: %s", step, sign)
    stop_if_nonfinite(run)
    return values


class _Learned(NamedTuple):
    """finish: takes the step of the optimizer; until then nothing is learned."""

    batch: RolloutBatch
    seen: Seen
    redrawn: int
    finish: Callable[[], Update]


def _learn_in_one_pass(run: Run, samples: Sequence[Sample], at: StepName, guide: float,
                       optimizer: OptimizerConfig) -> _Learned:
    config, policy = run.config, run.policy
    batch = draw(run, samples, at, guide)
    reference_BGR = score_reference(run, batch)
    with run.phases("update"):
        judge = OnePass(policy, batch, config, run.phases, bf16=run.bf16)
        work = Work(policy, batch, batch.mask_BGR, learned_tokens(batch, config.loss), reference_BGR, judge,
                    config.loss, optimizer, run.bf16, recompute_of(policy, optimizer))
        most = -(-int(run.ranks.sum([len(batch.samples)])[0]) // run.ranks.world)
        gradient = accumulate(work, run.optimizer, range(len(batch.samples)), most)

    def finish() -> Update:
        took = apply_gradient(run.optimizer, gradient, optimizer.lr)
        return update_of(work, run.optimizer, [gradient], int(not took))

    return _Learned(batch, judge.seen(reference_BGR), 0, finish)


def _score_first(run: Run, samples: Sequence[Sample], at: StepName, guide: float,
                 optimizer: OptimizerConfig) -> _Learned:
    config, ranks = run.config, run.ranks
    batch, scores, redrawn = draw_step(run, samples, at, guide=guide)
    run.pause()
    with run.phases("rewards"):
        parts = compute_rewards(batch, scores, config.reward)
        own_BG = control_totals(parts, batch, config.reward.control)
        totals_BG = gather_prompts(ranks, {"totals": own_BG})[0]["totals"]
        advantages_BG = make_algorithm(config.loss).advantages(totals_BG)[ranks.rank::ranks.world]

    def finish() -> Update:
        return update_policy(run.policy, run.optimizer, batch, scores, advantages_BG, config.loss, optimizer,
                             bf16=run.bf16)

    return _Learned(batch, Seen(scores, parts, own_BG, advantages_BG), redrawn, finish)


def finish_step(run: Run, values: dict[str, Any], update: Update) -> dict[str, Any]:
    """Logs a step's line, which it returns, and counts the step."""
    step = run.state.step
    run.log(step, values)
    run.last = {"step": step, **values}
    run.state.step, run.state.skipped = step + 1, run.state.skipped + update.skipped
    run.state.nonfinite_streak = run.state.nonfinite_streak + 1 if update.skipped else 0
    return values


def stop_if_nonfinite(run: Run) -> None:
    """Raises TaroError after `optimizer.max_nonfinite` updates in a row that were not finite."""
    step = run.state.step - 1
    if run.state.nonfinite_streak >= run.config.optimizer.max_nonfinite:
        raise TaroError(f"the loss or gradient was not finite in {run.state.nonfinite_streak} steps in a row (last: "
                        f"step {step}); the run stopped. Its rollouts are in rollouts/step-{step:06d}.jsonl; lower "
                        "optimizer.lr, or resume from the newest checkpoint with other settings in a new run")
