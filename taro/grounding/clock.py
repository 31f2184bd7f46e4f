"""The protocol clock: answers as models give them that were not trained on one form.

Read are `00:12 to 00:15`, `1:02:03 - 1:02:05`, `2 to 7 minutes`, `0m 2s to 0m 7s`, `12 s until 15 s`, `[12.0, 15.5]`,
`{"start": "00:12", "end": "00:15"}` and Chinese units. The first of an answer counts: an object with start and end,
else a list of two times, else a range in words. The answer is the last `<answer>` block, else what follows `</think>`,
else the whole response. What is no time (frames, percent, 1,234.5) and a start after the end are unparsable; a bare
number is seconds.

Left out: decimal commas, numbers in words."""

from __future__ import annotations

import re
from collections.abc import Iterator

from taro.grounding.moment import Moment
from taro.grounding.times import CLOCK_UNITS, NAMED_BEFORE, OTHER_UNIT, Time, named_before, ranges, read_time

__all__ = ["clock_moments"]

JOINS = re.compile(r"['\"*`]{0,2}\.?\s{0,4}(?:to|until|till|through|and|[-~\u2010-\u2015])\s{0,4}['\"*`]{0,2}",
                   re.IGNORECASE)
OBJECT = re.compile(r"\{([^{}]{1,400})\}")
LIST = re.compile(r"\[([^\[\]{}]{1,200})\]")
KEY = re.compile(r"(start|begin|end)(?:ing)?(?:[ _-]?time)?(?:[ _-]?(?:s|sec|secs|seconds))?", re.IGNORECASE)
UNIT_KEY = re.compile(r"(?:time[ _-]?)?(?:units?|format)", re.IGNORECASE)
NAME_BEFORE = re.compile(r"([\w-]{1,40}+)[\"']?[ \t]{0,4}[:=]?[ \t]{0,4}\[?[ \t]{0,4}\Z")
NAME_PARTS = re.compile(r"[_-]")
CHINESE = (("\u6beb\u79d2", "ms"), ("\u5c0f\u65f6", "h"), ("\u65f6", "h"), ("\u5206\u949f", "min"), ("\u5206", "min"),
           ("\u79d2\u949f", "s"), ("\u79d2", "s"), ("\u5230", "to"), ("\u81f3", "to"), ("\u5e27", "frames"),
           ("\u534a", "1/2"))
"""milliseconds, hours, minutes, seconds, to, frames, half; a half is no number here, so that it is not lost"""
_WIDE: dict[str, str] = {chr(0xFF10 + digit): str(digit) for digit in range(10)}
_MARKS: dict[str, str] = {"\uff1a": ":", "\uff0e": ".", "\uff0c": ", ", "\uff5e": "~", "\uff0d": "-", "\u7b2c": " "}
WIDE = str.maketrans({**_WIDE, **_MARKS})
IDEOGRAPH = re.compile("([\u3400-\u9fff])")
GLUED = re.compile(r"(?<=[0-9])(ms|min|h|m|s)(?=[0-9])")


def clock_moments(answer: str) -> Iterator[Moment]:
    """The windows of an answer, in its order, up to the first that cannot be read. Starts may lie after ends."""
    text = _plain(answer)
    for one in _objects(text) or _lists(text) or _ranges(text):
        if one is None:
            return
        yield one


def _plain(text: str) -> str:
    """Wide digits and Chinese words as ASCII ones, glued units apart."""
    text = text.translate(WIDE)
    for word, plain in CHINESE:
        text = text.replace(word, f" {plain} ")
    return GLUED.sub(r"\1 ", IDEOGRAPH.sub(r" \1 ", text))


def _objects(text: str) -> list[Moment | None]:
    found: list[Moment | None] = []
    for match in OBJECT.finditer(text):
        ends: dict[str, Time | None] = {}
        for part in match[1].split(","):
            key, value = (side.strip(" \t\r\n'\"") for side in part.partition(":")[::2])
            if UNIT_KEY.fullmatch(key) and value.lower() in NAMED_BEFORE:
                ends["unit"] = None
            if named := KEY.fullmatch(key):
                name = "end" if named[1].lower() == "end" else "start"
                ends[name] = None if name in ends else read_time(value)
        if ends.keys() == {"start", "end"}:
            found.append(_moment(ends["start"], ends["end"]))
        elif ends and ends.keys() != {"unit"}:
            found.append(None)
    return found


def _lists(text: str) -> list[Moment | None]:
    found: list[Moment | None] = []
    for match in LIST.finditer(text):
        parts = match[1].split(",")
        ends = [read_time(part) for part in parts]
        if len(parts) == 1 or not any(char.isdigit() for char in match[1]) or (len(parts) > 2 and None in ends):
            continue  # [3], [12 to 15] and [a, b] are no windows
        bare = any(end is not None and end.unit is None for end in ends)
        found.append(None if len(ends) != 2 or (bare and _counts_others(text, match)) else _moment(ends[0], ends[1]))
    return found


def _counts_others(text: str, match: re.Match[str]) -> bool:
    """Whether the numbers of a list are said to be no seconds: `frames: [125, 150]`, `[2, 7] minutes`."""
    named = NAME_BEFORE.search(text, max(0, match.start() - 60), match.start())
    parts = NAME_PARTS.split(named[1].lower()) if named else []
    return (bool(NAMED_BEFORE.intersection(parts)) or named_before(text, match.start())
            or OTHER_UNIT.match(text, match.end()) is not None)


def _ranges(text: str) -> Iterator[Moment | None]:
    for one in ranges(text, CLOCK_UNITS, JOINS, clock=True):
        before = text[max(0, one.first.start - 20) : one.first.start].rstrip(" \t'\"*`").lower()
        if one.joined == "and" and not before.endswith("between"):
            continue
        yield one.moment


def _moment(start: Time | None, end: Time | None) -> Moment | None:
    if start is None or end is None or start.seconds is None or end.seconds is None:
        return None
    if (start.unit is None) != (end.unit is None):
        return None  # which unit the bare one has is not said
    return Moment(start.seconds, end.seconds)
