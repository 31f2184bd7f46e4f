"""How far a loop over many things is: the one shape of every progress callback, (finished, all).

Left out: what is shown of it (taro/cli/progress.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

__all__ = ["OnProgress", "counted"]

Item = TypeVar("Item")
OnProgress = Callable[[int, int], None]
"""called with how many of how many parts are finished"""


def counted(items: Sequence[Item], progress: OnProgress | None) -> Iterator[Item]:
    """The items; `progress` hears of each that is finished.

    >>> list(counted("ab", lambda done, total: print(done, "of", total)))
    1 of 2
    2 of 2
    ['a', 'b']
    """
    for done, item in enumerate(items, 1):
        yield item
        if progress is not None:
            progress(done, len(items))
