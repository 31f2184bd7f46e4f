"""The footer and the pages of a parquet file, checked before arrow decodes them.

Arrow ends the process where a footer names fewer columns in a row group than in its schema, and what a footer says of
encodings and sizes is a claim: arrow follows the header of each page. So both are read here: a row group has all
columns, a page may not be compressed, nor reach beyond its column, and of a column that must be plain no page may be a
dictionary. Then no text takes more memory than it has bytes in the file. Thrift's compact protocol:
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md

Left out: the schema (arrow reads it, within its limits) and everything that taro does not write."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

__all__ = ["check_pages", "page_headers"]

DATA_PAGE, DICTIONARY_PAGE = 0, 2
PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY = 0, 2, 8
KIND, FULL_BYTES, STORED_BYTES, DATA_HEADER, DICTIONARY_HEADER = 1, 2, 3, 5, 7
"""fields of a page header; of its own header 1 is the number of values and 2 the encoding"""
ROW_GROUPS, CREATED_BY, COLUMNS, OTHER_FILE, META = 4, 6, 1, 1, 3
"""fields of a footer, of a row group and of a column in it"""
PATH, CODEC, COLUMN_BYTES, DATA_AT, DICTIONARY_AT = 3, 4, 7, 9, 11
"""of what is said of the column"""
MAX_DEPTH = 6
MAX_HEADER_BYTES = 1 << 20
"""of a page's header, and of a footer"""


def check_pages(data: bytes, names: Collection[str], plain: Collection[str]) -> None:
    """Raises ValueError unless every row group has the columns `names` of the schema (paths, in order), and every page
    of every column is one that taro writes; those of `plain` columns hold their values one after the other."""
    footer = _footer(data)
    created_by = footer.get(CREATED_BY)
    if not isinstance(created_by, bytes) or not created_by.startswith(b"parquet-cpp"):
        raise ValueError(f"written by {str(created_by)[:60]!r}, expected pyarrow")  # others: arrow reads on at the end
    for group in _structures(footer, ROW_GROUPS):
        columns = _structures(group, COLUMNS)
        if len(columns) != len(names):
            raise ValueError(f"a row group of {len(columns)} columns, expected {len(names)}")
        for name, column in zip(names, columns, strict=True):
            meta = column.get(META)
            path = meta.get(PATH) if isinstance(meta, dict) else None
            if not isinstance(meta, dict) or path != name.encode().split(b".") or OTHER_FILE in column:
                raise ValueError(f"a row group has something else where its column {name} should be")
            encodings = (PLAIN,) if name in plain else (PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY)
            for header in page_headers(data, *_extent(meta, len(data))):
                _check(header, encodings)


def _footer(data: bytes) -> dict[int, Any]:
    size = int.from_bytes(data[-8:-4], "little")
    if data[-4:] != b"PAR1" or not 0 < size <= min(len(data) - 12, MAX_HEADER_BYTES):
        raise ValueError("no footer of a parquet file")
    return _Compact(data, len(data) - 8 - size, len(data) - 8).struct()


def _structures(fields: dict[int, Any], name: int) -> list[dict[int, Any]]:
    found = fields.get(name, [])
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError(f"field {name} of the footer is no list of structures")
    return found


def _extent(meta: dict[int, Any], size: int) -> tuple[int, int]:
    """Where a column's pages begin and end."""
    start, stored, first = meta.get(DATA_AT), meta.get(COLUMN_BYTES), meta.get(DICTIONARY_AT)
    if meta.get(CODEC) != 0:
        raise ValueError("its pages are compressed, expected none that are")
    if not isinstance(start, int) or not isinstance(stored, int) or not isinstance(first, int | None):
        raise ValueError("a column does not say where it lies")
    start = start if first is None else min(start, first)
    if not 0 < start <= start + stored <= size:
        raise ValueError("a column lies outside of the file")
    return start, start + stored


def _check(header: dict[int, Any], encodings: Collection[int]) -> None:
    kind = header.get(KIND)
    own = header.get(DATA_HEADER if kind == DATA_PAGE else DICTIONARY_HEADER)
    if kind not in (DATA_PAGE, DICTIONARY_PAGE) or not isinstance(own, dict):
        raise ValueError("a page of another sort than taro writes")
    if header.get(FULL_BYTES) != header[STORED_BYTES]:
        raise ValueError("a page says that it is larger than it is")
    if (kind == DICTIONARY_PAGE and len(encodings) == 1) or own.get(2) not in encodings:
        raise ValueError("a page of another encoding than taro writes")


def page_headers(data: bytes, start: int, stop: int) -> Iterator[dict[int, Any]]:
    """The headers of the pages from `start` to `stop`, by the numbers of their fields. Raises ValueError."""
    while start < stop:
        reader = _Compact(data, start, min(stop, start + MAX_HEADER_BYTES))
        header = reader.struct()
        size = header.get(STORED_BYTES)
        if not isinstance(size, int) or not 0 <= size <= stop - reader.at:
            raise ValueError("a page reaches beyond its column")
        yield header
        start = reader.at + size


class _Compact:
    """Reads one structure of thrift's compact protocol."""

    def __init__(self, data: bytes, at: int, stop: int) -> None:
        self.data, self.at, self.stop = data, at, stop

    def byte(self) -> int:
        if self.at >= self.stop:
            raise ValueError("a page header is cut off")
        self.at += 1
        return self.data[self.at - 1]

    def number(self) -> int:
        """An unsigned number in groups of seven bits."""
        found = 0
        for shift in range(0, 70, 7):
            byte = self.byte()
            found |= (byte & 0x7F) << shift
            if byte < 0x80:
                return found
        raise ValueError("a number in a page header has no end")

    def signed(self) -> int:
        found = self.number()
        return (found >> 1) ^ -(found & 1)

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """The fields of a structure by number, none of them twice: arrow might take the other one."""
        if depth > MAX_DEPTH:
            raise ValueError("a page header is nested too deeply")
        fields: dict[int, Any] = {}
        name = 0
        while (head := self.byte()) != 0:
            name = name + (head >> 4) if head >> 4 else self.signed()
            if name in fields:
                raise ValueError(f"field {name} stands twice in a page header")
            fields[name] = self.value(head & 0x0F, depth)
        return fields

    def value(self, kind: int, depth: int) -> Any:
        """A value of one of the protocol's kinds; ValueError for maps, which neither headers nor footers have."""
        if kind in (1, 2):  # true, false
            return kind == 1
        if kind in (4, 5, 6):  # of 16, 32 and 64 bits
            return self.signed()
        if kind == 12:
            return self.struct(depth + 1)
        if kind == 9:
            return self.list(depth)
        if kind not in (3, 7, 8):
            raise ValueError(f"a page header holds a value of kind {kind}")
        size = {3: 1, 7: 8}.get(kind)  # a byte, a double, a text
        size = self.number() if size is None else size
        if size > self.stop - self.at:
            raise ValueError("a page header is cut off")
        self.at += size
        return self.data[self.at - size : self.at]

    def list(self, depth: int) -> list[Any]:
        """Values of one kind, none of which takes less than a byte."""
        head = self.byte()
        count = head >> 4 if head >> 4 < 15 else self.number()
        if head & 0x0F in (1, 2) or count > self.stop - self.at:
            raise ValueError("a list in a footer is not one that taro writes")
        return [self.value(head & 0x0F, depth) for _ in range(count)]
