"""Charades-STA: `VIDEO START END##query`, one a line; lengths come from the csv of Charades (columns id and length).

Ids are line numbers: the files have none of their own. About one window in seven ends past its video (DATA: 1,805 of
12,408 in train), which only the lengths can tell."""

from __future__ import annotations

from pathlib import Path

from taro.annotations.lint import RawRow
from taro.annotations.reading import Line
from taro.annotations.rows import Dropped
from taro.annotations.tables import read_csv
from taro.core.errors import AnnotationError
from taro.core.numbers import read_number

__all__ = ["parse_line", "read_lengths"]


def parse_line(line: Line, *, split: str, lengths: dict[str, float]) -> RawRow | Dropped:
    """One line as a raw row.

    >>> parse_line(Line(1, "3MSZA 24.3 30.4##person turn a light on."), split="test", lengths={}).windows
    [[24.3, 30.4]]
    """
    head, mark, query = line.text.partition("##")
    parts = head.split()
    ends = [read_number(part) for part in parts[1:]]
    if not mark or len(ends) != 2 or None in ends:
        return Dropped(line.number, str(line.number),
                       f"not a Charades-STA line: expected VIDEO START END##query, got {line.text[:60]!a}")
    return RawRow(line.number, parts[0], query, [ends], duration_s=lengths.get(parts[0]), split=split)


def read_lengths(path: Path) -> dict[str, float]:
    """Video id -> seconds, from a csv with the columns `id` and `length`. Raises AnnotationError, also where a video
    has two lengths."""
    table = read_csv(path, kind="a csv of lengths")
    if not {"id", "length"} <= {*table.columns}:
        raise AnnotationError(f"{path}: expected a csv with the columns id,length, got {table.columns[:10]}")
    lengths: dict[str, float] = {}
    for row in table:
        if row.problem is not None:
            raise AnnotationError(f"{path}: line {row.line}: {row.problem}; expected a csv of lengths")
        video, length = row.cells["id"].strip(), row.cells["length"].strip()
        length_s = read_number(length)
        if length_s is None or length_s <= 0:
            raise AnnotationError(f"{path}: line {row.line}: length of {video} is {length!a}, expected seconds")
        if lengths.setdefault(video, length_s) != length_s:
            raise AnnotationError(f"{path}: line {row.line}: {video} has two lengths, {lengths[video]} and {length_s}; "
                                  "keep the right one")
    return lengths
