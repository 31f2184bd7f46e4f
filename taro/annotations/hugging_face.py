"""Any Hugging Face dataset: a hub id, or a local parquet, csv, json or jsonl file, with a mapping of its columns.

`datasets` reads it as a stream, and only the columns that are mapped, so that a set that holds videos is not fetched
for its sentences. `columns` says which column holds which field; fields that are not named are looked up under their
own names. A column may be a path into nested values, `reward_model.ground_truth` or `videos.0`.

Fields: `video`, `query`, and `windows` ([[s, e], ...] or one [s, e]) or `start` and `end`; optional `qid`, `duration`,
`clip` ([s, e]) or `clip_start` and `clip_end`, `split`, `difficulty`, `captions`. Cells of a csv are texts: those of
windows and captions are read as JSON, those of numbers as numbers.

A hub id is `OWNER/NAME`, `OWNER/NAME:CONFIG`, with `@REVISION` behind it to pin what is read. A local file is hashed as
it is; of a hub set the hash is over the mapped rows."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from taro.annotations.lint import RawRow
from taro.annotations.reading import MAX_FILE_BYTES, MAX_LINE_BYTES
from taro.annotations.rows import Dropped
from taro.core.errors import AnnotationError
from taro.core.json import strict_json

__all__ = ["FIELDS", "HuggingFaceReader", "check_columns"]

FIELDS = ("video", "query", "windows", "start", "end", "qid", "duration", "clip", "clip_start", "clip_end", "split",
          "difficulty", "captions")
NUMBERS = {"start", "end", "duration", "clip_start", "clip_end", "difficulty"}
LISTS = {"windows", "clip", "captions"}
LOADERS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}
HUB_ID = re.compile(r"([\w.-]{1,96}/[\w.-]{1,96})(?::([\w.-]{1,96}))?(?:@([\w./-]{1,96}))?")
BLOCK = 1 << 20


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
        if self.path is None and (Path(source).exists() or not HUB_ID.fullmatch(self.source)):
            raise AnnotationError(
                f"{source}: expected a parquet, csv, json or jsonl file, or a hub id OWNER/NAME[:CONFIG][@REVISION]")
        if self.path is not None and self.path.suffix.lower() not in LOADERS:
            raise AnnotationError(f"{source}: expected a file that ends in {', '.join(LOADERS)}")

    @property
    def sha256(self) -> str:
        """Digest, in hex."""
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[RawRow | Dropped]:
        dataset = self._open()
        names = list(getattr(dataset, "column_names", None) or [])
        fields = self._fields(names)
        if names:
            dataset = dataset.select_columns(sorted({column.split(".")[0] for column in fields.values()}))
        rows = iter(dataset)
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
            raise AnnotationError("the format hf needs the package datasets; pip install datasets") from None
        datasets.disable_progress_bars()
        try:
            if self.path is None:
                match = HUB_ID.fullmatch(self.source)
                assert match is not None
                name, config, revision = match.groups()
                return datasets.load_dataset(name, config, split=self.split, revision=revision, streaming=True)
            self._hash_file(self.path)
            kind = LOADERS[self.path.suffix.lower()]
            knobs: dict[str, Any] = {}
            if kind == "csv":
                sep = "\t" if self.path.suffix.lower() == ".tsv" else ","
                texts = datasets.Features({name: datasets.Value("string") for name in _header(self.path, sep)})
                knobs = {"features": texts, "keep_default_na": False, "sep": sep}
            return datasets.load_dataset(kind, data_files=str(self.path), split="train", streaming=True, **knobs)
        except AnnotationError:
            raise
        except Exception as error:  # noqa: BLE001  as above; the hub raises its own kinds too
            raise self._unreadable(error) from None

    def _hash_file(self, path: Path) -> None:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise AnnotationError(f"{path}: expected at most {MAX_FILE_BYTES:,} bytes, got {path.stat().st_size:,}")
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                self._hash.update(block)

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
        return RawRow(number, values.get("video"), values.get("query"), _windows(values), values.get("qid"),
                      values.get("duration"), _pair(values, "clip", "clip_start", "clip_end"),
                      values.get("split") or self.split, values.get("difficulty"), values.get("captions"))


def _header(path: Path, sep: str) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return next(csv.reader([file.readline(MAX_LINE_BYTES)], delimiter=sep), [])


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
    if not isinstance(cell, str):
        return None if isinstance(cell, float) and math.isnan(cell) and field not in ("start", "end") else cell
    if len(cell) > MAX_LINE_BYTES:
        raise ValueError(f"{field} is longer than {MAX_LINE_BYTES:,} characters")
    if field in NUMBERS | LISTS and not cell.strip():
        return None
    if field in NUMBERS:
        try:
            return float(cell)
        except ValueError:
            return cell
    return strict_json(cell.encode(), any_value=True) if field in LISTS else cell


def _windows(values: dict[str, Any]) -> Any:
    windows = values.get("windows")
    if windows is None and "start" in values:
        return [[values.get("start"), values.get("end")]]
    one = isinstance(windows, list) and len(windows) == 2 and not any(isinstance(w, list | tuple) for w in windows)
    return [windows] if one else windows


def _pair(values: dict[str, Any], whole: str, start: str, end: str) -> Any:
    pair = values.get(whole)
    ends = [values.get(start), values.get(end)]
    return pair if pair is not None or ends == [None, None] else ends
