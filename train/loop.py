"""The loop of stage 2: guided, then free, policy optimisation on precomputed features.

A step is a paragraph: samples, rollouts, scores (current, reference, disrupted), rewards, advantages, update, log;
then, when due, validation and a checkpoint. A run killed at any moment goes on from its newest checkpoint as if
nothing had happened, bitwise on a CPU: every draw is a function of its name, nothing else is random. On several GPUs
every rank runs this loop over prompts of its own (`taro.train.ranks`).
Legend: B prompts, G rollouts of a group, R response tokens.

    taro train sandbox --set policy=sandbox:policy --set shards=shards --set out=run
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taro.core.errors import Stopped, TaroError, first_line, full_memory
from taro.core.files import explain_disk_errors
from taro.train.config import TrainConfig
from taro.train.export import export_run
from taro.train.keep import is_due, keep_what_is_done, save_and_prune, validate
from taro.train.open import OnStep, OnWork, Run, open_run
from taro.train.plan.open import keep_speed
from taro.train.plan.show import use_text
from taro.train.ranks import ALONE, Ranks
from taro.train.sft import sft_step, tell_without_path
from taro.train.step import train_step
from taro.train.tracing import StepTraces

__all__ = ["Together", "TrainReport", "train"]


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
    profile: dict[str, Any] | None = None
    """where the time of the profiled steps went (`taro.train.tracing.StepTraces.write`)"""


def _never() -> AbstractContextManager[Sequence[int]]:
    """No signal asks the run to stop."""
    return contextlib.nullcontext(())


@dataclass(frozen=True)
class Together:
    """ranks: this process among those that train together (`taro.train.launch.join`); stopping: around the steps, gives
    a list that is empty until the run is asked to stop."""

    ranks: Ranks = ALONE
    stopping: Callable[[], AbstractContextManager[Sequence[int]]] = _never


def train(config: TrainConfig, *, resume: bool = False, on_step: OnStep | None = None,
          on_start: Callable[[dict[str, Any]], None] | None = None, on_work: OnWork | None = None,
          on_phase: Callable[[str, bool], None] | None = None, profile: int = 0,
          together: Together | None = None) -> TrainReport:
    """Trains, from the start or from the newest checkpoint; leaves a Hugging Face folder in `out`/export.

    Args: on_step: called with every line of metrics.jsonl, steps and evaluations alike; on_start: called once, with
    what data.json holds (`taro.train.data.TrainingData.summary`); on_work: called while validation, checkpoints and the
    export take their time; on_phase: as a phase of a step begins (True) and ends; profile: steps to trace into
    `out`/profile, after one that warms up; together: None: one process, and no signal is waited for. Raises Stopped
    where it was asked to stop, with a checkpoint of the last finished step."""
    together = together or Together()
    started = time.monotonic()
    run = open_run(config, resume=resume, on_step=on_step, ranks=together.ranks)
    run.on_work = on_work
    run.phases.observers += [] if on_phase is None else [on_phase]
    traces = StepTraces(run.folder / "profile", [run.policy.language_model, run.sampling.language_model], run.phases,
                        steps=profile if run.ranks.first else 0, only=run.steps - run.state.step == 1)
    if on_start is not None:
        on_start(run.data.summary())
    with explain_disk_errors(run.folder, run.kept), contextlib.closing(run), _full_gpu_explained(run):
        with together.stopping() as run.asked:
            try:
                _take_steps(run, traces)
            except Stopped:
                raise Stopped(keep_what_is_done(run)) from None
            finally:
                tell_without_path(run)
        split = traces.write()
        with run.working("exporting the policy", "tensors") as count:
            export = export_run(run, count)
        if run.plan is not None and run.ranks.first:
            keep_speed(run.plan, run.folder)
    state = run.state
    return TrainReport(run.folder, export, state.step, state.skipped, state.best_step, state.best_score,
                       time.monotonic() - started, run.last, split)


def _take_steps(run: Run, traces: StepTraces) -> None:
    """All steps that are left, with validation and checkpoints when they are due."""
    if run.state.step == 0 or (not run.validated and is_due(run, run.config.validation.every)):
        validate(run)
    one_step = sft_step if run.config.objective == "sft" else train_step
    while run.state.step < run.steps:
        with traces.step(run.state.step) as traced:
            traced.append(one_step(run))
        run.saver.poll()
        if is_due(run, run.config.validation.every):
            validate(run)
        if is_due(run, run.config.checkpoint.every) and (
                not run.state.nonfinite_streak or run.state.step == run.steps):
            run.ranks.check_weights(run.policy.named_parameters())
            save_and_prune(run)


@contextlib.contextmanager
def _full_gpu_explained(run: Run) -> Iterator[None]:
    """A GPU that fills up is a message with the plan beside what was in use."""
    try:
        yield
    except Exception as error:
        if run.plan is None or full_memory(error) != "GPU":
            raise
        raise TaroError(f"the GPU's memory is full in the phase {run.phases.now or 'between steps'} "
                        f"({first_line(error)}). Begin again in another folder with settings that take less where the "
                        f"plan has most; `taro train RECIPE --plan` names some. {use_text(run.plan)}") from error
