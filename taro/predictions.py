"""Predictions from a file, joined with the annotations that they answer, for `taro eval --predictions`.

A line is `{"query_id": ID, "text": RESPONSE}` (the whole response of a model, read as the protocol reads it) or
`{"query_id": ID, "predicted": [start, end]}` in seconds (null: no answer). Where both stand in a line the text counts:
how it is read is the protocol's business, so one file can be scored under several. `qid` is taken for `query_id`; where
neither is given `video` and `query` name the query; `reasoning` may stand beside `predicted`. The queries of the
annotations are the denominator: one that the file does not answer is a miss, and is listed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taro.annotations import AnnotationRow, LintReport, import_annotations
from taro.annotations.reading import LineReader
from taro.errors import AnnotationError, ConfigError
from taro.metrics import PROTOCOLS, Prediction, Scores, evaluate_predictions
from taro.moment import Moment
from taro.prompts import normalise_query, parse_answer, parse_reasoning

__all__ = ["FileEvaluation", "Response", "evaluate_file", "join_responses", "read_responses"]

SHOWN = 5


@dataclass(frozen=True)
class Response:
    """A line of a predictions file. `name` is what it says it answers: ("id", query id) or ("query", video, query)."""

    line: int
    name: tuple[str, ...]
    predicted: Moment | None
    reasoning: str | None


@dataclass(frozen=True)
class FileEvaluation:
    """Scores of a predictions file, the report on the annotations it was held against, and the names of responses
    that answer no query of them."""

    scores: Scores
    lint: LintReport
    unknown: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the scores, `unknown` ids and the counts of the annotations."""
        return self.scores.as_dict() | {"unknown_ids": list(self.unknown), "annotations": self.lint.counts}

    def table(self) -> str:
        """Plain text: the table of the scores, then what did not fit together."""
        counts = self.lint.counts
        parts = ", ".join(f"{counts[kind]:,} {kind}" for kind in ("kept", "repaired", "dropped"))
        lines = [self.scores.table(), f"annotations: {counts['lines']:,} lines, {parts}"]
        if self.unknown:
            shown = ", ".join(self.unknown[:SHOWN]) + (", ..." if len(self.unknown) > SHOWN else "")
            lines.append(f"{len(self.unknown):,} predictions answer no query of these annotations: {shown}")
        return "\n".join(lines)


def evaluate_file(
    predictions: str | Path,
    *,
    dataset: str,
    annotations: str | Path,
    split: str | None = None,
    lengths: Path | None = None,
    protocol: str = "taro",
    bootstrap_seed: int = 0,
) -> FileEvaluation:
    """Scores a predictions file against annotations; `split` limits both to the rows of that split."""
    if protocol not in PROTOCOLS:
        raise ConfigError(f"{protocol}: no such evaluation protocol; expected one of: {', '.join(PROTOCOLS)}")
    lint = import_annotations(annotations, dataset=dataset, split=split or "test", lengths=lengths)
    rows = [row for row in lint.rows if split is None or row.split == split]
    if not rows:
        raise AnnotationError(
            f"{annotations}: expected queries{f' of split {split}' if split else ''}, got none usable"
        )
    joined, unknown = join_responses(read_responses(predictions, protocol=protocol), rows)
    if len(unknown) and all(p.missing for p in joined):
        raise AnnotationError(
            f"{predictions}: none of its {len(unknown):,} predictions answers a query of {annotations}; expected ids "
            f"such as {rows[0].row_id}, got {unknown[0]}; check that both are of the same dataset and split"
        )
    return FileEvaluation(evaluate_predictions(joined, protocol=protocol, bootstrap_seed=bootstrap_seed), lint, unknown)


def read_responses(path: str | Path, *, protocol: str = "taro") -> list[Response]:
    """The lines of a predictions file; raises AnnotationError at the first that cannot be read or repeats a query."""
    responses: dict[tuple[str, ...], Response] = {}
    for line in LineReader(Path(path)):
        if line.problem == "blank line":
            continue
        where = f"{path}: line {line.number}"
        if line.problem is not None:
            raise AnnotationError(f"{where}: {line.problem}")
        response = _response(line.number, line.text, where, protocol)
        first = responses.setdefault(response.name, response)
        if first is not response:
            raise AnnotationError(
                f"{where}: answers {' '.join(response.name)} again, after line {first.line}; keep one"
            )
    return list(responses.values())


def join_responses(
    responses: Sequence[Response], rows: Sequence[AnnotationRow]
) -> tuple[list[Prediction], tuple[str, ...]]:
    """One prediction a row, in the order of the rows (missing where nothing answers it), and the unknown names. An
    answer named by video and query serves every row with that video and that query."""
    by_name = {response.name: response for response in responses}
    used: set[tuple[str, ...]] = set()
    predictions = []
    for row in rows:
        names = [("id", row.row_id), ("query", row.video, normalise_query(row.query))]
        name = next((name for name in names if name in by_name), None)
        response = by_name[name] if name is not None else None
        if name is not None:
            used.add(name)
        predictions.append(
            Prediction(
                query_id=row.row_id,
                video=row.video,
                predicted=response.predicted if response else None,
                windows=row.windows,
                duration_s=row.duration_s,
                reasoning=response.reasoning if response else None,
                missing=response is None,
            )
        )
    return predictions, tuple(" ".join(r.name[1:]) for r in responses if r.name not in used)


def _response(number: int, text: str, where: str, protocol: str) -> Response:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{where}: expected a JSON object, got: {error}") from None
    if not isinstance(data, dict):
        raise AnnotationError(f"{where}: expected a JSON object, got a {type(data).__name__}")
    name = _name(data, where)
    reasoning = data.get("reasoning")
    if isinstance(data.get("text"), str):
        predicted = parse_answer(data["text"], protocol=protocol)
    elif "predicted" in data:
        predicted = _moment(data["predicted"], where)
    else:
        raise AnnotationError(
            f'{where}: expected "text" (a response) or "predicted" ([start, end] or null), got neither'
        )
    if reasoning is None and isinstance(data.get("text"), str):
        reasoning = parse_reasoning(data["text"]).text
    return Response(number, name, predicted, reasoning if isinstance(reasoning, str) else None)


def _name(data: dict[str, Any], where: str) -> tuple[str, ...]:
    query_id = data.get("query_id", data.get("qid"))
    if isinstance(query_id, str) or (isinstance(query_id, int) and not isinstance(query_id, bool)):
        return ("id", " ".join(str(query_id).split()))
    video, query = data.get("video"), data.get("query")
    if isinstance(video, str) and isinstance(query, str):
        return ("query", video.strip(), normalise_query(query))
    raise AnnotationError(
        f'{where}: expected "query_id" (or "qid"), or "video" and "query"; got keys {sorted(data)[:8]}'
    )


def _moment(value: Any, where: str) -> Moment | None:
    if value is None:
        return None
    numbers = value if isinstance(value, list) and len(value) == 2 else [None]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < 1e12 for n in numbers):
        raise AnnotationError(
            f'{where}: expected "predicted" to be [start, end] in seconds, or null, got {str(value)[:60]}'
        )
    start_s, end_s = map(float, numbers)
    return Moment(start_s, end_s) if math.isfinite(start_s) and math.isfinite(end_s) else None
