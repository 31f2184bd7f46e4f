"""A long sequence whose items are made when they are asked for, such as a million queries of an index."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

__all__ = ["BLOCK_ITEMS", "LazySequence"]

T = TypeVar("T")
BLOCK_ITEMS = 4096
"""items that are made at once where all are asked for, one after the other"""


class LazySequence(Sequence[T]):
    """Equal to any sequence of equal items. A class of it says its length, and makes the items."""

    @abstractmethod
    def made(self, places: np.ndarray) -> list[T]:
        """The items at some places, each in [0, len)."""

    def take(self, places: np.ndarray | Sequence[int]) -> Sequence[T]:
        """The items at some places, as a sequence of its own."""
        return self.made(np.asarray(places, dtype=np.int64))

    def __getitem__(self, at: Any) -> Any:
        places = range(len(self))[at]
        if isinstance(places, range):
            return self.take(np.arange(places.start, places.stop, places.step))
        return self.made(np.array([places]))[0]

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self), BLOCK_ITEMS):
            yield from self.made(np.arange(start, min(start + BLOCK_ITEMS, len(self))))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(
            one == another for one, another in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(str(one) for one in self.made(np.arange(min(3, len(self)))))
        return f"{type(self).__name__}({shown}{', ...' if len(self) > 3 else ''}: {len(self):,})"
