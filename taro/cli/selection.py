"""Options that choose queries of a set, shared by the commands that have them, and what they mean."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from taro.shards.ops.filter import Selection

__all__ = ["InRange", "OfSplit", "WithIds", "WithKeys", "WithText", "selection"]

Names = list[str] | None
OfSplit = Annotated[str | None, typer.Option(help="Keep queries of this split.")]
InRange = Annotated[str | None, typer.Option(metavar="LOW:HIGH", help="Keep queries whose difficulty is in between; an "
                                             "end may be left out.")]
WithIds = Annotated[Names, typer.Option(help="Keep this query id; repeatable (@FILE: one a line).")]
WithKeys = Annotated[Names, typer.Option(help="Keep the clip of this key; repeatable (@FILE: one a line).")]
WithText = Annotated[str | None, typer.Option(metavar="REGEX", help="Keep queries in whose text this is found.")]


def selection(*, split: str | None, difficulty: str | None, query: Names, key: Names, text: str | None) -> Selection:
    """What the options choose. Raises ConfigError."""
    from taro.shards.ops.filter import Selection

    return Selection(split, _range(difficulty), _names(query), _names(key), _regex(text))


def _range(text: str | None) -> tuple[float, float] | None:
    from taro.core.errors import ConfigError
    from taro.core.numbers import read_number

    if text is None:
        return None
    low, colon, high = text.partition(":")
    ends = read_number(low) if low else -math.inf, read_number(high) if high else math.inf
    if not colon or ends[0] is None or ends[1] is None or ends[0] > ends[1]:
        raise ConfigError(f"--difficulty {text!r}: expected LOW:HIGH, such as 20:80, 20: or :80")
    return ends[0], ends[1]


def _names(given: Names) -> frozenset[str] | None:
    from taro.shards.ops.filter import named

    return None if given is None else named(given)


def _regex(text: str | None) -> str | None:
    from taro.core.errors import ConfigError

    try:
        re.compile(text or "")
    except re.error as error:
        raise ConfigError(f"--text {text!r}: expected a regular expression, got one with {error}") from None
    return text
