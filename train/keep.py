"""What a run does beside its steps, and when: validation and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable

from taro.metrics.answers import AnswerRow, score_rows
from taro.metrics.scores import METRICS
from taro.models.sampler import Decoding
from taro.train.checkpoint.state import checkpoints
from taro.train.evaluate import Questions, evaluate_policy, readable_misses
from taro.train.open import Run

__all__ = ["is_due", "keep_what_is_done", "save_and_prune", "validate"]


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
    questions, protocol = Questions(knobs.split, knobs.limit, run.config.seed, run.ranks), run.asking.protocol
    rows: dict[str, list[AnswerRow]] = {}
    total = sum(len(questions.of(one.shard_set)) for one in run.data.validated)
    with run.working(f"validating on {knobs.split}") as count:
        for one in run.data.validated:
            rows[one.name] = evaluate_policy(
                run.sampling, one.shard_set, run.asking, decoding, questions=questions, bf16=run.bf16,
                batch_prompts=knobs.batch_prompts,
                progress=_counted(run, count, sum(map(len, rows.values())), total))
    missing = run.misses = run.misses or {
        one.name: readable_misses(one.shard_set, knobs.split) if questions.are_all(one.shard_set) else []
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


def _counted(run: Run, count: Callable[[int, int], None], before: int, total: int) -> Callable[[int, int], None]:
    """Counts the queries of one set on top of those of the sets before it. After each batch the run may stop."""

    def counted(done: int, _: int) -> None:
        count(before + done, total)
        run.pause()

    return counted


def save_and_prune(run: Run) -> None:
    """Begins to save a checkpoint, after which older ones are pruned; after the last step waits for both."""
    if run.saver.newest == run.state.step:  # validation kept it a moment ago
        return
    with run.working("saving a checkpoint", "MB") as count:
        run.saver.save(run.state, count)
        if run.state.step == run.steps:
            run.saver.finish(count)


def keep_what_is_done(run: Run) -> str:
    """Saves the last finished step of a run that stops, and waits until it is on the disk; returns what to say."""
    if run.state.step not in (0, run.resumed_at) and not run.state.nonfinite_streak:
        save_and_prune(run)
    run.saver.finish()
    found = checkpoints(run.folder / "checkpoints")
    last = f"checkpoint {found[-1].name} is kept" if found else "there is no checkpoint yet"
    return f"stopped after {run.state.step} of {run.steps} steps; {last}: the same command with --resume goes on"
