"""A rank's pieces of a checkpoint as one file: flat tensors in a safetensors file, and a table of what they are.

    rank-00000-of-00002.safetensors     one 1-D tensor NAME.KIND for each piece
    rank-00000-of-00002.json            the pieces (name, kind, whole, start, length, dtype), the sha256 of each block

A table is JSON of our own and bounded when it is read, never a pickle. Two ranks' files hold other slices of the same
tensors; whoever reads them puts slices together by the tables (`taro.train.checkpoint.read`)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import torch

from taro.core.json import strict_json
from taro.core.tensors import DTYPES, tensors_header
from taro.train.checkpoint.blocks import blocks_of
from taro.train.checkpoint.state import DamagedError
from taro.train.optimizer.pieces import Piece

__all__ = ["Row", "Table", "file_header", "in_file_order", "rank_file", "read_table", "rows_of"]

BYTES: dict[str, int] = {name: getattr(torch, dtype).itemsize for name, dtype in DTYPES.items()}
NAMES = {getattr(torch, dtype): name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Row:
    """A piece as a table has it. `dtype`: safetensors' name of it; lengths in elements."""

    name: str
    kind: str
    whole: int
    start: int
    length: int
    dtype: str

    def __post_init__(self) -> None:
        numbers = (self.whole, self.start, self.length)
        if not (isinstance(self.name, str) and isinstance(self.kind, str) and self.dtype in BYTES
                and all(type(number) is int and 0 <= number < 2**60 for number in numbers)
                and self.start + self.length <= self.whole):
            raise TypeError(f"not a piece: {astuple(self)!r:.200}")

    @property
    def key(self) -> str:
        """Its name in the safetensors file."""
        return f"{self.name}.{self.kind}"

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return self.length * BYTES[self.dtype]


@dataclass(frozen=True)
class Table:
    """What a rank wrote: its rows, in the file's order, the file's size and the sha256 of each of its blocks."""

    rows: tuple[Row, ...]
    size_bytes: int
    sha256: tuple[str, ...]

    def as_json(self) -> bytes:
        """As it is written."""
        return json.dumps({"bytes": self.size_bytes, "sha256": self.sha256,
                           "pieces": [astuple(row) for row in self.rows]}, indent=0).encode()


def rank_file(rank: int, world: int, suffix: str) -> str:
    """Name of a rank's file.

    >>> rank_file(1, 2, "json")
    'rank-00001-of-00002.json'
    """
    return f"rank-{rank:05d}-of-{world:05d}.{suffix}"


def read_table(path: Path, content: bytes) -> Table:
    """The table in the file `path`. Raises DamagedError."""
    try:
        data = strict_json(content)
        table = Table(tuple(Row(*row) for row in data["pieces"]), data["bytes"], tuple(data["sha256"]))
        if type(table.size_bytes) is not int or table.size_bytes < 0 or len({row.key for row in table.rows}) != len(
                table.rows) or len(table.sha256) != blocks_of(table.size_bytes):
            raise ValueError("its pieces, size and digests do not fit")
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path}: damaged ({error!r:.200})") from None
    return table


def rows_of(pieces: Sequence[Piece]) -> list[Row]:
    """The rows of pieces, in their order."""
    return [Row(one.name, one.kind, one.whole, one.start, one.tensor.numel(), NAMES[one.tensor.dtype])
            for one in pieces]


def in_file_order(pieces: Sequence[Piece]) -> list[Piece]:
    """As a safetensors file has them: by falling size of an element, then by name, so that all are aligned."""
    return sorted(pieces, key=lambda one: (-one.tensor.dtype.itemsize, f"{one.name}.{one.kind}"))


def file_header(pieces: Sequence[Piece]) -> bytes:
    """The bytes before the data of a file of these pieces."""
    tensors = {f"{one.name}.{one.kind}": one.tensor for one in pieces}
    assert len(tensors) == len(pieces), "two pieces of one tensor in a rank"
    assert all(one.tensor.ndim == 1 and math.prod(one.tensor.shape) <= one.whole for one in pieces)
    header, order = tensors_header(tensors, {})
    assert order == [f"{one.name}.{one.kind}" for one in in_file_order(pieces)]
    return header
