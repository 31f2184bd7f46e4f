"""How what a policy says is read: its answer, its reasoning, and whether its response has the right form.

Evaluations read an answer in different ways, so each way has a name: `ANSWER_PARSERS`, one function a protocol; how a
protocol scores the answer is in `taro.grounding.protocols`, how published evaluators read is in
`taro.grounding.evaluators`. Rewards, evaluation and `taro ground` all read answers here. Everything is linear in the
length of the text, and tags are found by plain search."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice

from taro.core.errors import ConfigError
from taro.grounding.clock import clock_moments
from taro.grounding.evaluators import parse_taro_official, parse_taro_train, parse_time_r1, parse_timelens
from taro.grounding.moment import Moment
from taro.grounding.prompts import TAGS
from taro.grounding.times import SECONDS, TimeRange, ranges, times

__all__ = ["ANSWER_PARSERS", "Reasoning", "format_ok", "parse_answer", "parse_answers", "parse_reasoning",
           "reasoning_stats", "written_reasoning"]

MAX_ANSWERS = 100
TO = re.compile(r"\.?\s{0,4}to\s{1,4}", re.IGNORECASE)
SPAN = re.compile(r"\.?\s{0,4}(?:to|until|till|through|and|[-\u2010-\u2015])\s{0,4}", re.IGNORECASE)


def format_ok(text: str, *, no_think: bool = False) -> bool:
    r"""Whether each tag is there exactly once, and the whole of `text` is `<think>...</think>\s*<answer>...</answer>`;
    with `no_think`, the whole is `<answer>...</answer>` and nothing thinks. Outer blanks do not count.

    >>> format_ok("<think>a</think>\n<answer>1.00s to 2.00s</answer>")
    True
    >>> format_ok("<answer>1.00s to 2.00s</answer>"), format_ok("<answer>1.00s to 2.00s</answer>", no_think=True)
    (False, True)
    """
    if [text.count(tag) for tag in TAGS] != ([0, 0, 1, 1] if no_think else [1, 1, 1, 1]):
        return False
    head, _, rest = text.strip().partition("<answer>")
    if not rest.endswith("</answer>"):
        return False
    if no_think:
        return head == ""
    return head.startswith("<think>") and head.rstrip().endswith("</think>")


def _last_answer(text: str) -> str | None:
    """The content of the last complete `<answer>` block; None where there is none."""
    start = text.rfind("<answer>", 0, max(text.rfind("</answer>"), 0))
    return None if start < 0 else text[start + len("<answer>") : text.find("</answer>", start)]


def _windows(text: str, most: int) -> tuple[Moment, ...]:
    """The first `a s to b s` of the last answer, `most` of them at most; none where one of these is not in seconds or
    starts after its end."""
    found = [one.moment for one in islice(ranges(_last_answer(text) or "", SECONDS, TO), most)]
    return _in_order(found)


def _clock_windows(text: str, most: int) -> tuple[Moment, ...]:
    answer = _last_answer(text)
    if answer is None:
        answer = text.rpartition("</think>")[2]
    return _in_order(list(islice(clock_moments(answer), most)))


def _in_order(found: list[Moment | None]) -> tuple[Moment, ...]:
    kept = tuple(one for one in found if one is not None and one.start_s <= one.end_s)
    return kept if len(kept) == len(found) else ()


def _first(windows: Callable[[str, int], tuple[Moment, ...]], most: int, text: str) -> Moment | None:
    return next(iter(windows(text, most)), None)


ANSWER_PARSERS: dict[str, Callable[[str], Moment | None]] = {
    "taro": partial(_first, _windows, 1),
    "clock": partial(_first, _clock_windows, 1),
    "time-r1": parse_time_r1,
    "taro-official": parse_taro_official,
    "taro-train": parse_taro_train,
    "timelens": parse_timelens,
    "union": partial(_first, _windows, 1),
    "moment-detr": partial(_first, _windows, MAX_ANSWERS),
    "multi-window": partial(_first, _windows, MAX_ANSWERS),
}
"""Protocol name -> how it reads a moment from a whole response (table in docs/protocols.md)."""

SEVERAL = ("moment-detr", "multi-window")
"""protocols under which an answer may hold several windows; its first is the moment that `parse_answer` reads"""


def parse_answer(text: str, *, protocol: str = "taro") -> Moment | None:
    """The moment that a response answers, in seconds, as `protocol` reads it; None where it holds none. It may lie
    outside the video: scoring decides what that is worth.

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
    answer, at most 100 (none where one of them cannot be read), elsewhere the one that `parse_answer` reads.

    >>> [w.start_s for w in parse_answers("<answer>2.00s to 5.50s, 8.00s to 9.00s</answer>")]
    [2.0, 8.0]
    >>> len(parse_answers("<answer>2.00s to 5.50s, 8.00s to 9.00s</answer>", protocol="taro"))
    1
    """
    if protocol not in SEVERAL:
        only = parse_answer(text, protocol=protocol)
        return () if only is None else (only,)
    return _windows(text, MAX_ANSWERS)


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
    spans = tuple(one.moment for one in ranges(reasoning, SECONDS, SPAN, clock=True, lenient=True)
                  if one.moment is not None and _is_time(reasoning, one))
    alone = any(one.seconds is not None and one.unit is not None for one in times(reasoning, SECONDS, clock=True))
    return Reasoning(reasoning, spans, bool(spans) or alone)


def _is_time(text: str, one: TimeRange) -> bool:
    before = text[max(0, one.first.start - 12) : one.first.start].lower().rstrip()
    if one.joined == "and" and not before.endswith("between"):
        return False  # "at 2.0s and 5.5s" are two times, not a range
    ends = (one.first, one.last)
    return any(end.unit is not None for end in ends) or all(end.point for end in ends)
