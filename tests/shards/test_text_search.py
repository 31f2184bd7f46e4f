"""Texts are found as Python's `re` finds them, whoever searches."""

from __future__ import annotations

import random
import re

import pytest

pytest.importorskip("pyarrow")

import pyarrow as pa

from taro.shards.text_search import _for_re2, found_in

LETTERS = ["a", "b", "i", "I", "k", "K", "s", "_", "-", " ", "1", ".", "\n", "\t", "\x0b", "\x1c", "\0", "\u0130",
           "\u0131", "\u017f", "\u212a", "\u00e9", "\u4e00", "\u0660", "\u00a0", "\U0001f600"]
PIECES = ["a", "b", "i", "I", "k", "S", "-", " ", "1", r"\.", r"\-", ".", "[a-c]", "[^i]", "[^a-m]", "[i1]", "[A-z]",
          "[ -a]", r"[\w-]", r"[\ws]", r"[^\d]", r"[^\s1]", "^", "$", r"\b", r"\B", r"\w", r"\W", r"\s", r"\D", "|",
          "|", "\u00e9", "(?-i:k)", "(?=a)", "[]a]", "(a", "(?:a", "()"]
REPEATS = ["", "", "", "*", "+", "?", "*?", "+?", "{2}", "{1,2}", "{0,}", "{,2}", "?+"]


def disagreements(seed: int, patterns: int, texts: int = 60) -> tuple[list[tuple[str, str]], int]:
    """(pattern, text) of which one search says yes and the other no; and how many patterns RE2 was asked for."""
    draw = random.Random(seed)
    wrong, by_re2 = [], 0
    for _ in range(patterns):
        pattern = "".join(draw.choice(PIECES) + draw.choice(REPEATS) for _ in range(draw.randint(1, 6)))
        if draw.random() < 0.5:
            pattern = "".join(char for char in pattern if char.isascii() and char != "$")
        pattern += ")" * (pattern.count("(") - pattern.count(")"))
        try:
            search = re.compile(pattern, re.IGNORECASE).search
        except re.error:
            continue
        held = ["".join(draw.choices(LETTERS if draw.random() < 0.5 else LETTERS[:12], k=draw.randint(0, 8)))
                for _ in range(texts)]
        found = found_in(pa.array(held), pattern)
        by_re2 += _for_re2(pattern)[0] is not None
        wrong += [(pattern, text) for text, one in zip(held, found, strict=True) if one != (search(text) is not None)]
    return wrong, by_re2


def test_both_searches_find_the_same() -> None:
    wrong, by_re2 = disagreements(0, 1500)
    assert wrong == [] and by_re2 > 300


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|aa)+b", "(.*)*x", r"(\w+\s?)*!", "(a*)*$"])
def test_a_repeat_of_a_repeat_ends(pattern: str) -> None:
    """Python's `re` would take longer than anybody lives."""
    assert _for_re2(pattern)[0] is not None
    assert found_in(pa.array(["a" * 20_000 + "_"]), pattern).tolist() == [pattern.endswith("$")]


def test_other_patterns_are_left_to_python() -> None:
    for pattern in ("(?=a)", r"(a)\1", "(?i)a", "\u00e9", "a{,2}", "a*+", "[[:alpha:]]", "(?P<x>a)", r"\x41", r"\pL",
                    r"\Qa", "[a&&b]", "[]a]", r"\Z", "a{2000}", r"\B"):
        assert _for_re2(pattern) == (None, False), pattern
    assert found_in(pa.array(["ab" * 600]), "((ab){300}){2}").tolist() == [True], "too large for RE2"
    with pytest.raises(re.error):
        found_in(pa.array(["a"]), "(")
