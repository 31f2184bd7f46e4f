"""The loop of stage 2: guided, then free, policy optimisation on precomputed features.

A step is a paragraph: samples, rollouts, scores (current, reference, disrupted), rewards, advantages, update, log;
then, when due, validation and a checkpoint. A run killed at any moment goes on from its newest checkpoint as if
nothing had happened, bitwise on a CPU: every draw is a function of its name, nothing else is random.
Left out: several GPUs. Legend: B prompts, G rollouts of a group, R response tokens.

    taro train sandbox --set policy=sandbox:policy --set shards=shards --set out=run
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taro.core.errors import TaroError
from taro.core.files import explain_disk_errors
from taro.metrics.answers import AnswerRow, score_rows
from taro.metrics.scores import METRICS
from taro.models.sampler import Decoding
from taro.train.algorithms.base import make_algorithm
from taro.train.checkpoint import prune_checkpoints, save_checkpoint
from taro.train.config import TrainConfig
from taro.train.curriculum import guide_probability
from taro.train.evaluate import Questions, evaluate_policy, readable_misses
from taro.train.export import export_run
from taro.train.measures import dump_rollouts, step_measures
from taro.train.open import OnStep, OnWork, Run, open_run
from taro.train.rewards import compute_rewards, control_totals
from taro.train.rollouts import StepName, roll_out, score_batch
from taro.train.update import update_policy

__all__ = ["TrainReport", "is_due", "save_and_prune", "train", "train_step", "validate"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainReport:
    """How a run ended. `skipped`: updates left out for a non-finite loss or gradient; `last`: the last step's line."""

    run: Path
    export: Path
    steps: int
    skipped: int
    best_step: int | None
    best_score: float | None
    seconds: float
    last: dict[str, Any]


def train(config: TrainConfig, *, resume: bool = False, on_step: OnStep | None = None,
          on_start: Callable[[dict[str, Any]], None] | None = None, on_work: OnWork | None = None) -> TrainReport:
    """Trains, from the start or from the newest checkpoint; leaves a Hugging Face folder in `out`/export.

    Args: on_step: called with every line of metrics.jsonl, steps and evaluations alike; on_start: called once, with
    what data.json holds (`taro.train.data.TrainingData.summary`); on_work: called while validation, checkpoints and the
    export take their time."""
    started = time.monotonic()
    run = open_run(config, resume=resume, on_step=on_step)
    run.on_work = on_work
    if on_start is not None:
        on_start(run.data.summary())
    with explain_disk_errors(run.folder, run.kept), contextlib.closing(run):
        if run.state.step == 0:
            validate(run)
        while run.state.step < run.steps:
            train_step(run)
            if is_due(run, config.validation.every):
                validate(run)
            if is_due(run, config.checkpoint.every) and (not run.state.nonfinite_streak or run.state.step == run.steps):
                save_and_prune(run)
        with run.working("exporting the policy"):
            export = export_run(run)
    state = run.state
    return TrainReport(run.folder, export, state.step, state.skipped, state.best_step, state.best_score,
                       time.monotonic() - started, run.last)


def train_step(run: Run) -> dict[str, Any]:
    """One step: returns its line of metrics.jsonl."""
    started, config, step = time.monotonic(), run.config, run.state.step
    epoch, samples = run.ahead.take(step)
    guide = guide_probability(config.curriculum, step=step, epoch=epoch, steps_per_epoch=run.data.steps_per_epoch)
    batch = roll_out(run.policy, run.asking, samples, config.rollout, StepName(config.seed, epoch, step), guide=guide,
                     bf16=run.bf16)
    scores = score_batch(run.policy, run.reference, batch, config.reward, bf16=run.bf16)
    parts = compute_rewards(batch, scores, config.reward)
    totals_BG = control_totals(parts, batch, config.reward.control)
    advantages_BG = make_algorithm(config.loss).advantages(totals_BG)
    dump = run.folder / "rollouts" / f"step-{step:06d}.jsonl"
    if config.checkpoint.dump_rollouts:  # before the update: what it learns from is on the disk, whatever it does
        dump_rollouts(dump, batch, parts, advantages_BG)
    update = update_policy(run.policy, run.optimizer, batch, scores, advantages_BG, config.loss, config.optimizer,
                           bf16=run.bf16)
    values = step_measures(batch, scores, parts, totals_BG, update, margin=config.reward.margin,
                           seconds=time.monotonic() - started)
    if update.skipped and not config.checkpoint.dump_rollouts:
        dump_rollouts(dump, batch, parts, advantages_BG)
    run.log(step, values)
    for sign in run.watch.see(values):
        log.warning("step %d: %s", step, sign)
    run.last = {"step": step, **values}
    run.state.step, run.state.skipped = step + 1, run.state.skipped + update.skipped
    run.state.nonfinite_streak = run.state.nonfinite_streak + 1 if update.skipped else 0
    if run.state.nonfinite_streak >= config.optimizer.max_nonfinite:
        raise TaroError(f"the loss or gradient was not finite in {run.state.nonfinite_streak} steps in a row (last: "
                        f"step {step}); the run stopped. Its rollouts are in rollouts/step-{step:06d}.jsonl; lower "
                        "optimizer.lr, or resume from the newest checkpoint with other settings in a new run")
    return values


def is_due(run: Run, every: int) -> bool:
    """After every `every` updates, and after the last."""
    return run.state.step % every == 0 or run.state.step == run.steps


def validate(run: Run) -> None:
    """Greedy scores on the validation split, of several sets over all their queries together; the best so far is kept
    as a checkpoint of its own, unless updates are not finite just then."""
    knobs = run.config.validation
    if knobs.split is None:
        return
    started = time.monotonic()
    decoding = Decoding(knobs.max_new_tokens, temperature=0.0, repetition_penalty=knobs.repetition_penalty)
    questions, protocol = Questions(knobs.split, knobs.limit, run.config.seed), run.asking.protocol
    rows: dict[str, list[AnswerRow]] = {}
    total = sum(len(questions.of(one.shard_set)) for one in run.data.validated)
    with run.working(f"validating on {knobs.split}") as count:
        for one in run.data.validated:
            rows[one.name] = evaluate_policy(
                run.policy, one.shard_set, run.asking, decoding, questions=questions, bf16=run.bf16,
                batch_prompts=knobs.batch_prompts, progress=_counted(count, sum(map(len, rows.values())), total))
    missing = {one.name: readable_misses(one.shard_set, knobs.split) if questions.are_all(one.shard_set) else []
               for one in run.data.validated}
    scores = score_rows([row for some in rows.values() for row in some], protocol=protocol,
                        missing=[one for some in missing.values() for one in some]).as_dict()
    if len(run.data.sets) > 1:
        each = {name: score_rows(some, protocol=protocol, missing=missing[name]).as_dict()
                for name, some in rows.items()}
        scores["sets"] = {name: {key: one[key] for key in ("queries", *METRICS)} for name, one in each.items()}
    run.log(run.state.step, {"eval": {**scores, "split": knobs.split}, "seconds": time.monotonic() - started})
    score = float(scores["miou"])
    if run.state.step and not run.state.nonfinite_streak and (
            run.state.best_score is None or score > run.state.best_score):
        run.state.best_step, run.state.best_score = run.state.step, score
        save_and_prune(run)


def _counted(count: Callable[[int, int], None], before: int, total: int) -> Callable[[int, int], None]:
    """Counts the queries of one set on top of those of the sets before it."""
    return lambda done, _: count(before + done, total)


def save_and_prune(run: Run) -> None:
    """Saves a checkpoint and prunes older ones."""
    folder = run.folder / "checkpoints"
    if (folder / f"step-{run.state.step:06d}").exists():  # validation kept it a moment ago
        return
    with run.working("saving a checkpoint"):
        save_checkpoint(folder, run.policy.named_parameters(), run.optimizer, run.state)
        prune_checkpoints(folder, keep=run.config.checkpoint.keep)
