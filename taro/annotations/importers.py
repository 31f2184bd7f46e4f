"""The table of annotation formats, and `import_annotations`, which reads and lints a file of any of them.

An importer only translates a line, an item or a whole document into raw rows; everything that can be wrong with a row
is the linter's. A new format is one function and one entry of `DATASETS`; `hf` alone is no file and stands beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from taro.annotations import activitynet, charades_sta, generic, qvhighlights, taro_authors, time_r1, timelens, tvgbench
from taro.annotations.hugging_face import HuggingFaceReader
from taro.annotations.lint import RawRow, lint, make_unique
from taro.annotations.reading import Line, LineReader, Value
from taro.annotations.rows import Dropped, LintReport, Outcome, Repaired
from taro.core.errors import AnnotationError

__all__ = ["DATASETS", "Importer", "LintPolicy", "dataset_names", "import_annotations"]

LintPolicy = Literal["repair", "drop", "fail"]
Importer = Callable[[LineReader, str, Path | None], Iterator[RawRow | Dropped]]
SHOWN = 5
MAX_ROWS = 2_000_000
TABLES = {"arrow", "csv", "datasets", "huggingface", "hugging_face", "json", "pandas", "parquet", "table", "tsv"}
"""names by which the format hf is asked for"""


def _charades_sta(reader: LineReader, split: str, lengths: Path | None) -> Iterator[RawRow | Dropped]:
    seconds = {} if lengths is None else charades_sta.read_lengths(Path(lengths))
    for line in reader:
        if line.problem is None:
            yield charades_sta.parse_line(line, split=split, lengths=seconds)
        else:
            yield _unread(line)


def _lines(parse: Callable[..., RawRow | Dropped]) -> Importer:
    """A format of JSON lines, which one JSON list may hold as well; `parse(item, number, split=...)` reads one."""

    def read(reader: LineReader, split: str, lengths: Path | None) -> Iterator[RawRow | Dropped]:
        _no_lengths(lengths)
        for one in reader.values():
            yield parse(one.value, one.number, split=split) if one.problem is None else _unread(one)

    return read


def _items(parse: Callable[..., RawRow | Dropped]) -> Importer:
    """A JSON list, which JSON lines may hold as well; `parse(item, number, split=...)` reads one item."""

    def read(reader: LineReader, split: str, lengths: Path | None) -> Iterator[RawRow | Dropped]:
        _no_lengths(lengths)
        for place, one in enumerate(reader.values(document=True)):
            row = parse(one.value, one.number, split=split) if one.problem is None else _unread(one)
            if place == 0 and isinstance(row, Dropped):
                _refuse_other_document(reader, one)
            yield row

    return read


def _refuse_other_document(reader: LineReader, one: Value) -> None:
    """A file that holds a single object, which is no item, is of another format."""
    if isinstance(one.value, dict) and next(islice(reader.values(document=True), 1, None), None) is None:
        raise AnnotationError(f"{reader.path}: expected a JSON list of items, got an object with the keys "
                              f"{', '.join(map(ascii, list(one.value)[:5]))[:200]}")


def _videos(parse: Callable[..., Iterator[RawRow | Dropped]]) -> Importer:
    """A JSON object of videos; `parse(document, split=...)` reads all of it."""

    def read(reader: LineReader, split: str, lengths: Path | None) -> Iterator[RawRow | Dropped]:
        _no_lengths(lengths)
        document: Any = reader.document()
        if not isinstance(document, dict):
            raise AnnotationError(f"{reader.path}: expected a JSON object of videos, got a {type(document).__name__}")
        yield from parse(document, split=split)

    return read


def _no_lengths(lengths: Path | None) -> None:
    if lengths is not None:
        raise AnnotationError(f"{lengths}: this format carries durations itself; leave the file of lengths out")


def _unread(line: Line | Value) -> Dropped:
    assert line.problem is not None
    return Dropped(line.number, str(line.number), line.problem)


DATASETS: dict[str, Importer] = {
    "charades-sta": _charades_sta,
    "jsonl": _lines(generic.parse_item),
    "sandbox": _lines(generic.parse_item),
    "activitynet": _videos(activitynet.parse_document),
    "qvhighlights": _lines(qvhighlights.parse_item),
    "tvgbench": _items(tvgbench.parse_item),
    "time-r1": _items(time_r1.parse_item),
    "taro": _items(taro_authors.parse_item),
    "taro-eval": _lines(qvhighlights.parse_taro_item),
    "timelens": _videos(timelens.parse_document),
}
"""Format name -> importer: (lines, split of rows that name none, file of lengths) -> raw rows, one a line."""


def dataset_names() -> list[str]:
    """Every name that `import_annotations` takes as `dataset`."""
    return [*DATASETS, "hf"]


def import_annotations(path: str | Path, *, dataset: str, split: str = "train", lengths: Path | None = None,
                       policy: LintPolicy = "repair", columns: Mapping[str, str] | None = None) -> LintReport:
    """Reads and lints an annotation file; every line has an outcome in the report.

    Args:
        path: the file; for `sandbox` the folder that `taro sandbox make` wrote will do, for `hf` a hub id.
        dataset: a name of `dataset_names()`.
        split: of the rows that name none themselves; of a hub set, the split that is read.
        lengths: the csv of video lengths, for formats that come without.
        policy: `repair` what can be repaired; `drop` what would need repair; `fail` if any line is not fine.
        columns: for `hf`, which column holds which field, such as {"query": "sentence"}.
    """
    if dataset not in dataset_names():
        raise AnnotationError(f"{dataset}: no such annotation format{_meant(dataset)}; expected one of: "
                              f"{', '.join(dataset_names())}")
    if policy not in ("repair", "drop", "fail"):
        raise AnnotationError(f"{policy}: no such policy; expected repair, drop or fail")
    if columns and dataset != "hf":
        raise AnnotationError(f"columns: only the format hf takes a mapping of columns, {dataset} has its own names")
    reader, raw = _open(path, dataset, split, lengths, columns or {})
    outcomes = make_unique(row if isinstance(row, Dropped) else lint(row) for row in _bounded(raw, str(path)))
    if not outcomes:
        raise AnnotationError(f"{path}: expected annotations ({dataset}), got an empty file")
    if policy == "fail":
        _refuse_findings(path, outcomes)
    if policy == "drop":
        outcomes = [_unrepaired(outcome) for outcome in outcomes]
    return LintReport(dataset, reader.sha256, tuple(outcomes))


def _open(path: str | Path, dataset: str, split: str, lengths: Path | None,
          columns: Mapping[str, str]) -> tuple[LineReader | HuggingFaceReader, Iterable[RawRow | Dropped]]:
    if dataset == "hf":
        _no_lengths(lengths)
        hub = HuggingFaceReader(path, split=split, columns=columns)
        return hub, hub
    path = Path(path)
    if dataset == "sandbox" and path.is_dir():
        path = path / "annotations.jsonl"
    reader = LineReader(path)
    return reader, DATASETS[dataset](reader, split, lengths)


def _meant(dataset: str) -> str:
    """What a name that is no format may be meant for; "" where nothing is near."""
    asked = dataset.lower().lstrip(".")
    if asked.split(".")[0] in TABLES:
        return "; use hf, which reads csv, tsv, parquet and json files (--column FIELD=COLUMN names their columns)"
    names = dataset_names()
    near = [name for name in names if asked and (name.startswith(asked) or asked.startswith(name))]
    near = near or get_close_matches(asked, names, n=1) or get_close_matches(asked.replace("_", "-"), names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _bounded(rows: Iterable[RawRow | Dropped], where: str) -> Iterator[RawRow | Dropped]:
    for number, row in enumerate(rows, 1):
        if number > MAX_ROWS:
            raise AnnotationError(f"{where}: expected at most {MAX_ROWS:,} lines, got more; split it")
        yield row


def _unrepaired(outcome: Outcome) -> Outcome:
    if not isinstance(outcome, Repaired):
        return outcome
    reason = f"would need repair: {', '.join(outcome.repairs)}"
    return Dropped(outcome.row.line, outcome.row.row_id, reason, outcome.repairs)


def _refuse_findings(path: str | Path, outcomes: list[Outcome]) -> None:
    findings = []
    for outcome in outcomes:
        if isinstance(outcome, Repaired):
            findings.append(f"line {outcome.row.line}: {', '.join(outcome.repairs)}")
        elif isinstance(outcome, Dropped):
            findings.append(f"line {outcome.line}: {outcome.reason}")
    if findings:
        more = f"; and {len(findings) - SHOWN:,} more" if len(findings) > SHOWN else ""
        raise AnnotationError(f"{path}: policy fail: {len(findings):,} of {len(outcomes):,} lines are not fine: "
                              f"{'; '.join(findings[:SHOWN])}{more}; fix them, or use policy repair or drop")
