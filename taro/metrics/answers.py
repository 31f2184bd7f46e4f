"""Answers of a policy: one row a query, the one form in which they are scored, written and read back.

`taro eval --policy ... --out` writes them, reports and the quickstart read them, `taro eval --predictions` takes them
too (it reads what any system writes: `taro.metrics.predictions`). A row holds all that a score or a page needs, so
nothing else must be at hand to compare two policies later. Left out: asking (`taro.train.evaluate`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, InstanceOf
from pydantic.dataclasses import dataclass

from taro.core.errors import ConfigError
from taro.core.files import make_folders, new_file
from taro.core.jsonl import checked_row, read_jsonl
from taro.grounding.answers import written_reasoning
from taro.grounding.moment import Moment
from taro.metrics.ranked import RankedPrediction, RankedScores, as_written, evaluate_ranked
from taro.metrics.scores import Prediction, Scores, evaluate_predictions

__all__ = ["AnswerRow", "UnaskedRow", "predictions", "rank_rows", "read_answers", "row_from_json",
           "row_to_json", "score_rows", "write_answers"]

MOST_S = 1e12


def _moment(value: Any) -> Any:
    """[start, end] of a file as a moment; nan fails every comparison."""
    if isinstance(value, Moment):
        return value
    if isinstance(value, list | tuple) and len(value) == 2 and all(
            type(end) in (int, float) and abs(end) <= MOST_S for end in value):
        return Moment(float(value[0]), float(value[1]))
    raise ValueError("expected [start, end] in seconds")


Window = Annotated[InstanceOf[Moment], BeforeValidator(_moment)]


@dataclass(frozen=True, config=ConfigDict(extra="ignore"))
class AnswerRow:
    """One answered query. `text`: the response, behind the `<think>` that its prompt may have opened; `predicted` is
    read with the protocol that the evaluation was asked for; `windows`: ground truth; `answers`: all windows of
    the answer, where that protocol takes several; `finished`: the response ended by itself within the longest one
    allowed; `unclipped`: the windows as annotated, where they reach beyond the clip."""

    key: str
    query_id: str
    query: str
    video: str
    video_sha256: str
    text: str
    predicted: Window | None
    windows: tuple[Window, ...]
    duration_s: Annotated[float, Field(gt=0, le=MOST_S)]
    tokens: Annotated[int, Field(ge=0, le=2**53)]
    finished: bool
    answers: tuple[Window, ...] = ()
    unclipped: tuple[Window, ...] | None = None


@dataclass(frozen=True)
class UnaskedRow:
    """A query that was not asked, since all its windows lie outside of its clip, which has `duration_s`; no miss."""

    query_id: str
    query: str
    video: str
    duration_s: float
    unasked: str


def read_answers(path: str | Path) -> list[AnswerRow]:
    """The rows that `write_answers` wrote. Raises ConfigError where there is no such file, or a line is not one of
    them."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: expected a JSONL file, got none; check the path")
    return [checked_row(AnswerRow, row, path, number) for number, row in enumerate(read_jsonl(path), 1)
            if "unasked" not in row]


def write_answers(rows: Iterable[AnswerRow], path: Path, *, unasked: Iterable[UnaskedRow] = ()) -> None:
    """One JSON object a line; `answers` stands in it where there are several, `unclipped` where it differs from
    `windows`; then the queries that were not asked. The file is written whole or not at all."""
    make_folders(path.parent)
    with new_file(path.resolve()) as file:
        for row in rows:
            written = row_to_json(row)
            if len(row.answers) <= 1:
                del written["answers"]
            if row.unclipped is None:
                del written["unclipped"]
            file.write(json.dumps(written).encode() + b"\n")
        for one in unasked:
            file.write(json.dumps({**vars(one)}).encode() + b"\n")


def row_to_json(row: AnswerRow) -> dict[str, Any]:
    """All of a row, as JSON has it."""
    return {"key": row.key, "query_id": row.query_id, "query": row.query, "video": row.video,
            "video_sha256": row.video_sha256, "text": row.text,
            "predicted": None if row.predicted is None else _lists([row.predicted])[0],
            "windows": _lists(row.windows), "duration_s": row.duration_s, "tokens": row.tokens,
            "finished": row.finished, "answers": _lists(row.answers),
            "unclipped": None if row.unclipped is None else _lists(row.unclipped)}


def row_from_json(data: dict[str, Any]) -> AnswerRow:
    """The row that `row_to_json` wrote, equal to it."""
    several = {name: None if data[name] is None else tuple(Moment(*ends) for ends in data[name])
               for name in ("windows", "answers", "unclipped")}
    return AnswerRow(**{**data, **several, "predicted": data["predicted"] and Moment(*data["predicted"])})


def _lists(windows: Iterable[Moment]) -> list[list[float]]:
    return [[window.start_s, window.end_s] for window in windows]


def predictions(rows: Iterable[AnswerRow]) -> list[Prediction]:
    """Rows as `taro.metrics.scores` takes them; a video is a file's content, so that the bootstrap draws whole
    files."""
    return [Prediction(query_id=f"{row.key}/{row.query_id}", video=row.video_sha256, predicted=row.predicted,
                       windows=row.windows, duration_s=row.duration_s, answers=row.answers, unclipped=row.unclipped,
                       reasoning=written_reasoning(row.text)) for row in rows]


def score_rows(rows: Sequence[AnswerRow], *, protocol: str = "taro", missing: Sequence[Prediction] = (),
               bootstrap_seed: int = 0) -> Scores:
    """Scores of answered rows and of queries that could not be asked (misses)."""
    return evaluate_predictions([*predictions(rows), *missing], protocol=protocol, bootstrap_seed=bootstrap_seed)


def rank_rows(rows: Sequence[AnswerRow], *, missing: Sequence[Prediction] = (),
              bootstrap_seed: int = 0) -> RankedScores:
    """The same under `moment-detr`, mAP with it: an answer's windows are ranked as they are written."""
    ranked = [RankedPrediction(one, as_written(one.answers)) for one in [*predictions(rows), *missing]]
    return evaluate_ranked(ranked, bootstrap_seed=bootstrap_seed)
