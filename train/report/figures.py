"""The numbers of a whole run as a report shows them: figures at the top, curves, tables, intervals.

Numbers come from `taro.metrics.scores` and metrics.jsonl as they are; the only arithmetic here is the mean over the
first and the last steps. Left out: single videos (train/report/cards.py), drawing (taro/pages)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from taro.metrics.scores import Scores
from taro.pages.answers import METRIC_NAMES
from taro.pages.cards import Cell, Table
from taro.pages.charts import CurveChart, Interval, IntervalRow, IntervalsChart, curve_chart, intervals_chart
from taro.pages.render import number
from taro.train.report.data import Evaluation, Run, mean_of
from taro.train.report.rows import PHASE, SET, SPEED

__all__ = ["ENDS", "MAIN_CURVES", "Figure", "Ledger", "Tile", "accounting_table", "curves", "score_charts",
           "sets_table", "tiles", "time_table", "validation_table"]

Item = TypeVar("Item")
ENDS = 5
"""steps at either end of a run that the titles of curves average"""

CURVES: dict[str, tuple[str, str, float | None, float | None]] = {
    "reward": ("total reward", "format + tIoU + bonus, mean of the step's rollouts", 0.0, None),
    "tiou": ("timestamp-aware IoU", "IoU weighted by how near both ends are", 0.0, 1.0),
    "format": ("format", "share of responses with the four tags in place", 0.0, 1.0),
    "bonus": ("temporal-sensitivity bonus", "for reasonings that need the video's order", 0.0, None),
    "drop_mean": ("log-prob drop", "nats a token lost with boundary patches shuffled", None, None),
    "timestamps": ("reasonings with timestamps", "share that names at least one time", 0.0, 1.0),
    "first_span": ("first span right", "share whose first range has IoU of 0.5 or more", 0.0, 1.0),
    "zero_variance": ("groups that teach nothing", "share whose rewards are all equal", 0.0, 1.0),
    "entropy": ("entropy", "nats a token, over the tokens drawn", 0.0, None),
    "length": ("response length", "tokens, guided prefix included", 0.0, None),
    "kl": ("KL to the start policy", "k3 estimate, nats a token", 0.0, None),
    "grad_norm": ("gradient norm", "before clipping", 0.0, None),
    "logprob_gap": ("sampling against scoring", "mean distance of a token's log-prob in the two passes", 0.0, None),
}
"""key of metrics.jsonl: title, what it says, ends of the axis where they are known"""

PHASES = 16
"""phases that a table holds"""
MAIN_CURVES = 6
"""curves shown at once; the others are folded away"""


@dataclass(frozen=True)
class Tile:
    """A number before and after, as text, with what it is over."""

    name: str
    before: str
    after: str
    note: str


@dataclass(frozen=True)
class Figure:
    """A curve with its words; `change`: means of the first and the last steps, () where there is none."""

    title: str
    note: str
    change: tuple[float, ...]
    chart: CurveChart


Ledger = dict[str, Any]
"""accounting of one shard set: name, inputs, queries, clips, captions, skipped, reasons {reason: count}"""


def tiles(evaluation: Evaluation | None, run: Run) -> list[Tile]:
    """The few numbers that a reader takes home."""
    found = []
    if evaluation is not None:
        before, after = evaluation.before_scores, evaluation.after_scores
        found = [_tile(METRIC_NAMES[key], before.metrics[key], after.metrics[key], _interval_text(after, key))
                 for key in ("miou", "r1@0.5")]
        if before.timestamps is not None and after.timestamps is not None:
            found.append(_tile("reasonings with timestamps", before.timestamps, after.timestamps, "share of responses"))
    if run.steps:
        count = len(_ends(run.steps)[0])
        over = f"first and last {'step' if count == 1 else f'{count} steps'}"
        found += [_tile(name, *_change(run.steps, key), over)
                  for name, key in (("training tIoU", "tiou"), ("log-prob drop", "drop_mean"))]
    return found


def score_charts(evaluations: Sequence[Evaluation]) -> list[tuple[str, IntervalsChart]]:
    """Of each decoding: every score before and after on its interval, with the baselines as marks."""
    found = []
    for one in evaluations:
        baselines = one.after_scores.baselines.items()
        found.append((one.name, intervals_chart([
            IntervalRow(name, _interval(one.before_scores, key), _interval(one.after_scores, key),
                        [(baseline, values[key]) for baseline, values in baselines])
            for key, name in METRIC_NAMES.items()])))
    return found


def curves(run: Run) -> list[Figure]:
    """Every logged part of the reward over the steps, then the machinery; what was never logged is left out."""
    steps = [int(record["step"]) for record in run.steps]
    found = []
    for key, (title, note, low, high) in CURVES.items():
        values = [record.get(key) for record in run.steps]
        if any(value is not None for value in values):
            change = _change(run.steps, key)
            found.append(Figure(title, note, change if all(map(math.isfinite, change)) else (),
                                curve_chart(title, steps, values, run.guided_spans, low=low, high=high)))
    return found


def validation_table(run: Run) -> Table:
    """Scores on the validation split during training, a row each time."""
    keys = (*METRIC_NAMES, "timestamps")
    return Table(["step", *METRIC_NAMES.values(), "timestamps"], [
        [str(int(line["step"])), *(number(line["eval"].get(key)) for key in keys)] for line in run.evals], texts=0)


def sets_table(run: Run) -> Table:
    """Of several shard sets: what each gave and how its rewards went; no row where there was one."""
    names = sorted({key.removeprefix(SET).rpartition("/")[0] for record in run.steps for key in record
                    if key.startswith(SET)})
    rows = []
    for name in names:
        mine = [record for record in run.steps if record.get(f"{SET}{name}/prompts")]
        changes = [_change(mine, f"{SET}{name}/{key}") for key in ("reward", "tiou")]
        rows.append([name, f"{sum(int(record[f'{SET}{name}/prompts'] or 0) for record in mine):,}",
                     *(f"{number(first, 2)} to {number(last, 2)}" for first, last in changes)])
    return Table(["set", "prompts", "reward", "tIoU"], rows)


def time_table(run: Run) -> Table:
    """Where a step's time goes: of each phase the mean seconds, their share and the tokens a second; no row where a run
    did not say."""
    names = sorted({key.removeprefix(PHASE) for record in run.steps for key in record if key.startswith(PHASE)})
    means = {name: mean_of(run.steps, f"{PHASE}{name}") for name in names}
    means = {name: mean for name, mean in means.items() if math.isfinite(mean)}
    whole, shown = sum(means.values()), sorted(means.items(), key=lambda item: -item[1])[:PHASES]
    return Table(["phase", "seconds a step", "share", "tokens a second"], [
        [name, number(mean, 2), f"{mean / whole:.0%}" if whole > 0 else "-",
         number(mean_of(run.steps, f"{SPEED}{name}"), 0)]
        for name, mean in shown])


def accounting_table(ledgers: Sequence[Ledger]) -> Table:
    """Where every annotated row went: rows in = written + skipped, and why."""
    rows: list[list[Cell]] = []
    for ledger in ledgers:
        adds = ledger["inputs"] == ledger["queries"] + ledger["skipped"]
        reasons = ", ".join(f"{reason} ({count})" for reason, count in sorted(ledger["reasons"].items()))
        rows.append([ledger["name"], "adds up" if adds else "DOES NOT ADD UP", (reasons or "-", "text"),
                     *(f"{ledger[key]:,}" for key in ("inputs", "queries", "skipped", "clips", "captions"))])
    return Table(["shard set", "", "skipped because", "rows in", "written", "skipped", "clips", "captions"], rows,
                 texts=3)


def _change(steps: Sequence[dict[str, Any]], key: str) -> tuple[float, float]:
    first, last = _ends(steps)
    return mean_of(first, key), mean_of(last, key)


def _ends(steps: Sequence[Item]) -> tuple[Sequence[Item], Sequence[Item]]:
    """The first and the last of a run, up to ENDS each; none is in both where there are two."""
    count = max(1, min(ENDS, len(steps) // 2))
    return steps[:count], steps[-count:]


def _tile(name: str, before: float, after: float, note: str) -> Tile:
    return Tile(name, _fixed(before), _fixed(after), note)


def _fixed(value: float) -> str:
    """Three decimals, whatever the size, so that tiles have one width.

    >>> _fixed(-5e-5), _fixed(0.25)
    ('0.000', '0.250')
    """
    return number(round(value, 3) + 0.0 if math.isfinite(value) else None)


def _interval(scores: Scores, key: str) -> Interval:
    low, high = scores.intervals[key] or (scores.metrics[key], scores.metrics[key])
    return Interval(scores.metrics[key], low, high)


def _interval_text(scores: Scores, key: str) -> str:
    ends = scores.intervals[key]
    return "no interval" if ends is None else f"95 %: {number(ends[0])} to {number(ends[1])}"
