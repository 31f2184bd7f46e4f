"""JSON lines that taro wrote and reads back: files that are appended to, and rows of one type.

A run folder or a file of answers is often somebody else's: every line is read strictly (`taro.core.json`), and what a
row holds is checked once, so that no code behind it meets a text where it expects a number."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from taro.core.errors import ConfigError
from taro.core.json import strict_json

__all__ = ["checked_row", "read_jsonl"]

RowT = TypeVar("RowT")
_adapter = cache(TypeAdapter)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file that a run appends to; [] where there is none. A torn last line, left by a kill or a
    full disk, is passed over. Raises ConfigError at any other line that is no object."""
    rows: list[dict[str, Any]] = []
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = strict_json(line)
        except ValueError:
            if number == len(lines):
                break
            row = None
        if not isinstance(row, dict):
            raise ConfigError(f"{path}:{number}: expected a JSON object a line, got {line[:60]!r}; it was damaged "
                              "after it was written: restore it, or delete this line")
        rows.append(row)
    return rows


def checked_row(model: type[RowT], row: dict[str, Any], path: Path, number: int) -> RowT:
    """Line `number` of `path` as a pydantic model or dataclass. Raises ConfigError that says which field is not what it
    must be."""
    try:
        return cast(RowT, _adapter(cast(Any, model)).validate_python(row))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:100]
        raise ConfigError(f"{path}:{number}: expected a row that taro writes, got {field!a}: {first['msg'][:200]!a}; "
                          "drop the line, or make the file again") from None
