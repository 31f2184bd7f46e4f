"""The pages of a parquet file, checked before arrow decodes them.

What a footer says of encodings and sizes is a claim; arrow follows the header of each page. So each header is read
here: a page may not be compressed, nor reach beyond its column, and of a column that must be plain no page may be a
dictionary. Then no text takes more memory than it has bytes in the file. Thrift's compact protocol:
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md

Left out: footers (arrow reads them, within its limits) and everything that taro does not write."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

__all__ = ["check_pages", "page_headers"]

DATA_PAGE, DICTIONARY_PAGE = 0, 2
PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY = 0, 2, 8
KIND, FULL_BYTES, STORED_BYTES, DATA_HEADER, DICTIONARY_HEADER = 1, 2, 3, 5, 7
"""fields of a page header; of its own header 1 is the number of values and 2 the encoding"""
MAX_DEPTH = 4
MAX_HEADER_BYTES = 1 << 20


def check_pages(data: bytes, metadata: Any, plain: Collection[str]) -> None:
    """Raises ValueError unless every page of every column is one that taro writes; those of `plain` columns hold their
    values one after the other. `metadata`: the footer as pyarrow has it."""
    if not str(metadata.created_by).startswith("parquet-cpp"):  # of others arrow reads on behind the last page
        raise ValueError(f"written by {str(metadata.created_by)[:60]!r}, expected pyarrow")
    for group in range(metadata.num_row_groups):
        for at in range(metadata.num_columns):
            column = metadata.row_group(group).column(at)
            start = column.data_page_offset
            if column.dictionary_page_offset is not None:
                start = min(start, column.dictionary_page_offset)
            stop = start + column.total_compressed_size
            if column.compression != "UNCOMPRESSED":
                raise ValueError("its pages are compressed, expected none that are")
            if not 0 < start <= stop <= len(data):
                raise ValueError("a column lies outside of the file")
            encodings = (PLAIN,) if column.path_in_schema in plain else (PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY)
            for header in page_headers(data, start, stop):
                _check(header, encodings)


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
    """Reads one structure of thrift's compact protocol; texts are skipped."""

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
        """A value of one of the protocol's kinds; ValueError for lists and maps, which page headers do not have."""
        if kind in (1, 2):  # true, false
            return kind == 1
        if kind in (4, 5, 6):  # of 16, 32 and 64 bits
            return self.signed()
        if kind == 12:
            return self.struct(depth + 1)
        if kind not in (3, 7, 8):
            raise ValueError(f"a page header holds a value of kind {kind}")
        size = {3: 1, 7: 8}.get(kind) or self.number()  # a byte, a double, a text
        if size > self.stop - self.at:
            raise ValueError("a page header is cut off")
        self.at += size
        return None
