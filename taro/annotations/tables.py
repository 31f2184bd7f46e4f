"""Tables in files: csv and tsv, parquet, JSON. The file that was named is opened here, by that name and no other.

Libraries that take a pattern, a list or a URL where a file is meant would read another file where a name holds
brackets or stars. A row is never shifted: a row of a csv with more or fewer fields than its header is named by its
problem, unless what is too much is blank. A column without a name (the index that pandas writes) is not read, blanks
around names are not part of them, and a name that stands twice is an error, since one column would hide the other.

Cells of a csv are texts; whoever reads them knows which are numbers.

Left out: a bound on what a row group of a parquet file unpacks to. Arrow ends the process where it is asked for the
statistics of a damaged column, so nothing is asked; rows are read by 256."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from taro.annotations.reading import BLANK, MAX_FILE_BYTES, MAX_LINE_BYTES, LineReader
from taro.core.errors import AnnotationError
from taro.core.text_files import HEAD_BYTES, other_kind

__all__ = ["ENDS", "Row", "Table", "open_table", "read_csv"]

ENDS = (".parquet", ".csv", ".tsv", ".json", ".jsonl")
"""of files that `open_table` reads; .gz may follow all but the first"""
BLOCK = 1 << 20
ROWS_AT_ONCE = 256
LOOKED_AT = 1000


@dataclass(frozen=True)
class Row:
    """A row, counted from 1, by column; or the `problem` that kept it from being read. `line`: where it ends."""

    number: int
    cells: dict[str, Any]
    problem: str | None = None
    line: int = 0


class Table:
    """The rows of a file, once; `columns` are known before. `sha256` is of the file, once all was read."""

    def __init__(self, columns: list[str], rows: Iterator[Row], reader: LineReader | str) -> None:
        self.columns, self._rows, self._reader = columns, rows, reader

    def __iter__(self) -> Iterator[Row]:
        return self._rows

    @property
    def sha256(self) -> str:
        """Digest, in hex."""
        return self._reader if isinstance(self._reader, str) else self._reader.sha256


def open_table(path: Path, wanted: set[str]) -> Table:
    """The table in a file that ends in one of `ENDS`. `wanted`: first parts of the columns that will be read, which is
    all that is read of a parquet file. Raises AnnotationError."""
    end = Path(path.name.lower().removesuffix(".gz")).suffix
    if end == ".parquet":
        return _parquet(path, wanted)
    if end in (".csv", ".tsv"):
        return read_csv(path, sep="\t" if end == ".tsv" else ",")
    reader = LineReader(path)
    values = reader.values(document=end == ".json")
    rows = (Row(one.number, one.value if isinstance(one.value, dict) else {}, one.problem if one.problem is not None
                else None if isinstance(one.value, dict) else f"not a JSON object: got a {type(one.value).__name__}")
            for one in values)
    first = list(islice(rows, LOOKED_AT))
    return Table(list(dict.fromkeys(name for row in first for name in row.cells)), chain(first, rows), reader)


def read_csv(path: Path, *, sep: str = ",", kind: str = "an annotation file") -> Table:
    """The table in a csv. Raises AnnotationError where it has no header, and while rows are read."""
    reader = LineReader(path, kind=kind)
    csv.field_size_limit(MAX_LINE_BYTES)
    # Where ", " parts fields, a quotation mark behind the blank opens one, or it would end in the text.
    rows = _csv_rows(reader, csv.reader(_texts(reader), delimiter=sep, strict=True, skipinitialspace=True))
    names = [name.strip() for name in next(rows, (0, []))[1]]
    other = next((mark for mark in ",;\t" if len(names) == 1 and mark in names[0]), None)
    if other is not None:
        raise AnnotationError(f"{path}: its header has one column, {names[0][:100]!a}; expected columns separated by "
                              f"{sep!a}, got {other!a}? (.csv has commas, .tsv has tabs)")
    named = [name for name in names if name]
    _distinct(path, named)
    return Table(named, (_row(names, number, line, cells) for number, (line, cells) in enumerate(rows, 1)), reader)


def _distinct(path: Path, names: list[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise AnnotationError(f"{path}: column {twice[0][:100]!a} stands twice in its header; remove or rename one")


def _texts(reader: LineReader) -> Iterator[str]:
    for line in reader:
        if line.problem not in (None, BLANK):
            raise AnnotationError(f"{reader.path}, line {line.number}: {line.problem}; save the table as UTF-8")
        yield line.text + "\n"


def _csv_rows(reader: LineReader, rows: Any) -> Iterator[tuple[int, list[str]]]:
    """(line where it ends, fields) of every row that is not blank."""
    while True:
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise AnnotationError(f"{reader.path}, line {rows.line_num}: not csv ({str(error)[:100]}); is a quotation "
                                  "mark left open, or not doubled inside a field?") from None
        if any(cell.strip() for cell in cells):
            yield rows.line_num, cells


def _row(names: list[str], number: int, line: int, cells: list[str]) -> Row:
    last = max((place for place, name in enumerate(names, 1) if name), default=0)
    if len(cells) < last or any(cell.strip() for cell in cells[len(names) :]):
        return Row(number, {}, f"row does not fit its header: {len(cells)} fields, the header has {len(names)}", line)
    return Row(number, {name: cell for name, cell in zip(names, cells, strict=False) if name}, None, line)


def _parquet(path: Path, wanted: set[str]) -> Table:
    import pyarrow.parquet

    digest = hashlib.sha256()
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise AnnotationError(f"{path}: expected at most {MAX_FILE_BYTES:,} bytes, got {path.stat().st_size:,}")
        with path.open("rb") as opened:
            head = opened.read(HEAD_BYTES)
            digest.update(head)
            kind = None if head.startswith(b"PAR1") else other_kind(head)
            if kind is not None:
                raise AnnotationError(f"{path}: not a parquet table that can be read ({kind}); fetch or write it again")
            while block := opened.read(BLOCK):
                digest.update(block)
        file = pyarrow.parquet.ParquetFile(path)
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read: {error.strerror or error}; check its permissions") from None
    except (ValueError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from None
    names = list(file.schema_arrow.names)
    _distinct(path, names)
    return Table(names, _parquet_rows(path, file, [name for name in names if name in wanted]), digest.hexdigest())


def _parquet_rows(path: Path, file: Any, names: list[str]) -> Iterator[Row]:
    import pyarrow

    number = 0
    batches = file.iter_batches(batch_size=ROWS_AT_ONCE, columns=names)
    while True:
        try:
            batch = next(batches, None)
            rows = [] if batch is None else batch.to_pylist()
        except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
            raise _unreadable(path, error) from None
        if batch is None:
            return
        for cells in rows:
            number += 1
            yield Row(number, cells)


def _unreadable(path: Path, error: Exception) -> AnnotationError:
    return AnnotationError(f"{path}: not a parquet table that can be read ({type(error).__name__}: "
                           f"{' '.join(str(error).split())[:200]}); fetch or write it again")
