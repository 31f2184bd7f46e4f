"""Charades-STA: `VIDEO START END##query`, one a line; lengths come from the csv of Charades (columns id and length).

Ids are line numbers: the files have none of their own. About one window in seven ends past its video (DATA: 1,805 of
12,408 in train), which only the lengths can tell."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

from taro.annotations.lint import RawRow
from taro.annotations.reading import Line
from taro.annotations.rows import Dropped
from taro.core.errors import AnnotationError

__all__ = ["parse_line", "read_lengths"]


def parse_line(line: Line, *, split: str, lengths: dict[str, float]) -> RawRow | Dropped:
    """One line as a raw row.

    >>> parse_line(Line(1, "3MSZA 24.3 30.4##person turn a light on."), split="test", lengths={}).windows
    [[24.3, 30.4]]
    """
    head, mark, query = line.text.partition("##")
    parts = head.split()
    try:
        start_s, end_s = (float(part) for part in parts[1:])
    except ValueError:
        mark = ""
    if not mark:
        return Dropped(line.number, str(line.number),
                       f"not a Charades-STA line: expected VIDEO START END##query, got {line.text[:60]!a}")
    return RawRow(line.number, parts[0], query, [[start_s, end_s]], duration_s=lengths.get(parts[0]), split=split)


def read_lengths(path: Path) -> dict[str, float]:
    """Video id -> seconds, from a csv with the columns `id` and `length`."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return dict(_lengths(csv.DictReader(file), path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AnnotationError(f"{path}: expected a csv of lengths with the columns id,length; got: {error}") from None


def _lengths(reader: csv.DictReader[str], path: Path) -> Iterator[tuple[str, float]]:
    if not {"id", "length"} <= set(reader.fieldnames or ()):
        raise AnnotationError(
            f"{path}: expected a csv with the columns id,length, got {list(reader.fieldnames or ())[:10]}")
    for row in reader:
        try:
            length_s = float(row["length"])
        except (TypeError, ValueError):
            length_s = math.nan
        if not length_s > 0:
            raise AnnotationError(
                f"{path}: line {reader.line_num}: length of {row['id']} is {row['length']!a}, expected seconds")
        yield row["id"], length_s
