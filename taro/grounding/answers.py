"""How what a policy says is read: its answer, its reasoning, and whether its response has the right form.

Evaluations read an answer in different ways, so each way has a name: `ANSWER_PARSERS`, one function a protocol; how a
protocol scores the answer is in `taro.grounding.protocols`. Everything here is linear in the length of the text,
whatever the text: numbers and blanks in the patterns are bounded, and tags are found by plain search."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from taro.core.errors import ConfigError
from taro.grounding.moment import Moment
from taro.grounding.prompts import NUMBER, TAGS

__all__ = ["ANSWER_PARSERS", "Reasoning", "format_ok", "parse_answer", "parse_answers", "parse_reasoning",
           "reasoning_stats", "written_reasoning"]

UNIT = r"(?:seconds?|secs?|s)\b"
CLOCK = r"(?:\d{1,3}:)?\d{1,3}:\d{2}(?:\.\d{1,9})?"
DASHES = "[-\u2010-\u2015]"
SECONDS_RANGE = re.compile(rf"(?<![\w.:-])(-?{NUMBER})\s{{0,4}}(?:{UNIT})?\s{{0,4}}to\s{{1,4}}(-?{NUMBER})(?![\d:])",
                           re.IGNORECASE)
TIME_R1_RANGE = re.compile(rf"(?<![\w.])({NUMBER})\s{{0,4}}(?:{UNIT})?\s{{0,4}}(?:to|and)\s{{1,4}}({NUMBER})(?![\d:])",
                           re.IGNORECASE)
LONE_NUMBER = re.compile(rf"(?<![\d.]){NUMBER}(?!\d)")
TIMELENS_RANGE = re.compile(
    rf"(?<![\w.:])({CLOCK}|{NUMBER})\s{{0,4}}(?:{UNIT})?\s{{0,4}}(?:{DASHES}|to)\s{{0,4}}({CLOCK}|{NUMBER})(?![\d:])",
    re.IGNORECASE)
SPAN = re.compile(
    rf"(?<![\w.:])(?:(?P<lead>from|between)\s{{1,4}})?(?P<start>{CLOCK}|{NUMBER})\s{{0,4}}(?P<start_unit>{UNIT})?"
    rf"\s{{0,4}}(?:to|until|till|through|(?P<conjunction>and)|{DASHES})\s{{0,4}}"
    rf"(?P<end>{CLOCK}|{NUMBER})(?![\d:])\s{{0,4}}(?P<end_unit>{UNIT})?", re.IGNORECASE)
SINGLE_TIME = re.compile(rf"(?<![\w.:])(?:{NUMBER}\s{{0,4}}{UNIT}|{CLOCK}(?![\w:]))", re.IGNORECASE)


def format_ok(text: str, *, no_think: bool = False) -> bool:
    r"""Whether each tag is there exactly once, and the whole of `text` is `<think>...</think>\s*<answer>...</answer>`;
    with `no_think`, the whole is `<answer>...</answer>` and nothing thinks.

    >>> format_ok("<think>a</think>\n<answer>1.00s to 2.00s</answer>")
    True
    >>> format_ok("<answer>1.00s to 2.00s</answer>"), format_ok("<answer>1.00s to 2.00s</answer>", no_think=True)
    (False, True)
    """
    if [text.count(tag) for tag in TAGS] != ([0, 0, 1, 1] if no_think else [1, 1, 1, 1]):
        return False
    head, _, rest = text.partition("<answer>")
    if not rest.endswith("</answer>"):
        return False
    if no_think:
        return head == ""
    return head.startswith("<think>") and head.rstrip().endswith("</think>")


def _last_answer(text: str) -> str | None:
    """The content of the last complete `<answer>` block; None where there is none."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return None if end < 0 or start < 0 else text[start + len("<answer>") : end]


def _parse_taro(text: str) -> Moment | None:
    match = SECONDS_RANGE.search(_last_answer(text) or "")
    return None if match is None else Moment(float(match[1]), float(match[2]))


def _parse_time_r1(text: str) -> Moment | None:
    matches = TIME_R1_RANGE.findall(_last_answer(text) or "")
    return Moment(float(matches[-1][0]), float(matches[-1][1])) if matches else None


def _parse_taro_official(text: str) -> Moment | None:
    numbers = [float(number) for number in LONE_NUMBER.findall(text)][-2:]
    return Moment(min(numbers), max(numbers)) if len(numbers) == 2 else None


def _parse_timelens(text: str) -> Moment | None:
    match = TIMELENS_RANGE.search(text)
    return None if match is None else Moment(_seconds(match[1]), _seconds(match[2]))


ANSWER_PARSERS: dict[str, Callable[[str], Moment | None]] = {
    "taro": _parse_taro,
    "time-r1": _parse_time_r1,
    "taro-official": _parse_taro_official,
    "timelens": _parse_timelens,
    "union": _parse_taro,
    "moment-detr": _parse_taro,
    "multi-window": _parse_taro,
}
"""Protocol name -> how it reads a moment from a whole response (table in docs/evaluation.md)."""

SEVERAL = ("moment-detr", "multi-window")
"""protocols under which an answer may hold several windows; its first is the moment that `parse_answer` reads"""
MAX_ANSWERS = 100


def parse_answer(text: str, *, protocol: str = "taro") -> Moment | None:
    """The moment that a response answers, in seconds, as `protocol` reads it; None where it holds none. The moment may
    be reversed or lie outside the video: scoring decides what that is worth.

    >>> parse_answer("<think>at 1s</think><answer>12.00s to 15.5 s</answer>")
    Moment(start_s=12.0, end_s=15.5)
    >>> parse_answer("12.0s to 15.5s") is None
    True
    >>> parse_answer("from 9 down to 3", protocol="taro-official")
    Moment(start_s=3.0, end_s=9.0)
    """
    if protocol not in ANSWER_PARSERS:
        raise ConfigError(f"{protocol}: no such evaluation protocol; expected one of: {', '.join(ANSWER_PARSERS)}")
    return ANSWER_PARSERS[protocol](text)


def parse_answers(text: str, *, protocol: str = "multi-window") -> tuple[Moment, ...]:
    """All windows that a response answers, as written and in its order: under `SEVERAL` every `a s to b s` of its last
    answer, at most 100, elsewhere the one that `parse_answer` reads.

    >>> [w.start_s for w in parse_answers("<answer>2.00s to 5.50s, 8.00s to 9.00s</answer>")]
    [2.0, 8.0]
    >>> len(parse_answers("<answer>2.00s to 5.50s, 8.00s to 9.00s</answer>", protocol="taro"))
    1
    """
    if protocol not in SEVERAL:
        only = parse_answer(text, protocol=protocol)
        return () if only is None else (only,)
    found = islice(SECONDS_RANGE.finditer(_last_answer(text) or ""), MAX_ANSWERS)
    return tuple(Moment(float(match[1]), float(match[2])) for match in found)


@dataclass(frozen=True)
class Reasoning:
    """What stands between `<think>` and `</think>`. `spans`: its time ranges, in order, as written (one may be
    reversed); `has_timestamp`: it holds a time range or a single time in seconds."""

    text: str
    spans: tuple[Moment, ...]
    has_timestamp: bool


def parse_reasoning(text: str) -> Reasoning:
    """The reasoning of a whole response: from its first `<think>` to the next `</think>`, or to the answer or the end
    where it was never closed; empty where nothing opens it.

    >>> parse_reasoning("<think>From 2.0s to 5.5s, it blinks.</think><answer>1s to 2s</answer>").spans
    (Moment(start_s=2.0, end_s=5.5),)
    """
    _, opened, inside = text.partition("<think>")
    if not opened:
        return Reasoning("", (), False)
    inside = inside.partition("</think>")[0].partition("<answer>")[0]
    return reasoning_stats(inside)


def written_reasoning(text: str) -> str | None:
    """The reasoning of a response whose prompt is not known; None where it has none. A response that closes `<think>`
    and never opens it comes from a prompt that opened it: its reasoning begins at its first character.

    >>> written_reasoning("it blinks</think><answer>1s to 2s</answer>"), written_reasoning("1s to 2s")
    ('it blinks', None)
    """
    if "<think>" in text:
        return parse_reasoning(text).text
    inside, closed, _ = text.partition("</think>")
    return inside if closed else None


def reasoning_stats(reasoning: str) -> Reasoning:
    """The same for a text that is a reasoning already. Ranges count with a unit ("2.0 - 5.5 seconds"), as clock times
    ("00:12 to 00:15") or with decimals on both sides; bare integers ("from 2 to 5") may count anything and do not.

    >>> reasoning_stats("it starts at 12.3s").has_timestamp, reasoning_stats("2 to 5 people").has_timestamp
    (True, False)
    """
    times = [match for match in SPAN.finditer(reasoning) if _is_time(match)]
    spans = tuple(Moment(_seconds(match["start"]), _seconds(match["end"])) for match in times)
    return Reasoning(reasoning, spans, bool(spans) or SINGLE_TIME.search(reasoning) is not None)


def _is_time(match: re.Match[str]) -> bool:
    if match["conjunction"] and (match["lead"] or "").lower() != "between":
        return False  # "at 2.0s and 5.5s" are two times, not a range
    ends = (match["start"], match["end"])
    return bool(match["start_unit"] or match["end_unit"]) or all(":" in e for e in ends) or all("." in e for e in ends)


def _seconds(text: str) -> float:
    """Seconds of `12.5`, `00:12` or `1:02:03.5`."""
    total_s = 0.0
    for part in text.split(":"):
        total_s = total_s * 60 + float(part)
    return total_s
