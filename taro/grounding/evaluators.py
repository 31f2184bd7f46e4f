"""How published evaluators read a response, each under its own protocol's name: the same moment for every response.

They are equal to their sources, oddities included, as tests with an oracle of each show over thousands of random
responses; the few differences are on docs/protocols.md. Nothing here judges: a moment may be reversed.

Sources, read 2026-11: Time-R1 `evaluate.py` (xiaomi-research/time-r1), TimeLens `timelens/utils.py`
(TencentARC/TimeLens), TaRO `standalone_eval/evaluate_vtg.py` and `src/rewards.py` (oceanflowlab/TaRO). Only what they
do is taken, no code."""

from __future__ import annotations

import re
from collections import deque

from taro.core.numbers import ALONE, CLOCKED, POINTED, PRINTED
from taro.grounding.moment import Moment

__all__ = ["parse_taro_official", "parse_taro_train", "parse_time_r1", "parse_timelens"]

MAX_CHARACTERS = 400
"""of a number; the sources read longer ones as infinity or to no purpose, here the response is unparsable"""
TIME_R1 = re.compile(rf"({POINTED}) (?:to|and) ({POINTED})")
TARO_TRAIN = re.compile(rf"({POINTED})s (?:to|and) ({POINTED})s", re.IGNORECASE)
NUMBERS = re.compile(PRINTED)
CLOCKS = re.compile(CLOCKED)
DASHED = re.compile(rf"({POINTED})\s*+-\s*+({POINTED})")
WORDED = re.compile(rf"({POINTED})\s++to\s++({POINTED})")
SINGLE = re.compile(ALONE)


def _moment(start: str, end: str) -> Moment | None:
    if max(len(start), len(end)) > MAX_CHARACTERS:
        return None
    moment = Moment(float(start), float(end))
    return moment if moment.is_finite() else None


def _last_pair(pattern: re.Pattern[str], text: str) -> Moment | None:
    last = deque(pattern.finditer(text), maxlen=1)
    return _moment(last[0][1], last[0][2]) if last else None


def parse_time_r1(text: str) -> Moment | None:
    """The last `x to y` or `x and y` anywhere, with one blank on each side, in lower case.

    >>> parse_time_r1("between 1 and 2; so 3.5 to 8.0 seconds")
    Moment(start_s=3.5, end_s=8.0)
    """
    return _last_pair(TIME_R1, text)


def parse_taro_train(text: str) -> Moment | None:
    """The last `xs to ys` or `xs and ys` of the last `<answer>` block, blocks being counted from the left.

    >>> parse_taro_train("<answer>-1.0s and 5.0s</answer>")
    Moment(start_s=1.0, end_s=5.0)
    """
    last, at = None, text.find("<answer>")
    while at >= 0 and (end := text.find("</answer>", at)) >= 0:
        last, at = text[at + len("<answer>") : end], text.find("<answer>", end)
    return None if last is None else _last_pair(TARO_TRAIN, last)


def parse_taro_official(text: str) -> Moment | None:
    """The last two numbers anywhere, the smaller first.

    >>> parse_taro_official("It is 30.5 or so, until 12.")
    Moment(start_s=12.0, end_s=30.5)
    """
    first, second = "", ""
    for match in NUMBERS.finditer(text):
        first, second = second, match[0]
    moment = _moment(first, second) if first else None
    return moment and Moment(min(moment.start_s, moment.end_s), max(moment.start_s, moment.end_s))


def parse_timelens(text: str) -> Moment | None:
    """The first two clock times anywhere; else the first `x - y`; else the first `x to y`; else the first two numbers
    that stand alone.

    >>> parse_timelens("Starting time: 0.8 seconds. Ending time: 1.1 seconds.")
    Moment(start_s=0.8, end_s=1.1)
    """
    text = text.lower()
    clocks = _first_two(CLOCKS, text)
    if len(clocks) == 2:
        ends = [int(c[1] or 0) * 3600 + int(c[2] or c[3]) * 60 + float(c[4]) for c in clocks
                if len(c[4]) <= MAX_CHARACTERS]
        return Moment(ends[0], ends[1]) if len(ends) == 2 else None
    pair = DASHED.search(text) or WORDED.search(text)
    if pair is not None:
        return _moment(pair[1], pair[2])
    alone = _first_two(SINGLE, text)
    return _moment(alone[0][0], alone[1][0]) if len(alone) == 2 else None


def _first_two(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    found = pattern.finditer(text)
    return [match for match, _ in zip(found, range(2), strict=False)]
