"""The lines of a run's files as a report may rely on them: every field there, of its type, whoever wrote the file.

A run folder is often somebody else's. What a line may hold is checked here once, so that the drawing code never meets
a text where it expects a number; fields that a report does not know are passed over. Left out: reading the files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from taro.core.errors import ConfigError

__all__ = ["PHASE", "SET", "SPEED", "RolloutLine", "eval_line", "step_line"]

SET = "set/"
"""how the numbers of one of several sets are named in a step"""
PHASE, SPEED = "phase/", "speed/"
"""how the seconds of a phase and its tokens a second are named in a step"""

Seconds = Annotated[float, Field(ge=-1e12, le=1e12, allow_inf_nan=False)]
Window = tuple[Seconds, Seconds]
Count = Annotated[int, Field(ge=0, le=2**53)]


class RolloutLine(BaseModel):
    """A row of rollouts/step-N.jsonl; see `taro.train.measures.rollout_lines`. Unknown fields are passed over. Numbers
    may be nan where a step went wrong, None where there is none."""

    model_config = ConfigDict(extra="ignore")

    key: str
    query_id: str
    query: str
    g: Count
    guided: bool
    text: str
    reward: float
    format: float | None
    tiou: float | None
    iou: float | None
    bonus: float | None
    drop: float | None
    advantage: float | None
    predicted: Window | None
    windows: list[Window]
    duration_s: float
    answers: list[Window] = []
    set: str = ""
    repeat: Count = 0


def step_line(row: dict[str, Any], path: Path) -> dict[str, Any]:
    """A line of metrics.jsonl about a step: its number, its phase, and the values of it that are numbers; those of
    one of several sets are named set/NAME/KEY, those of phases phase/NAME and speed/NAME."""
    phase, sets = row.get("phase"), row.get("sets")
    each = {f"{SET}{name}/{key}": value for name, one in (sets if isinstance(sets, dict) else {}).items()
            if isinstance(one, dict) for key, value in _numbers(one).items()}
    timed = {f"{prefix}{name}": value for prefix, key in ((PHASE, "phases"), (SPEED, "tokens_per_s_by_phase"))
             for name, value in (_numbers(row[key]) if isinstance(row.get(key), dict) else {}).items()}
    return {"step": _step(row, path), "phase": phase if isinstance(phase, str) else None, **_numbers(row), **each,
            **timed}


def eval_line(row: dict[str, Any], path: Path) -> dict[str, Any]:
    """A line of metrics.jsonl about an evaluation: {"step", "eval": {"split", scores ...}}."""
    scores = row["eval"]
    if not isinstance(scores, dict):
        raise ConfigError(f"{path}: an eval of step {_step(row, path)} is no object of scores; drop the line")
    return {"step": _step(row, path), "eval": {"split": str(scores.get("split", "validation")), **_numbers(scores)}}


def _step(row: dict[str, Any], path: Path) -> int:
    step = row.get("step")
    if type(step) is not int or not 0 <= step < 2**53:
        raise ConfigError(f"{path}: expected a step in every line, as a whole number, got {str(step)[:40]!a}; drop the "
                          "line")
    return step


def _numbers(row: dict[str, Any]) -> dict[str, float | None]:
    """Numbers that a float can hold; None stays."""
    return {name: value if value is None else float(value) for name, value in row.items()
            if name != "step" and (value is None or (type(value) in (int, float) and not abs(value) > 1e300))}
