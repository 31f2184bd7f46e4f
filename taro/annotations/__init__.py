"""Annotations in: one importer a dataset format, one linter for all (docs/annotations.md).

An importer only translates a line into a raw row; everything that can be wrong with a row is the linter's. A new line
format is one function and one entry of `DATASETS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from taro.annotations import charades_sta, generic
from taro.annotations.lint import RawRow, lint, make_unique
from taro.annotations.reading import LineReader
from taro.annotations.rows import AnnotationRow, Dropped, Kept, LintReport, Outcome, Repaired
from taro.errors import AnnotationError

__all__ = [
    "DATASETS",
    "AnnotationRow",
    "Dropped",
    "Importer",
    "Kept",
    "LintReport",
    "Outcome",
    "Policy",
    "Repaired",
    "import_annotations",
]

Policy = Literal["repair", "drop", "fail"]
Importer = Callable[[LineReader, str, Path | None], Iterator[RawRow | Dropped]]
SHOWN = 5


def _charades_sta(reader: LineReader, split: str, lengths: Path | None) -> Iterator[RawRow | Dropped]:
    seconds = {} if lengths is None else charades_sta.read_lengths(Path(lengths))
    for line in reader:
        if line.problem is None:
            yield charades_sta.parse_line(line, split=split, lengths=seconds)
        else:
            yield Dropped(line.number, str(line.number), line.problem)


def _jsonl(reader: LineReader, split: str, lengths: Path | None) -> Iterator[RawRow | Dropped]:
    if lengths is not None:
        raise AnnotationError(f"{lengths}: this format carries durations itself; leave the file of lengths out")
    for line in reader:
        if line.problem is None:
            yield generic.parse_line(line, split=split)
        else:
            yield Dropped(line.number, str(line.number), line.problem)


DATASETS: dict[str, Importer] = {"charades-sta": _charades_sta, "jsonl": _jsonl, "sandbox": _jsonl}
"""Format name -> importer: (lines, split of rows that name none, file of lengths) -> raw rows, one a line."""


def import_annotations(
    path: str | Path, *, dataset: str, split: str = "train", lengths: Path | None = None, policy: Policy = "repair"
) -> LintReport:
    """Reads and lints an annotation file; every line has an outcome in the report.

    Args:
        path: the file; for `sandbox` the folder that `taro sandbox make` wrote will do.
        dataset: a name of `DATASETS`.
        split: of the rows that name none themselves.
        lengths: the csv of video lengths, for formats that come without.
        policy: `repair` what can be repaired; `drop` what would need repair; `fail` if any line is not fine.
    """
    if dataset not in DATASETS:
        raise AnnotationError(f"{dataset}: no such annotation format; expected one of: {', '.join(DATASETS)}")
    if policy not in ("repair", "drop", "fail"):
        raise AnnotationError(f"{policy}: no such policy; expected repair, drop or fail")
    path = Path(path)
    if dataset == "sandbox" and path.is_dir():
        path = path / "annotations.jsonl"
    reader = LineReader(path)
    raw = DATASETS[dataset](reader, split, lengths)
    outcomes = make_unique(row if isinstance(row, Dropped) else lint(row) for row in raw)
    if not outcomes:
        raise AnnotationError(f"{path}: expected annotations ({dataset}), got an empty file")
    if policy == "fail":
        _refuse_findings(path, outcomes)
    if policy == "drop":
        outcomes = [_unrepaired(outcome) for outcome in outcomes]
    return LintReport(dataset, reader.sha256, tuple(outcomes))


def _unrepaired(outcome: Outcome) -> Outcome:
    if not isinstance(outcome, Repaired):
        return outcome
    reason = f"would need repair: {', '.join(outcome.repairs)}"
    return Dropped(outcome.row.line, outcome.row.row_id, reason, outcome.repairs)


def _refuse_findings(path: Path, outcomes: list[Outcome]) -> None:
    findings = []
    for outcome in outcomes:
        if isinstance(outcome, Repaired):
            findings.append(f"line {outcome.row.line}: {', '.join(outcome.repairs)}")
        elif isinstance(outcome, Dropped):
            findings.append(f"line {outcome.line}: {outcome.reason}")
    if findings:
        more = f"; and {len(findings) - SHOWN:,} more" if len(findings) > SHOWN else ""
        raise AnnotationError(
            f"{path}: policy fail: {len(findings):,} of {len(outcomes):,} lines are not fine: "
            f"{'; '.join(findings[:SHOWN])}{more}; mend them, or use policy repair or drop"
        )
