"""Predictions from a file, joined with the annotations that they answer, for `taro eval --predictions`.

A line is `{"query_id": ID, "text": RESPONSE}` (the whole response of a model, read as the protocol reads it) or
`{"query_id": ID, "predicted": [start, end]}` in seconds (null: no answer; `[[start, end], ...]`: several windows, of
which the first answers under protocols that take one). Where both stand in a line the text counts:
how it is read is the protocol's business, so one file can be scored under several. `qid` is taken for `query_id`; where
neither is given `video` and `query` name the query; `reasoning` may stand beside `predicted`. A line in the form of
Moment-DETR (`qid`, `pred_relevant_windows` [[s, e, score], ...], `pred_saliency_scores`) is read too: its best window
answers under every protocol, all of it under `moment-detr`. The queries of the annotations are the denominator: one
that the file does not answer is a miss, and is listed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from taro.annotations import AnnotationRow, LintReport, import_annotations
from taro.annotations.lint import decimal_text
from taro.annotations.reading import BLANK, LineReader
from taro.core.errors import AnnotationError
from taro.core.text import one_line
from taro.grounding.answers import parse_answer, parse_answers, written_reasoning
from taro.grounding.moment import Moment
from taro.grounding.prompts import normalise_query
from taro.grounding.protocols import protocol_named
from taro.metrics.compare import Comparison, compare_predictions
from taro.metrics.examples import Example
from taro.metrics.published import published_for, published_table
from taro.metrics.ranked import RankedPrediction, RankedScores, as_written, comparable_columns, evaluate_ranked
from taro.metrics.scores import Prediction, Scores, evaluate_predictions

__all__ = ["Annotations", "FileComparison", "FileEvaluation", "Response", "compare_files", "evaluate_file",
           "join_ranked", "join_responses", "read_responses"]

SHOWN = 5
MAX_RANKED = 1_000
MAX_CLIPS = 100_000


@dataclass(frozen=True)
class Annotations:
    """What a predictions file is scored against. `dataset`: a name of `taro.annotations.DATASETS`; `split`: limits both
    files to its rows; `lengths`: durations, for formats without; `columns`: of the format hf."""

    path: str | Path
    dataset: str
    split: str | None = None
    lengths: Path | None = None
    columns: Mapping[str, str] | None = None

    def queries(self) -> tuple[LintReport, list[AnnotationRow]]:
        """The report of the linter, and the rows of the split. Raises AnnotationError where there is none."""
        lint = import_annotations(self.path, dataset=self.dataset, split=self.split or "test", lengths=self.lengths,
                                  columns=self.columns)
        rows = [row for row in lint.rows if self.split is None or row.split == self.split]
        if not rows:
            of_split = f" of split {self.split}" if self.split else ""
            raise AnnotationError(f"{self.path}: expected queries{of_split}, got none usable; is it a {self.dataset} "
                                  "file (--dataset)? `taro annotations lint` says what is wrong with each line")
        return lint, rows


@dataclass(frozen=True)
class Response:
    """A line of a predictions file. `name` is what it says it answers: ("id", query id) or ("query", video, query);
    `ranked` and `clip_scores`: of a line in the form of Moment-DETR, None elsewhere; `text`: the whole response;
    `answers`: all windows that it names, in its order. Of a line that `taro eval --out` wrote: `duration_s` of the
    clip that was answered, `video_sha256` of its file, `unasked`: the query was not asked, for it lies outside of the
    clip."""

    line: int
    name: tuple[str, ...]
    predicted: Moment | None
    reasoning: str | None
    ranked: tuple[tuple[Moment, float], ...] | None = None
    clip_scores: tuple[float, ...] | None = None
    text: str | None = None
    answers: tuple[Moment, ...] = ()
    duration_s: float | None = None
    video_sha256: str | None = None
    unasked: bool = False


@dataclass(frozen=True)
class FileEvaluation:
    """Scores of a predictions file, the report on the annotations, and the names of responses
    that answer no query of them. `ranked`: mAP and highlights, under moment-detr (an answer alone is a list of one);
    `examples`: every answer with its words; `with_dropped`: the metrics where queries that the linter dropped count as
    misses, as evaluations do that keep windows without length in; None where none was dropped or a split was asked
    for (a dropped line has none); `outside`: queries that were not asked, for they lie outside of their video, and
    that count like dropped ones."""

    scores: Scores
    lint: LintReport
    unknown: tuple[str, ...]
    ranked: RankedScores | None = None
    examples: tuple[Example, ...] = ()
    with_dropped: dict[str, float] | None = None
    outside: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the scores, `unknown` ids and the counts of the annotations."""
        scores = self.ranked or self.scores
        return scores.as_dict() | {"unknown_ids": list(self.unknown), "annotations": self.lint.counts,
                                   "with_dropped": self.with_dropped, "outside": self.outside,
                                   "dataset": self.lint.dataset, "published": self.published}

    @property
    def published(self) -> dict[str, list[float | None]]:
        """What others published on these very queries: R1 at 0.3, 0.5 and 0.7, percent, by model; {} where the
        annotations are no benchmark, or not the whole of it."""
        whole = self.scores.queries == len(self.lint.rows)
        return {name: list(figures) for name, figures in
                published_for(self.lint.dataset, len(self.lint.outcomes) if whole else 0).items()}

    def table(self) -> str:
        """Plain text: the table of the scores, then what did not fit together."""
        counts = self.lint.counts
        parts = ", ".join(f"{counts[kind]:,} {kind}" for kind in ("kept", "repaired", "dropped"))
        lines = [(self.ranked or self.scores).table(), f"annotations: {counts['lines']:,} lines, {parts}"]
        if self.outside:
            lines.append(f"{self.outside:,} queries lie outside of their videos and were not asked")
        if self.with_dropped is not None:
            shown = ", ".join(f"{name} {100 * value:.1f}" for name, value in self.with_dropped.items())
            lines.append(f"with the dropped lines as misses: {shown}")
        if self.unknown:
            shown = ", ".join(one_line(name[:100]) for name in self.unknown[:SHOWN])
            shown += ", ..." if len(self.unknown) > SHOWN else ""
            lines.append(f"{len(self.unknown):,} predictions answer no query of these annotations: {shown}")
        if self.published:
            lines.append(published_table(self.lint.dataset, len(self.lint.outcomes)))
        return "\n".join(lines)


@dataclass(frozen=True)
class FileComparison:
    """Two predictions files on the same queries. `missing`, `unparsable`, `unknown`: how many of A and of B; the first
    two are queries, and misses, the last are lines that answer no query."""

    comparison: Comparison
    lint: LintReport
    missing: tuple[int, int]
    unparsable: tuple[int, int]
    unknown: tuple[int, int]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the comparison, what each file did not answer, the counts of the annotations."""
        sides = {name: list(getattr(self, name)) for name in ("missing", "unparsable", "unknown")}
        return self.comparison.as_dict() | sides | {"annotations": self.lint.counts}

    def table(self) -> str:
        """Plain text: the comparison, then what each file did not answer."""
        counts = (self.missing, self.unparsable, self.unknown)
        missing, unparsable, unknown = (f"{a:,} in A, {b:,} in B" for a, b in counts)
        lines = [self.comparison.table(), f"missing {missing}; unparsable {unparsable} (counted as misses)"]
        if any(self.unknown):
            lines.append(f"predictions that answer no query of these annotations: {unknown}")
        return "\n".join(lines)


def evaluate_file(predictions: str | Path, annotations: Annotations, *, protocol: str = "taro",
                  bootstrap_seed: int = 0) -> FileEvaluation:
    """Scores a predictions file against annotations."""
    protocol_named(protocol)
    lint, rows = annotations.queries()
    responses = read_responses(predictions, protocol=protocol)
    seen = _as_seen(rows, [responses])
    rows, outside, responses = seen, len(rows) - len(seen), [one for one in responses if not one.unasked]
    joined, unknown = _joined(responses, rows, predictions, annotations.path)
    ranked = None
    if protocol == "moment-detr":
        ranked = evaluate_ranked(join_ranked(responses, rows), bootstrap_seed=bootstrap_seed)
    scores = evaluate_predictions(joined, protocol=protocol, bootstrap_seed=bootstrap_seed)
    texts = [response.text if response else None for response in _answers(responses, rows)[0]]
    examples = tuple(Example(p, row.query, text) for p, row, text in zip(joined, rows, texts, strict=True))
    dropped = len(lint.outcomes) - len(lint.rows) + outside
    share, counted = len(rows) / (len(rows) + dropped), dropped and annotations.split is None
    with_dropped = {name: value * share for name, value in scores.metrics.items()} if counted else None
    return FileEvaluation(scores, lint, unknown, ranked, examples, with_dropped, outside)


def compare_files(a: str | Path, b: str | Path, annotations: Annotations, *, protocol: str = "taro",
                  bootstrap_seed: int = 0) -> FileComparison:
    """Compares two predictions files on the queries of the annotations, with a paired bootstrap; queries that a file
    does not answer are misses of that file."""
    protocol_named(protocol)
    lint, every = annotations.queries()
    responses = [read_responses(path, protocol=protocol) for path in (a, b)]
    rows = _as_seen(every, responses)
    responses = [[one for one in said if not one.unasked] for said in responses]
    joined = [_joined(said, rows, path, annotations.path) for said, path in zip(responses, (a, b), strict=True)]
    sides = [found for found, _ in joined]
    ranked = [join_ranked(said, rows) for said in responses] if protocol == "moment-detr" else []
    compared = compare_predictions(*sides, protocol=protocol, bootstrap_seed=bootstrap_seed,
                                   more=comparable_columns(*ranked) if ranked else None)
    missing_a, missing_b = (sum(one.missing for one in side) for side in sides)
    unread_a, unread_b = (sum(one.predicted is None and not one.missing for one in side) for side in sides)
    return FileComparison(compared, lint, (missing_a, missing_b), (unread_a, unread_b),
                          (len(joined[0][1]), len(joined[1][1])))


def _joined(responses: Sequence[Response], rows: Sequence[AnnotationRow], predictions: str | Path,
            annotations: str | Path) -> tuple[list[Prediction], tuple[str, ...]]:
    joined, unknown = join_responses(responses, rows)
    if len(unknown) and all(p.missing for p in joined):
        raise AnnotationError(
            f"{predictions}: none of its {len(unknown):,} predictions answers a query of {annotations}; expected ids "
            f"such as {rows[0].row_id}, got {unknown[0]}; check that both are of the same dataset and split")
    return joined, unknown


def read_responses(path: str | Path, *, protocol: str = "taro") -> list[Response]:
    """The lines of a predictions file; raises AnnotationError at the first that cannot be read or repeats a query."""
    responses: dict[tuple[str, ...], Response] = {}
    for one in LineReader(Path(path), kind="a predictions file").values():
        if one.problem == BLANK:
            continue
        where = f"{path}: line {one.number}"
        if one.problem is not None:
            raise AnnotationError(f"{where}: expected a JSON object, got: {one.problem}")
        response = _response(one.number, one.value, where, protocol)
        first = responses.setdefault(response.name, response)
        if first is not response:
            raise AnnotationError(
                f"{where}: answers {' '.join(response.name)[:200]} again, after line {first.line}; keep one")
    return list(responses.values())


def join_responses(responses: Sequence[Response],
                   rows: Sequence[AnnotationRow]) -> tuple[list[Prediction], tuple[str, ...]]:
    """One prediction a row, in the order of the rows (missing where nothing answers it), and the unknown names. An
    answer named by video and query serves every row with that video and that query."""
    found, unknown = _answers(responses, rows)
    return [_prediction(row, response) for row, response in zip(rows, found, strict=True)], unknown


def join_ranked(responses: Sequence[Response], rows: Sequence[AnnotationRow]) -> list[RankedPrediction]:
    """The same with all windows of each response, and its numbers for clips; windows without scores are ranked as they
    are written."""
    found, _ = _answers(responses, rows)
    ranked = []
    for row, response in zip(rows, found, strict=True):
        windows = response.ranked if response else None
        if windows is None:
            windows = as_written(response.answers if response else ())
        clip_scores = response.clip_scores if response else None
        ranked.append(RankedPrediction(_prediction(row, response), windows, clip_scores, row.saliency))
    return ranked


def _answers(responses: Sequence[Response],
             rows: Sequence[AnnotationRow]) -> tuple[list[Response | None], tuple[str, ...]]:
    by_name = {response.name: response for response in responses}
    used: set[tuple[str, ...]] = set()
    found: list[Response | None] = []
    for row in rows:
        names = [("id", row.row_id), ("query", row.video, normalise_query(row.query))]
        name = next((name for name in names if name in by_name), None)
        found.append(by_name[name] if name is not None else None)
        if name is not None:
            used.add(name)
    return found, tuple(" ".join(r.name[1:]) for r in responses if r.name not in used)


def _prediction(row: AnnotationRow, response: Response | None) -> Prediction:
    return Prediction(query_id=row.row_id, video=row.video, predicted=response.predicted if response else None,
                      windows=row.windows, duration_s=row.duration_s,
                      reasoning=response.reasoning if response else None, missing=response is None,
                      unclipped=row.unclipped, answers=response.answers if response else ())


def _as_seen(rows: Sequence[AnnotationRow], files: Sequence[Sequence[Response]]) -> list[AnnotationRow]:
    """The rows with the length of the clip and the video that the answers name, those of the first file that names
    them: the scores of a file that `taro eval --policy --out` wrote are those that it printed. A row that was not
    asked, since it lies outside of its clip, is left out: the linter would have dropped it, had it known the length."""
    seen: list[AnnotationRow] = []
    for row, *found in zip(rows, *(_answers(responses, rows)[0] for responses in files), strict=True):
        response = next((one for one in found if one is not None and one.duration_s is not None), None)
        if response is None or response.duration_s is None:
            seen.append(row)
            continue
        annotated = row.unclipped or row.windows
        windows = tuple(w for w in (w.clip(response.duration_s) for w in row.windows) if w.duration_s > 0)
        if windows:
            video = response.video_sha256 if response.name[0] == "id" else None
            seen.append(replace(row, windows=windows, duration_s=response.duration_s, video=video or row.video,
                                unclipped=annotated if annotated != windows else None))
        elif not response.unasked:
            seen.append(row)
    return seen


def _response(number: int, data: Any, where: str, protocol: str) -> Response:
    if not isinstance(data, dict):
        raise AnnotationError(f"{where}: expected a JSON object, got a {type(data).__name__}")
    name = _name(data, where)
    reasoning = data.get("reasoning")
    ranked = None if data.get("pred_relevant_windows") is None else _ranked(data["pred_relevant_windows"], where)
    if isinstance(data.get("text"), str):
        predicted = parse_answer(data["text"], protocol=protocol)
        answers = parse_answers(data["text"], protocol=protocol)
    elif "predicted" in data:
        answers = _moments(data["predicted"], where)
        predicted = answers[0] if answers else None
    elif isinstance(data.get("unasked"), str):
        predicted, answers = None, ()
    elif ranked is not None:
        answers = tuple(window for window, _ in sorted(ranked, key=lambda pair: -pair[1]))
        predicted = answers[0] if answers else None
    else:
        raise AnnotationError(
            f'{where}: expected "text" (a response), "predicted" ([start, end] or null) or "pred_relevant_windows", '
            "got none of them")
    if reasoning is None and isinstance(data.get("text"), str):
        reasoning = written_reasoning(data["text"])
    scores = data.get("pred_saliency_scores")
    clip_scores = None if scores is None else _clip_scores(scores, where)
    return Response(number, name, predicted, reasoning if isinstance(reasoning, str) else None, ranked, clip_scores,
                    data["text"] if isinstance(data.get("text"), str) else None, answers,
                    _duration_s(data.get("duration_s")), _sha256(data.get("video_sha256")),
                    isinstance(data.get("unasked"), str))


def _duration_s(value: Any) -> float | None:
    return float(value) if _is_number(value) and value > 0 else None


def _sha256(value: Any) -> str | None:
    return value if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else None


def _ranked(value: Any, where: str) -> tuple[tuple[Moment, float], ...]:
    """[[start, end, score], ...]; windows without a score keep their order behind each other."""
    if isinstance(value, list) and len(value) <= MAX_RANKED and all(isinstance(w, list) for w in value):
        triples = [(*window, -float(rank)) if len(window) == 2 else tuple(window) for rank, window in enumerate(value)]
        if all(len(triple) == 3 and all(map(_is_number, triple)) for triple in triples):
            return tuple((Moment(float(s), float(e)), float(score)) for s, e, score in triples)
    raise AnnotationError(
        f'{where}: expected "pred_relevant_windows" to be up to {MAX_RANKED:,} [start, end, score], all finite')


def _clip_scores(value: Any, where: str) -> tuple[float, ...]:
    """One finite number a clip."""
    if isinstance(value, list) and len(value) <= MAX_CLIPS and all(map(_is_number, value)):
        return tuple(map(float, value))
    raise AnnotationError(
        f'{where}: expected "pred_saliency_scores" to be a list of up to {MAX_CLIPS:,} finite numbers, one a clip')


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12


def _name(data: dict[str, Any], where: str) -> tuple[str, ...]:
    query_id = decimal_text(data.get("qid") if data.get("query_id") is None else data["query_id"])
    if isinstance(query_id, str):
        return ("id", " ".join(query_id.split()))
    video, query = decimal_text(data.get("video")), data.get("query")
    if isinstance(video, str) and isinstance(query, str):
        return ("query", video.strip(), normalise_query(query))
    raise AnnotationError(
        f'{where}: expected "query_id" (or "qid"), or "video" and "query"; got keys {str(sorted(data)[:8])[:300]}')


def _moments(value: Any, where: str) -> tuple[Moment, ...]:
    """[start, end], [[start, end], ...] or null."""
    several = isinstance(value, list) and all(isinstance(window, list) for window in value)
    windows = [] if value is None else value if several else [value]
    if len(windows) > MAX_RANKED or not all(
            isinstance(window, list) and len(window) == 2 and all(map(_is_number, window)) for window in windows):
        raise AnnotationError(
            f'{where}: expected "predicted" to be [start, end] in seconds, or null, or a list of up to {MAX_RANKED:,} '
            f"windows, got {str(value)[:60]}")
    return tuple(Moment(float(start_s), float(end_s)) for start_s, end_s in windows)
