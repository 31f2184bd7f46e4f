"""Times and ranges of times in free text: `12.0s to 15.5s`, and for the protocol clock `2 to 7 minutes`, `0:12 - 0:15`.

A number that is no time of the units asked for is not skipped and not guessed: where it stands in a range, or right
before or behind one, the range is refused. So `2 to 7 minutes` holds no range in seconds, and neither do `0m 2s to 0m
7s`, `125 to 150 frames`, `1,200s to 1,300s`. A bare number counts as seconds only where what follows it can be no unit.

Left out: numbers in words ("two minutes"). Everything is linear in the length of the text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from taro.core.numbers import CLOCK, NUMBERISH, number
from taro.grounding.moment import Moment

__all__ = ["CLOCK_UNITS", "NAMED_BEFORE", "OTHER_UNIT", "SECONDS", "Time", "TimeRange", "named_before", "ranges",
           "read_time", "times"]

SECONDS: Mapping[str, float] = dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0)
CLOCK_UNITS: Mapping[str, float] = {
    **SECONDS, **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600.0),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), 0.001)}
"""unit -> its seconds"""
NAMED_BEFORE = {*CLOCK_UNITS, "frame", "frames", "percent", "percentage"} - {*SECONDS, "m", "h"}
"""what turns a bare number behind it into something else: "frames 125 to 150", "minutes 2 to 7" """

TOKEN = re.compile(rf"(?P<word>[^\W\d]\w*(?:[-'./]\w+)*+)|(?P<run>{NUMBERISH})")
TRAILING = ".,:;/'\"_"
WHOLE = re.compile(rf"({number()})([^\W\d_]*+)")
WHOLE_CLOCK = re.compile(CLOCK)
UNIT_BEHIND = re.compile(r"[ \t]{0,4}[(\[]?([^\W\d_]{1,12}+)(?!\w)[)\]]?")
BLANK = re.compile(r"[^\S\n]*+")
TOUCHING = re.compile(r"[^\S\n]{0,4}(?:(?:[^\W\d_]{1,12}|%)[^\S\n]{1,4})?(?:and[^\S\n]{1,4})?")
WORD_BEFORE = re.compile(r"([^\W\d_]{1,12})(?:\W{0,4}|[ \t:#]{1,4}(?:(?:from|between|numbers?|no|range|ind(?:ex|ices))"
                         r"[ \t.:#]{1,4}){1,2})\Z", re.IGNORECASE)
RANGE_BEHIND = re.compile(rf"[ \t]{{0,4}}(?:and|or|then)[ \t]{{1,4}}{number()}[ \t]{{0,4}}(?:s[ \t]{{1,4}})?to\b",
                          re.IGNORECASE)
_OTHER = "|".join(sorted(NAMED_BEFORE))
OTHER_UNIT = re.compile(r"[ \t)\]]{0,4}[-\u2010-\u2015,.;:]{0,2}[ \t(\[]{0,4}(?:in[ \t]{1,4}|units?[ \t:=]{1,4})?"
                        rf"(?:%|\b(?:{_OTHER})\b(?![ \t:#]{{0,4}}{NUMBERISH}))", re.IGNORECASE)
UNIT_MAY_FOLLOW = re.compile(r"-?[ \t()\[\]{}\"'*`]*+[\w%\u00b0\u2030\u2032\u2033]|\n[ \t]*+(?:m|h|frame|percent|%)")
OPENERS = " \t\r\n([{=:\"'~*`>,"
DASHES = "-+\u2010\u2011\u2012\u2013\u2014\u2015\u2212"


@dataclass(frozen=True)
class Time:
    """`text[start:end]`, its unit with it. `seconds` None: a number, but no time of the units asked for; `unit`: the
    seconds of its unit, None where it has none; `clock`: 0:12; `point`: written with decimals; `parts`: of "2m 3s"."""

    start: int
    end: int
    seconds: float | None
    unit: float | None = None
    clock: bool = False
    point: bool = False
    parts: int = 1


@dataclass(frozen=True)
class TimeRange:
    """A range as written. `moment` None: one of its numbers is no time. `joined` by which word or sign."""

    first: Time
    last: Time
    joined: str
    moment: Moment | None


def times(text: str, units: Mapping[str, float], *, clock: bool = False) -> list[Time]:
    """Everything that begins with a digit, in order; numbers inside words (`frame12`) are none. `clock`: 0:12 is a
    time, parts of falling units are one (`1h 2m 3s`), and a dash behind a time is not a minus."""
    found: list[Time] = []
    at = 0
    while (match := TOKEN.search(text, at)) is not None:
        at = match.end()
        if match["run"] is None:
            continue
        one = _time(text, match.start(), match["run"].rstrip(TRAILING), units, clock)
        at = max(at, one.end)
        last = found[-1] if found else None
        if clock and last is not None and _continues(text, last, one):
            assert last.seconds is not None and one.seconds is not None
            one = Time(last.start, one.end, last.seconds + one.seconds, one.unit, parts=last.parts + 1, point=one.point)
            found.pop()
        found.append(one)
    return found


def _time(text: str, at: int, run: str, units: Mapping[str, float], clock: bool) -> Time:
    end = at + len(run)
    start, sign = _signed(text, at, clock)
    if start is None:
        return Time(at, end, None)
    if clock and (match := WHOLE_CLOCK.fullmatch(run)):
        hours, minutes, seconds = int(match[1] or 0), int(match[2]), float(match[3])
        right = seconds < 60 and (match[1] is None or minutes < 60)
        return Time(start, end, sign * (hours * 3600 + minutes * 60 + seconds) if right else None, 1.0, clock=True)
    whole = WHOLE.fullmatch(run)
    if whole is None:
        return Time(start, end, None)
    value, word, point = sign * float(whole[1]), whole[2].lower(), "." in whole[1]
    if not word and (behind := UNIT_BEHIND.match(text, end)) and behind[1].lower() in units:
        word, end = behind[1].lower(), behind.end()
    if word and word not in units:
        return Time(start, end, None)
    scale = units[word] if word else None
    seconds = value if scale is None else value * scale
    return Time(start, end, seconds if math.isfinite(seconds) else None, scale, point=point)


def _signed(text: str, at: int, clock: bool) -> tuple[int | None, float]:
    """Where a number begins, its minus with it, and its sign; None where what stands before makes it something else."""
    before, earlier = text[max(0, at - 1) : at], text[max(0, at - 9) : max(0, at - 1)]
    if before in tuple("./_"):
        return None, 1.0
    if not before or before not in DASHES:
        return at, 1.0
    if clock and (earlier.rstrip(" \t")[-1:].isalnum() or earlier[-1:] in tuple("\"'*`)")):
        return at, 1.0  # the dash joins
    if before == "-" and (not earlier or earlier[-1] in OPENERS):
        return at - 1, -1.0
    return None, 1.0


def _continues(text: str, last: Time, one: Time) -> bool:
    """Whether `one` is the next part of `last`: `2m` `3s`."""
    if last.seconds is None or one.seconds is None or last.clock or one.clock:
        return False
    if last.unit is None or one.unit is None or not one.unit < last.unit or one.seconds >= last.unit:
        return False
    return BLANK.fullmatch(text, last.end, one.start) is not None


def ranges(text: str, units: Mapping[str, float], joins: re.Pattern[str], *, clock: bool = False,
           lenient: bool = False) -> Iterator[TimeRange]:
    """Two times with what `joins` matches between them, from the left, none twice. `lenient`: words that are no known
    unit may follow a bare number."""
    found, index, free = times(text, units, clock=clock), 0, 0
    while index + 1 < len(found):
        first, last = found[index], found[index + 1]
        joined = _joined(text, first, last, joins)
        if joined is None:
            index += 1
            continue
        before = found[index - 1] if index > free else None
        refused = before is not None and before.unit is None and _within(TOUCHING, text, before.end, first.start)
        if index + 2 < len(found) and BLANK.fullmatch(text, last.end, found[index + 2].start):
            more = found[index + 2 : index + 4]
            refused = refused or last.unit is None or len(more) < 2 or _joined(text, more[0], more[1], joins) is None
        yield TimeRange(first, last, joined, None if refused else _moment(text, first, last, lenient))
        index = free = index + 2


def _within(pattern: re.Pattern[str], text: str, start: int, end: int) -> bool:
    return end - start <= 24 and pattern.fullmatch(text, start, end) is not None


def _joined(text: str, first: Time, last: Time, joins: re.Pattern[str]) -> str | None:
    return text[first.end : last.start].strip(" \t.*\"'`\n").lower() if _within(
        joins, text, first.end, last.start) else None


def _moment(text: str, first: Time, last: Time, lenient: bool) -> Moment | None:
    if first.seconds is None or last.seconds is None:
        return None
    start_s = first.seconds
    if last.unit is None:
        if first.unit not in (None, 1.0) or first.clock:
            return None
        if lenient:
            behind = UNIT_BEHIND.match(text, last.end)
            follows = behind is not None and behind[1].lower() in {*CLOCK_UNITS, *NAMED_BEFORE}
        else:
            follows = bool(UNIT_MAY_FOLLOW.match(text, last.end)) and not RANGE_BEHIND.match(text, last.end)
        if follows or OTHER_UNIT.match(text, last.end):
            return None
        if first.unit is None and (named_before(text, first.start) or _primed(text, first)):
            return None
    elif first.unit is None:
        if last.clock or last.parts > 1:
            return None
        start_s *= last.unit
    moment = Moment(start_s, last.seconds)
    return moment if moment.is_finite() else None


def named_before(text: str, at: int) -> bool:
    """Whether what stands before `at` turns a bare number there into something else than seconds."""
    named = WORD_BEFORE.search(text, max(0, at - 40), at)
    return named is not None and named[1].lower() in NAMED_BEFORE


def _primed(text: str, one: Time) -> bool:
    """Whether a number stands as in `2' to 7'`: minutes, or feet; a quoted number has a mark on both sides."""
    return text.startswith("'", one.end) and not text.endswith("'", 0, one.start)


def read_time(text: str) -> Time | None:
    """A text that is one time of `CLOCK_UNITS` and nothing else; None where it holds no digit, or is something else."""
    found = times(text, CLOCK_UNITS, clock=True)
    whole = len(found) == 1 and not (text[: found[0].start] + text[found[0].end :]).strip(" \t\r\n'\".")
    return found[0] if whole else None
