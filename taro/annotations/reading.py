"""Lines of an annotation file, with bounds: a line that is too long is skipped over, never held.

Every line is hashed as it is read, so that the report names exactly what it was made from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from taro.errors import AnnotationError

__all__ = ["MAX_FILE_BYTES", "MAX_LINE_BYTES", "Line", "LineReader"]

MAX_LINE_BYTES = 4 << 20
MAX_FILE_BYTES = 4 << 30
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Line:
    """A line, counted from 1: its text without the line end, or the `problem` that kept it from being read."""

    number: int
    text: str
    problem: str | None = None


class LineReader:
    """Iterates over the lines of the file at `path`; `sha256` is of all bytes read so far."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise AnnotationError(
                f"{path}: expected an annotation file, found {'a folder' if path.is_dir() else 'none'}"
            )
        if path.stat().st_size > MAX_FILE_BYTES:
            raise AnnotationError(
                f"{path}: expected at most {MAX_FILE_BYTES:,} bytes, got {path.stat().st_size:,}; split it"
            )
        self.path = path
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Digest of what was read, in hex; of the whole file once the iteration ended."""
        return self._hash.hexdigest()

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
