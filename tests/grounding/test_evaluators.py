"""Protocols with an evaluator's name read what that evaluator reads: an oracle of each, written from what its source
does and sharing nothing with our patterns, over thousands of random responses. Each kind of difference is on
docs/protocols.md."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from taro.grounding.answers import format_ok, parse_answer
from taro.grounding.moment import Moment

RESPONSES = 6_000
PIECES = [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    " to ",
    " and ",
    " TO ",
    "to",
    " - ",
    "-",
    "  to  ",
    "\nto ",
    "s",
    "s to ",
    " s",
    " seconds",
    ".",
    ",",
    ":",
    " ",
    "\n",
    "from ",
    "between ",
    "Starting time: ",
    "Ending time: ",
    "x",
    "frame",
    "%",
    "\uff11\uff12",
    "\u0663",
    "\u0130",
    "7.6s to 34.40363474548333s",
    "12.0s and 15.5s",
    "12.0 to 15.5",
    "0:12 - 0:15",
    "00:01:05",
    "1:2:3",
    "00:12.5x",
    "1,234.5",
    "2.5e1",
    "-3.0 to 5",
    "8.",
    ".5",
    "1.2.3",
    "minutes",
    "_4",
    "\u22125",
]


def responses() -> list[str]:
    """Random strings of what answers are made of; half of them inside the tags."""
    rng = np.random.default_rng(20261128)
    texts = []
    for number in range(RESPONSES):
        parts = [
            PIECES[i] if i < len(PIECES) else str(round(float(rng.uniform(0, 99)), int(rng.integers(0, 5))))
            for i in rng.integers(0, len(PIECES) + 25, int(rng.integers(1, 14)))
        ]
        text = "".join(parts)
        texts.append(f"<think>a</think><answer>{text}</answer>" if number % 2 else text)
    return texts


def is_digit(char: str) -> bool:
    return char.isdecimal()


def run_end(text: str, at: int) -> int:
    """Behind the digits that begin at `at`."""
    while at < len(text) and is_digit(text[at]):
        at += 1
    return at


def loose(text: str, at: int) -> int | None:
    """Behind a number of the form digits, perhaps a point, perhaps digits; None where none begins."""
    end = run_end(text, at)
    if end == at:
        return None
    return run_end(text, end + 1) if text[end : end + 1] == "." else end


def pairs(text: str, behind: str, joins: tuple[str, ...], last: str) -> list[tuple[float, float]]:
    """Pairs of loose numbers, from the left, none twice: NUMBER behind JOIN NUMBER last."""
    found, at = [], 0
    while at < len(text):
        middle, done = loose(text, at), False
        for join in joins:
            if middle is None:
                break
            glue = behind + join
            if text[middle : middle + len(glue)].lower() == glue.lower() if last else text.startswith(glue, middle):
                start = middle + len(glue)
                end = loose(text, start)
                if end is not None and text[end : end + len(last)].lower() == last:
                    found.append((float(text[at:middle]), float(text[start:end])))
                    at, done = end + len(last), True
                    break
        at += 0 if done else 1
    return found


def time_r1(text: str) -> tuple[float, float] | None:
    """xiaomi-research/time-r1, evaluate.py: the last pair anywhere, one blank on each side."""
    found = pairs(text, "", (" to ", " and "), "")
    return found[-1] if found else None


def taro_train(text: str) -> tuple[float, float] | None:
    """oceanflowlab/TaRO, src/rewards.py: the last block, counted from the left; its last pair of numbers with an s."""
    blocks = re.findall("<answer>(.*?)</answer>", text, re.DOTALL)
    found = pairs(blocks[-1], "s", (" to ", " and "), "s") if blocks else []
    return found[-1] if found else None


def taro_official(text: str) -> tuple[float, float] | None:
    """oceanflowlab/TaRO, standalone_eval: last two numbers, sorted; a point belongs to one with digits behind it."""
    numbers, at = [], 0
    while at < len(text):
        end = run_end(text, at)
        if end == at:
            at += 1
            continue
        behind = run_end(text, end + 1) if text[end : end + 1] == "." else end + 1
        end = behind if behind > end + 1 else end
        numbers.append(float(text[at:end]))
        at = end
    return (min(numbers[-2:]), max(numbers[-2:])) if len(numbers) >= 2 else None


def word(text: str, at: int) -> bool:
    return 0 <= at < len(text) and (text[at].isalnum() or text[at] == "_")


def clock(text: str, at: int) -> tuple[int, float] | None:
    """A clock time that begins at `at`, with no word character around it: its end and its seconds."""
    if word(text, at - 1):
        return None
    for fields in (3, 2):
        pattern = r"\d\d?" + r":\d\d" * (fields - 1)
        match = re.compile(pattern).match(text, at)
        if match is None:
            continue
        end = match.end()
        ends = [end]
        if text[end : end + 1] == "." and run_end(text, end + 1) > end + 1:
            ends.insert(0, run_end(text, end + 1))
        for stop in ends:
            if not word(text, stop):
                total = 0.0
                for part in text[at:stop].split(":"):
                    total = total * 60 + float(part)
                return stop, total
    return None


def timelens(text: str) -> tuple[float, float] | None:
    """TencentARC/TimeLens, timelens/utils.py: clock times in pairs; else x - y; else x to y; else numbers that no
    letter touches, in pairs; the first pair counts."""
    text, clocks, at = text.lower(), [], 0
    while at < len(text):
        found = clock(text, at) if is_digit(text[at]) else None
        at = at + 1 if found is None else found[0]
        clocks += [] if found is None else [found[1]]
    if len(clocks) >= 2:
        return clocks[0], clocks[1]
    for between in (r"\s*-\s*", r"\s+to\s+"):
        for at in range(len(text)):
            middle = loose(text, at) if is_digit(text[at]) else None
            glue = re.compile(between).match(text, middle) if middle is not None else None
            end = loose(text, glue.end()) if glue else None
            if glue is not None and end is not None:
                return float(text[at:middle]), float(text[glue.end() : end])
    numbers: list[float] = []
    at = 0
    while at < len(text) and len(numbers) < 2:
        end = run_end(text, at)
        if end == at or word(text, at - 1):
            at = max(at + 1, end)
            continue
        point = run_end(text, end + 1) if text[end : end + 1] == "." else 0
        stops = [stop for stop in (point if point > end + 1 else 0, end) if stop and not word(text, stop)]
        numbers += [float(text[at : stops[0]])] if stops else []
        at = stops[0] if stops else end
    return (numbers[0], numbers[1]) if len(numbers) == 2 else None


ORACLES: dict[str, Callable[[str], tuple[float, float] | None]] = {
    "time-r1": time_r1,
    "taro-train": taro_train,
    "taro-official": taro_official,
    "timelens": timelens,
}


@pytest.mark.parametrize("protocol", ORACLES)
def test_a_named_protocol_is_that_evaluator(protocol: str) -> None:
    read = 0
    for text in responses():
        expected, found = ORACLES[protocol](text), parse_answer(text, protocol=protocol)
        assert (found is None) == (expected is None), text
        assert found is None or (found.start_s, found.end_s) == pytest.approx(expected, rel=1e-12), text
        read += expected is not None
    assert read > RESPONSES / 20, f"only {read} of {RESPONSES} hold an answer"


def released_format(text: str) -> bool:
    """oceanflowlab/TaRO, src/rewards.py: outer blanks do not count; each tag once; blanks between the blocks."""
    text = text.strip()
    places = [text.find(tag) for tag in ("<think>", "</think>", "<answer>", "</answer>")]
    once = all(text.count(tag) == 1 for tag in ("<think>", "</think>", "<answer>", "</answer>"))
    if not once or places != sorted(places) or places[0] != 0:
        return False
    return text[places[1] + len("</think>") : places[2]].strip() == "" and places[3] + len("</answer>") == len(text)


def test_the_format_reward_is_the_released_one() -> None:
    rng = np.random.default_rng(7)
    pieces = [
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        " ",
        "\n",
        "a",
        "\u2003",
        "\x1c",
        "<think>a</think>",
        "<answer>b</answer>",
    ]
    right = 0
    for _ in range(20_000):
        text = "".join(pieces[i] for i in rng.integers(0, len(pieces), int(rng.integers(1, 7))))
        assert format_ok(text) == released_format(text), text
        right += format_ok(text)
    assert right > 50


@pytest.mark.parametrize(
    ("response", "released", "ours"),
    [
        ("<answer>12.0s and 15.5s</answer>", (12, 15.5), None),
        ("<answer>12 to 15</answer>", None, (12, 15)),
        ("<answer>-1.0s to 5.0s</answer>", (1, 5), (-1, 5)),
        ("<answer>1s to 2s, or 3s to 4s</answer>", (3, 4), (1, 2)),
        ("<answer>1s to 2s <answer>no</answer>", (1, 2), None),
    ],
)
def test_where_taro_differs_from_the_released_parser_on_purpose(
    response: str, released: tuple[float, float] | None, ours: tuple[float, float] | None
) -> None:
    """The table of docs/protocols.md."""
    for protocol, expected in (("taro-train", released), ("taro", ours)):
        assert parse_answer(response, protocol=protocol) == (None if expected is None else Moment(*expected))


@pytest.mark.parametrize("protocol", ORACLES)
def test_numbers_beyond_400_characters_are_unparsable(protocol: str) -> None:
    for text in ("<answer>{n}s to 5s</answer>", "{n} to 5", "{n} 5"):
        assert parse_answer(text.format(n="9" * 401), protocol=protocol) is None
