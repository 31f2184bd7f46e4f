"""Lines of an annotation file, or the file as one JSON document, with bounds.

A line that is too long is skipped over, never held; a document that is too large is refused. Everything is hashed as it
is read, so that the report names exactly what it was made from. JSON is strict where leniency would lose data: a key
that an object repeats is an error, since all but one of its values would vanish."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taro.core.errors import AnnotationError
from taro.core.json import strict_json

__all__ = ["MAX_DOCUMENT_BYTES", "MAX_FILE_BYTES", "MAX_LINE_BYTES", "Line", "LineReader"]

MAX_LINE_BYTES = 4 << 20
MAX_FILE_BYTES = 4 << 30
MAX_DOCUMENT_BYTES = 64 << 20
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Line:
    """A line, counted from 1: its text without the line end, or the `problem` that kept it from being read."""

    number: int
    text: str
    problem: str | None = None


class LineReader:
    """Iterates over the lines of the file at `path`; `sha256` is of all bytes read so far. `kind`: what it is."""

    def __init__(self, path: Path, *, kind: str = "an annotation file") -> None:
        if not path.is_file():
            raise AnnotationError(f"{path}: expected {kind}, found {'a folder' if path.is_dir() else 'none'}")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise AnnotationError(
                f"{path}: expected at most {MAX_FILE_BYTES:,} bytes, got {path.stat().st_size:,}; split it")
        self.path = path
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Digest of what was read, in hex; of the whole file once the iteration ended."""
        return self._hash.hexdigest()

    def document(self) -> Any:
        """The whole file as one JSON value; AnnotationError where it is none, too large or too deep."""
        size = self.path.stat().st_size
        if size > MAX_DOCUMENT_BYTES:
            raise AnnotationError(
                f"{self.path}: expected a JSON file of at most {MAX_DOCUMENT_BYTES:,} bytes, got {size:,}; split it")
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_DOCUMENT_BYTES + 1)
        except OSError as error:
            raise AnnotationError(f"{self.path}: cannot be read: {error.strerror}; check its permissions") from None
        self._hash.update(data)
        try:
            return strict_json(data.removeprefix(BOM), any_value=True)
        except ValueError as error:
            raise AnnotationError(
                f"{self.path}: expected one JSON document, got: {str(error)[:200]}; is it the format that was named?"
            ) from None

    def __iter__(self) -> Iterator[Line]:
        number = 0
        try:
            with self.path.open("rb") as file:
                while data := file.readline(MAX_LINE_BYTES + 1):
                    number += 1
                    self._hash.update(data)
                    if len(data) <= MAX_LINE_BYTES or data.endswith(b"\n"):
                        yield _decoded(number, data)
                        continue
                    while data and not data.endswith(b"\n"):
                        data = file.readline(MAX_LINE_BYTES)
                        self._hash.update(data)
                    yield Line(number, "", f"line longer than {MAX_LINE_BYTES:,} bytes")
        except OSError as error:
            raise AnnotationError(f"{self.path}: cannot be read: {error.strerror}; check its permissions") from None


def _decoded(number: int, data: bytes) -> Line:
    data = data.removeprefix(BOM) if number == 1 else data
    try:
        text = data.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        return Line(number, "", f"not UTF-8: byte {error.start + 1} of the line")
    return Line(number, text) if text.strip() else Line(number, "", "blank line")
