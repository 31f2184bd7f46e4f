"""Lines of an annotation file, its JSON values, or the file as one JSON document, with bounds.

The bytes come from `taro.core.text_files`, which reads UTF-8, UTF-16 and gzip and names what is none of them. A line
that is too long is skipped over, never held; a document that is too large is refused. Everything is hashed as it is
read, so that the report names exactly what it was made from. JSON is strict where leniency would lose data: a key that
an object repeats is an error, since all but one of its values would vanish.

JSON lines, one JSON list, and objects that are spread over several lines are one thing to `values`: which of them a
file is, its first line decides, and where that leaves a doubt, whether all of it can be read so."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taro.core.errors import AnnotationError
from taro.core.json import strict_json, strict_json_values
from taro.core.text_files import likely_encoding, opened_text

__all__ = ["BLANK", "MAX_DOCUMENT_BYTES", "MAX_FILE_BYTES", "MAX_LINE_BYTES", "Line", "LineReader", "Value"]

MAX_LINE_BYTES = 4 << 20
MAX_FILE_BYTES = 4 << 30
MAX_DOCUMENT_BYTES = 64 << 20
SPACE = b" \t\r\n"
BLANK = "blank line"


@dataclass(frozen=True)
class Line:
    """A line, counted from 1: its text without the line end, or the `problem` that kept it from being read."""

    number: int
    text: str
    problem: str | None = None


@dataclass(frozen=True)
class Value:
    """A JSON value, by the number of its line, or of its place in a list; or the `problem` of what is none."""

    number: int
    value: Any
    problem: str | None = None


class LineReader:
    """Iterates over the lines of the file at `path`; `sha256` is of its bytes as it was read last. `kind`: what the
    file is to hold, for messages."""

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
        """Digest in hex: of the whole file once it was read to its end."""
        return self._hash.hexdigest()

    def document(self) -> Any:
        """The whole file as one JSON value; AnnotationError where it is none, too large or too deep."""
        data = self._bytes()
        try:
            return strict_json(data, any_value=True)
        except ValueError as error:
            raise self._no_document(error) from None

    def values(self, *, document: bool = False) -> Iterator[Value]:
        """The items of one JSON list, else one JSON value a line, else values that are spread over lines. With
        `document` what is none of these is an AnnotationError, else it is read line by line, each with its problem."""
        first = self._first_line()
        if (document or first.startswith((b"[", b"{"))) and not self._stands_alone(first, document):
            found = self._spread(first, must=document)
            if found is not None:
                yield from (Value(number, value) for number, value in enumerate(found, 1))
                return
        for line in self:
            if line.problem is None:
                yield _value(line)
            elif line.problem != BLANK or not document:
                yield Value(line.number, None, line.problem)

    def __iter__(self) -> Iterator[Line]:
        number, total, self._hash = 0, 0, hashlib.sha256()
        with opened_text(self.path, error=AnnotationError, digest=self._hash) as file:
            while data := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                total += len(data)
                if len(data) <= MAX_LINE_BYTES or data.endswith(b"\n"):
                    yield _decoded(number, data)
                else:
                    while data and not data.endswith(b"\n"):
                        data = file.readline(MAX_LINE_BYTES)
                        total += len(data)
                        self._check_unpacked(total)
                    yield Line(number, "", f"line longer than {MAX_LINE_BYTES:,} bytes")
                self._check_unpacked(total)

    def _check_unpacked(self, total: int) -> None:
        if total > MAX_FILE_BYTES:
            raise AnnotationError(f"{self.path}: expected at most {MAX_FILE_BYTES:,} bytes, got more; split it")

    def _bytes(self) -> bytes:
        self._hash = hashlib.sha256()
        with opened_text(self.path, error=AnnotationError, digest=self._hash) as file:
            data = file.read(MAX_DOCUMENT_BYTES + 1)
            if len(data) > MAX_DOCUMENT_BYTES:
                raise AnnotationError(f"{self.path}: expected a JSON file of at most {MAX_DOCUMENT_BYTES:,} bytes, got "
                                      "more; split it, or write one JSON object a line")
        return data

    def _first_line(self) -> bytes:
        """The first line that is not blank, without the blanks around it; where it is too long, its beginning."""
        with opened_text(self.path, error=AnnotationError) as file:
            while line := file.readline(MAX_LINE_BYTES + 2):
                if line.strip(SPACE):
                    return line.strip(SPACE)
        return b""

    def _stands_alone(self, first: bytes, document: bool) -> bool:
        """Whether the first line is a value by itself, as in JSON lines. One that repeats a key is, but no document."""
        try:
            return not isinstance(strict_json(first, any_value=True), list)
        except ValueError as error:
            return not document and "stands twice" in str(error)

    def _spread(self, first: bytes, *, must: bool) -> list[Any] | None:
        """The values of a file of one JSON list, or of several values that do not keep to lines; None where it is
        neither, and could be damaged JSON lines."""
        try:
            found = strict_json_values(self._bytes())
        except ValueError as error:
            listed = first.startswith(b"[") and (len(first) > MAX_LINE_BYTES or isinstance(error, UnicodeDecodeError))
            if must or listed or "stands twice" in str(error):
                raise self._no_document(error) from None
            return None
        except AnnotationError:
            if must or first.startswith(b"["):
                raise
            return None
        if must and not found:
            raise self._no_document(ValueError("an empty file"))
        return found[0] if len(found) == 1 and isinstance(found[0], list) else found

    def _no_document(self, error: ValueError) -> AnnotationError:
        got = str(error)[:200]
        if isinstance(error, UnicodeDecodeError):
            got = f"no UTF-8 at byte {error.start + 1:,} ({likely_encoding(error.object[error.start - 1 :][:1000])})"
        return AnnotationError(
            f"{self.path}: expected one JSON document, got: {got}; is it the format that was named?")


def _decoded(number: int, data: bytes) -> Line:
    try:
        text = data.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        return Line(number, "", f"not UTF-8: byte {error.start + 1} of the line ({likely_encoding(data)})")
    return Line(number, text) if text.strip() else Line(number, "", BLANK)


def _value(line: Line) -> Value:
    try:
        return Value(line.number, strict_json(line.text.encode(), any_value=True))
    except ValueError as error:
        return Value(line.number, None, f"not JSON: {error}"[:200])
