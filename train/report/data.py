"""What a report is made of: a run folder read back, evaluations before and after, and the examples worth showing.

Nothing here draws. Everything is read from files that other parts wrote in their own formats (metrics.jsonl,
rollouts/*.jsonl, config.yaml, predictions of `taro eval`), so that a report of last week's run can be made today.
Examples are chosen by rule, losses among them: the largest gain, the median change and the largest loss, never by eye.

Left out: scoring (`taro.metrics.scores`), the values of the page (train/report/figures.py, train/report/cards.py)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from taro.core.config import read_yaml
from taro.core.errors import ConfigError
from taro.core.json import read_json
from taro.core.jsonl import checked_row, read_jsonl
from taro.core.places import paths_from
from taro.metrics.answers import AnswerRow, predictions, score_rows
from taro.metrics.bootstrap import percentiles_M
from taro.metrics.scores import PROTOCOLS, Prediction, Scores
from taro.shards.places import local_folder
from taro.train.config import TrainConfig
from taro.train.report.rows import RolloutLine, eval_line, step_line

__all__ = ["Evaluation", "Example", "Run", "examples", "last_rollouts", "mean_of", "read_run",
           "row_iou", "training_groups"]

GAIN_IOU = 0.05
"""a query counts as better or worse where its IoU changed by more than this"""


@dataclass(frozen=True)
class Run:
    """A training run's folder. `steps`: one record a step; `evals`: validation lines, `{"step", "eval": {...}}`."""

    folder: Path
    config: dict[str, Any]
    config_text: str
    steps: list[dict[str, Any]]
    evals: list[dict[str, Any]]

    @property
    def guided_spans(self) -> list[tuple[int, int]]:
        """Stretches `[first, last]` of consecutive guided steps."""
        spans: list[tuple[int, int]] = []
        for record in self.steps:
            if record.get("phase") != "guided":
                continue
            step = int(record["step"])
            if spans and spans[-1][1] == step - 1:
                spans[-1] = (spans[-1][0], step)
            else:
                spans.append((step, step))
        return spans

    def rollout_steps(self) -> list[int]:
        """Steps whose rollouts were dumped, ascending."""
        return sorted(_dumps(self.folder))

    def rollouts(self, step: int) -> list[list[dict[str, Any]]]:
        """Groups of one step, in the order of the dump; the rows of a group in order of `g`."""
        return _groups(self.folder / "rollouts" / f"step-{step:06d}.jsonl")


@dataclass(frozen=True)
class Evaluation:
    """The same queries answered by the start policy and by the trained one, under one decoding and one protocol.

    `missing`: queries that could not be asked; they count as misses on both sides."""

    name: str
    before: Sequence[AnswerRow]
    after: Sequence[AnswerRow]
    protocol: str = "taro"
    missing: Sequence[Prediction] = field(default=())

    @cached_property
    def before_scores(self) -> Scores:
        """Scores of the start policy."""
        return score_rows(self.before, protocol=self.protocol, missing=self.missing)

    @cached_property
    def after_scores(self) -> Scores:
        """Scores of the trained policy."""
        return score_rows(self.after, protocol=self.protocol, missing=self.missing)

    @cached_property
    def pairs(self) -> list[tuple[AnswerRow, AnswerRow]]:
        """(before, after) of each query that both answered, in the order of `before`."""
        after = {(row.key, row.query_id): row for row in self.after}
        return [(row, after[row.key, row.query_id]) for row in self.before if (row.key, row.query_id) in after]

    def change(self, before: AnswerRow, after: AnswerRow) -> float:
        """IoU after less IoU before, as the protocol counts it."""
        return row_iou(after, self.protocol) - row_iou(before, self.protocol)

    @cached_property
    def changes(self) -> tuple[int, int, int]:
        """How many queries got better, stayed, got worse, by more than 0.05 IoU."""
        deltas = [self.change(*pair) for pair in self.pairs]
        better, worse = sum(delta > GAIN_IOU for delta in deltas), sum(delta < -GAIN_IOU for delta in deltas)
        return better, len(deltas) - better - worse, worse

    @cached_property
    def paired_gain(self) -> tuple[float, float, float]:
        """Mean change of IoU over all queries and its 95 % interval: a paired bootstrap over videos, since the queries
        of one video are not independent. (nan, nan, nan) where there is no query."""
        changes = [self.change(*pair) for pair in self.pairs]
        changes += [0.0] * len(self.missing)  # a miss on both sides: no change, and it stays in the denominator
        if not changes:
            return math.nan, math.nan, math.nan
        videos = [before.video_sha256 for before, _ in self.pairs] + [query.video for query in self.missing]
        gain = float(np.mean(changes))
        low, high = percentiles_M(np.array(changes)[:, None], videos, 0)[0] or (gain, gain)
        return gain, low, high


@dataclass(frozen=True)
class Example:
    """A held-out query worth showing, and the rule that chose it."""

    why: str
    before: AnswerRow
    after: AnswerRow


def read_run(folder: str | Path) -> Run:
    """Reads a run folder of `taro train`, one that is still being written too; ConfigError where it is none."""
    folder = Path(folder)
    metrics, config = folder / "metrics.jsonl", folder / "config.yaml"
    for path in (metrics, config):
        if not path.is_file():
            raise ConfigError(f"{folder}: expected the folder of a training run, with config.yaml and metrics.jsonl, "
                              f"got no {path.name}; give the folder that `taro train` wrote (its key `out`)")
    lines = read_jsonl(metrics)
    try:
        data = read_yaml(config)
    except ConfigError as error:
        raise ConfigError(f"{config}: expected the YAML that a run wrote, got what cannot be read as such ({error}); "
                          "restore the file") from None
    settings = paths_from(data, TrainConfig, folder) if isinstance(data, dict) else {}
    return Run(folder, settings, config.read_text(encoding="utf-8"),
               [step_line(line, metrics) for line in lines if "reward" in line],
               [eval_line(line, metrics) for line in lines if "eval" in line])


def last_rollouts(run: str | Path, place: str | Path | None = None) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """By (clip key, query id) the group of rollouts of the last step that dumped one, rows in order of `g`.

    Of a run on several sets those on the set at `place` alone: the one that the run's data.json has there, else the one
    with the name of that folder. Raises ConfigError where `run` has no rollouts or a line of them is not one."""
    run = Path(run)
    if not (run / "rollouts").is_dir():
        raise ConfigError(f"{run}: no rollouts folder there; expected the folder of a `taro train` run")
    name = None if place is None else _set_name(run, str(place))
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for step, path in sorted(_dumps(run).items()):
        for rows in _groups(path):
            one = rows[0]
            if not one["repeat"] and name in (None, one["set"] or name):
                found[one["key"], one["query_id"]] = [row | {"step": step} for row in rows]
    return found


def _dumps(run: Path) -> dict[int, Path]:
    """The rollout dumps of a run by their step."""
    paths = {path.stem.removeprefix("step-"): path for path in (run / "rollouts").glob("step-*.jsonl")}
    return {int(name): path for name, path in paths.items() if re.fullmatch(r"[0-9]{6,15}", name)}


def _groups(dump: Path) -> list[list[dict[str, Any]]]:
    groups: dict[tuple[str, str, int, str], list[dict[str, Any]]] = {}
    for number, row in enumerate(read_jsonl(dump), 1):
        line = checked_row(RolloutLine, row, dump, number)
        groups.setdefault((line.set, line.key, line.repeat, line.query_id), []).append(line.model_dump())
    return [sorted(rows, key=lambda row: int(row["g"])) for rows in groups.values()]


def _set_name(run: Path, place: str) -> str:
    """What a run on several sets calls the set at `place`."""
    folder = local_folder(place)
    names = (place,) if folder is None else (place, str(folder), str(folder.resolve()))
    sets = read_json(run / "data.json", error=ConfigError).get("sets")
    for one in sets if isinstance(sets, list) else ():
        if isinstance(one, dict) and str(one.get("path")) in names:
            return str(one.get("name"))
    return place.rstrip("/").rpartition("/")[2] if folder is None else folder.resolve().name


def row_iou(row: AnswerRow, protocol: str) -> float:
    """IoU of an answer with the ground truth, as the protocol counts it; a missing answer has 0."""
    return predictions([row])[0].iou(PROTOCOLS[protocol])


def examples(evaluation: Evaluation) -> list[Example]:
    """Up to three queries: the largest gain, the median change, the largest loss; ties by name, each query once."""
    ranked = sorted(evaluation.pairs, key=lambda pair: (evaluation.change(*pair), pair[0].key, pair[0].query_id))
    if not ranked:
        return []
    chosen = {len(ranked) - 1: "the largest gain", (len(ranked) - 1) // 2: "the median change", 0: "the largest loss"}
    out = []
    for index, why in chosen.items():
        if index == 0 and evaluation.change(*ranked[0]) >= 0:
            why = "the smallest gain (no query lost)"
        out.append(Example(why, *ranked[index]))
    return out


def training_groups(run: Run) -> list[tuple[str, int, list[dict[str, Any]]]]:
    """(why, step, rows) of up to two dumped groups: the first guided step's and the last free step's, in each the group
    with the widest spread of rewards, since a group of equal rewards teaches nothing."""
    phases = {int(record["step"]): record.get("phase") for record in run.steps}
    dumped = run.rollout_steps()
    guided = [step for step in dumped if phases.get(step) == "guided"][:1]
    free = [step for step in dumped if phases.get(step) != "guided"][-1:]
    found = []
    for why, steps in (("guided phase", guided), ("free phase", free)):
        for step in steps:
            groups = run.rollouts(step)
            if groups:
                found.append((why, step, max(groups, key=_spread)))
    return found


def mean_of(records: Sequence[dict[str, Any]], name: str) -> float:
    """Mean of one number over records, those without it left out; nan where none has it."""
    values = [float(record[name]) for record in records if record.get(name) is not None]
    return sum(values) / len(values) if values else math.nan


def _spread(rows: list[dict[str, Any]]) -> float:
    rewards = [float(row["reward"]) for row in rows]
    return max(rewards) - min(rewards)
