"""Any Hugging Face dataset: a hub id, or a local parquet, csv, tsv, json or jsonl file, with a mapping of its columns.

A local file is read by `taro.annotations.tables`, hashed as it is. `datasets` reads a hub set, as a stream, and only
the columns that are mapped, so that a set that holds videos is not fetched for its sentences; its hash is over the
mapped rows. `columns` says which column holds which field; fields that are not named are looked up under their own
names. A column may be a path into nested values, `reward_model.ground_truth` or `videos.0`.

Fields are those of the format jsonl (`taro.annotations.generic`). Cells of a csv are texts: those of windows and
captions are read as JSON, those of numbers as numbers; a blank one is absent.

A hub id is `OWNER/NAME`, `OWNER/NAME:CONFIG`, with `@REVISION` behind it to pin what is read."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from taro.annotations.generic import FIELDS, row_of
from taro.annotations.lint import RawRow
from taro.annotations.reading import MAX_LINE_BYTES
from taro.annotations.rows import Dropped
from taro.annotations.tables import ENDS, Table, open_table
from taro.core.errors import AnnotationError, MissingPackageError
from taro.core.json import strict_json
from taro.core.numbers import read_number

__all__ = ["HuggingFaceReader", "check_columns"]

NUMBERS = {"start", "end", "duration", "clip_start", "clip_end", "difficulty"}
LISTS = {"windows", "clip", "captions"}
HUB_ID = re.compile(r"([\w.-]{1,96}/[\w.-]{1,96})(?::([\w.-]{1,96}))?(?:@([\w./-]{1,96}))?")


def check_columns(columns: Mapping[str, str]) -> None:
    """Raises AnnotationError where a mapping names a field that there is not."""
    unknown = sorted(set(columns) - set(FIELDS))
    if unknown:
        raise AnnotationError(f"columns: no such field: {', '.join(unknown)}; expected some of: {', '.join(FIELDS)}")


class HuggingFaceReader:
    """Iterates over the rows of a dataset as raw rows; `sha256` is of what was read once the iteration ended."""

    def __init__(self, source: str | Path, *, split: str, columns: Mapping[str, str]) -> None:
        check_columns(columns)
        self.source, self.split, self.columns = str(source), split, dict(columns)
        self.path = Path(source) if Path(source).is_file() else None
        self._hash = hashlib.sha256()
        self._table: Table | None = None
        there = os.path.lexists(source)  # a link to nothing is there, and no hub id
        if self.path is None and _local(self.source) and not there:
            raise AnnotationError(f"{source}: no such file; give the annotation file")
        if self.path is None and (there or not HUB_ID.fullmatch(self.source)):
            raise AnnotationError(
                f"{source}: expected a parquet, csv, json or jsonl file, or a hub id OWNER/NAME[:CONFIG][@REVISION]")
        if self.path is not None and not _local(self.source):
            raise AnnotationError(f"{source}: expected a file that ends in {', '.join(ENDS)}")

    @property
    def sha256(self) -> str:
        """Digest, in hex."""
        return self._hash.hexdigest() if self._table is None else self._table.sha256

    def __iter__(self) -> Iterator[RawRow | Dropped]:
        if self.path is None:
            yield from self._hub_rows()
            return
        table = self._table = open_table(self.path, {self.columns.get(field, field).split(".")[0] for field in FIELDS}
                                         | {self.columns.get(field, field) for field in FIELDS})
        self._fields(table.columns)
        # All of them: the columns of JSON lines are those of the first rows, and a later row may have more.
        fields = {field: self.columns.get(field, field) for field in FIELDS}
        for row in table:
            if row.problem is None:
                yield self._row({field: _at(row.cells, column) for field, column in fields.items()}, row.number)
            else:
                yield Dropped(row.number, str(row.number), row.problem)

    def _hub_rows(self) -> Iterator[RawRow | Dropped]:
        dataset = self._open()
        names = list(getattr(dataset, "column_names", None) or [])
        fields = self._fields(names)
        if names:
            dataset = dataset.select_columns(sorted({column.split(".")[0] for column in fields.values()}))
        rows: Iterator[Any] = iter(dataset)
        number = 0
        while True:
            try:
                item = next(rows)
            except StopIteration:
                return
            except Exception as error:  # noqa: BLE001  `datasets` lets whatever its readers raise through
                raise self._unreadable(error) from None
            number += 1
            yield self._row({field: _at(item, column) for field, column in fields.items()}, number)

    def _open(self) -> Any:
        try:
            import datasets
        except ImportError:
            raise MissingPackageError(f"{self.source}: a data set on the hub is read by the package datasets, which is "
                                      "not installed; pip install 'taro-vtg[hf]'. A local file does without"
                                      ) from None
        datasets.disable_progress_bars()
        match = HUB_ID.fullmatch(self.source)
        assert match is not None
        name, config, revision = match.groups()
        try:
            return datasets.load_dataset(name, config, split=self.split, revision=revision, streaming=True)
        except Exception as error:  # noqa: BLE001  as above; the hub raises its own kinds too
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> AnnotationError:
        reason = " ".join(str(error).split())[:300]
        return AnnotationError(
            f"{self.source}: cannot be read by datasets (split {self.split}): {type(error).__name__}: {reason}")

    def _fields(self, names: list[str]) -> dict[str, str]:
        """Field -> column, for the fields that are there. `names` is empty where `datasets` cannot tell."""
        fields = {field: self.columns.get(field, field) for field in FIELDS}
        present = {field: c for field, c in fields.items() if field in self.columns or c in names or not names}
        absent = [c for field, c in self.columns.items() if names and c.split(".")[0] not in names and field in fields]
        wanted = {"video", "query"} - set(present)
        if not wanted and not ("windows" in present or {"start", "end"} <= set(present)):
            wanted = {"windows (or start and end)"}
        if absent or wanted:
            what = f"columns {', '.join(absent)}" if absent else f"a column for {', '.join(sorted(wanted))}"
            raise AnnotationError(
                f"{self.source}: expected {what}, got the columns {', '.join(map(str, names[:20]))}; say which column "
                "holds which field, such as query=sentence")
        return present

    def _row(self, cells: dict[str, Any], number: int) -> RawRow | Dropped:
        try:
            values = {field: _value(field, cell) for field, cell in cells.items()}
            text = json.dumps(values, sort_keys=True, default=str) if self.path is None else ""
        except (ValueError, RecursionError) as error:
            return Dropped(number, str(number), f"cell cannot be read: {error}"[:200])
        self._hash.update(text.encode("utf-8", "surrogatepass"))
        return row_of(values, number, split=self.split)


def _local(source: str) -> bool:
    """Whether a name ends as those of the files that are read here."""
    return source.lower().removesuffix(".gz").endswith(ENDS)


def _at(item: Any, column: str) -> Any:
    """The value under a column, or under a path into it."""
    if isinstance(item, dict) and column in item:
        return item[column]
    for part in column.split("."):
        if isinstance(item, dict):
            item = item.get(part)
        elif isinstance(item, list) and part.isdecimal() and int(part) < len(item):
            item = item[int(part)]
        else:
            return None
    return item


def _value(field: str, cell: Any) -> Any:
    """A cell as the linter takes it: numbers and lists out of texts, nothing out of empty texts."""
    if isinstance(cell, Decimal):
        cell = float(cell)
    if not isinstance(cell, str):
        return None if isinstance(cell, float) and math.isnan(cell) and field not in ("start", "end") else cell
    if len(cell) > MAX_LINE_BYTES:
        raise ValueError(f"{field} is longer than {MAX_LINE_BYTES:,} characters")
    if field not in ("video", "query") and not cell.strip():
        return None
    if field in NUMBERS:
        value = read_number(cell)
        return cell if value is None else value
    return strict_json(cell.encode(), any_value=True) if field in LISTS else cell
