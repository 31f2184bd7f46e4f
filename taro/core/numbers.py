r"""Numbers in texts: the one module with patterns that read a number, in answers, captions, files and cells.

A number is read whole or not at all. `number` takes whatever Python prints for a finite float (`34.40363474548333`,
`1e-05`), and refuses what goes on: a digit more than `MAX_DIGITS`, a comma, a colon or another point with digits behind
it (`1,200`, `1.2.3`, `0:12`), digits of another script. Longer numbers are refused, never cut. A guard test looks for
patterns of numbers in other modules.

`PRINTED`, `POINTED`, `ALONE` and `CLOCKED` are for `taro.grounding.evaluators` alone: published evaluators read
numbers by rules of their own (digits of any script, pieces of longer numbers), and a protocol that has the name of one
follows it. All patterns are possessive and bounded, so matching is linear in the text."""

from __future__ import annotations

import math
import re

__all__ = ["ALONE", "CLOCK", "CLOCKED", "MAX_DIGITS", "NAME_CLOCK", "NUMBERISH", "POINTED", "PRINTED", "number",
           "read_count", "read_number"]

MAX_DIGITS = 40
"""digits before a point, and behind it"""

_DIGITS = f"[0-9]{{1,{MAX_DIGITS}}}+"
_BODY = rf"(?:{_DIGITS}(?:\.[0-9]{{0,{MAX_DIGITS}}}+)?+|\.{_DIGITS})(?:[eE][-+]?[0-9]{{1,3}}+)?+"
_STARTS, _ENDS = r"(?<![\w.,:])", r"(?![.,:]?\d)"

CLOCK = rf"{_STARTS}(?:([0-9]{{1,3}}):)?([0-9]{{1,3}}):([0-9]{{2}}(?:\.{_DIGITS})?+){_ENDS}"
"""`1:02:03.5` or `00:12`: groups hours or None, minutes, seconds"""

NAME_CLOCK = r"([0-9]{1,3}):([0-9]{2}):([0-9]{2})[:.]([0-9]{1,3})"
"""the form of times in TimeR1's file names, `00:00:39:000`: groups hours, minutes, seconds, milliseconds"""

NUMBERISH = r"""\d(?:[\w.,:/'"%\u00b0\u2032\u2033]|(?<=[0-9.][eE])[-+](?=[0-9]))*+"""
"""all that stands glued together from a digit on: a whole number with its unit, or something that is neither"""

PRINTED = r"(?<!\d)\d++(?:\.\d++)?+"
"""an evaluator's number: digits, and a point only with digits behind it"""

POINTED = r"(?<!\d)\d++\.?+\d*+"
"""an evaluator's number: the same, where a point may also be the last"""

ALONE = r"\b(?:\d++\.\d++\b|\d++\b)"
"""an evaluator's number that no letter touches: of `0.8s` the 0"""

CLOCKED = r"\b(?:(\d{1,2}):(\d{2})|(\d{1,2})):(\d{2}(?:\.\d+)?)\b"
"""an evaluator's clock time: groups hours and minutes, or minutes alone, then seconds"""


def number(*, signed: bool = False) -> str:
    """The pattern of one whole number, without groups; `signed`: with or without a minus.

    >>> [bool(re.fullmatch(number(), text)) for text in ("34.40363474548333", "1e-05", "1,200", "1.2.3", "9" * 41)]
    [True, True, False, False, False]
    """
    return f"{_STARTS}{'-?' if signed else ''}{_BODY}{_ENDS}"


_WHOLE = re.compile(rf"[ \t\r\n]{{0,99}}([-+]?{_BODY})[ \t\r\n]{{0,99}}")
_COUNT = re.compile("[0-9]{1,20}")


def read_number(text: str) -> float | None:
    """A text that is one finite number and nothing else but blanks; None where it is not.

    >>> read_number(" 12.50 "), read_number("1_000"), read_number("nan"), read_number("1e999")
    (12.5, None, None, None)
    """
    match = _WHOLE.fullmatch(text)
    value = math.inf if match is None else float(match[1])
    return value if math.isfinite(value) else None


def read_count(text: str) -> int | None:
    """A text of up to 20 ASCII digits; None where it is not.

    >>> read_count("12"), read_count("-1"), read_count("1" * 21)
    (12, None, None)
    """
    return int(text) if _COUNT.fullmatch(text) else None
