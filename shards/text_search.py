"""Which texts of a column hold a regular expression, in either case: the texts that Python's `re` finds.

RE2, which arrow runs, takes time that grows with the length of a text alone and is ten times as fast as `re`. It is
asked where both mean the same: the pattern is made of ASCII characters, `.`, classes, groups, alternatives, repeats and
`^`. With `$`, `\\b`, `\\d`, `\\w` or `\\s` they mean the same in texts of printable ASCII. Python's `re` searches
whatever is left: other patterns (lookaround, references, flags, other alphabets) and other texts. Its time has no bound
but the length of a text, 20,000 characters: a repeat of a repeat, such as `(a+)+$`, may take it for ever; Ctrl-C ends
it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from taro.shards.index_file import from_numpy, to_numpy

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["found_in"]

BLOCK_TEXTS = 4096
"""texts that Python's `re` searches at once"""
_LITERAL = r"[A-Za-z0-9 !\"#%&',/:;<=>@_`~-]|\\[!-/:-@\[-^`{-~]"
_OF_CLASS = r"\\[dws]|[A-Za-z0-9 !\"#$%'()*+,./:;<=>?@_`{}](?:-[A-Za-z0-9])?"
_TOKEN = re.compile(rf"(?P<literal>{_LITERAL})|(?P<class>\[\^?(?:{_OF_CLASS})+\])|(?P<ascii>\$|\\[bdswDSW])"
                    r"|(?P<other>\^|\.|\||\((?!\?)|\(\?:|\)|(?:[*+?]|\{[0-9]{1,3}(?:,[0-9]{0,3})?\})\??(?![*+?{]))")
_DOTTED_I = "\u0130\u0131"
"""letters that `re` takes for an `i` in either case, and RE2 does not"""


def found_in(texts: pa.Array, pattern: str) -> np.ndarray:
    """Whether `pattern` is found in each of some texts, bool [N]. Raises re.error where it is no pattern."""
    import pyarrow as pa
    import pyarrow.compute as pc

    search, found = re.compile(pattern, re.IGNORECASE).search, np.zeros(len(texts), dtype=bool)
    left = np.arange(len(texts))
    for_re2, ascii_alone = _for_re2(pattern)
    if for_re2 is not None:
        try:
            found = to_numpy(pc.match_substring_regex(texts, for_re2, ignore_case=True)).astype(bool)
            left = left[to_numpy(pc.match_substring_regex(texts, "[^ -~]")).astype(bool)] if ascii_alone else left[:0]
        except pa.ArrowInvalid:  # too large for RE2
            pass
    for start in range(0, len(left), BLOCK_TEXTS):
        block = left[start : start + BLOCK_TEXTS]
        found[block] = [search(text) is not None for text in texts.take(from_numpy(block)).to_pylist()]
    return found


def _for_re2(pattern: str) -> tuple[str | None, bool]:
    """A pattern as RE2 is asked for it, None where RE2 may mean something else; and whether it means the same in
    texts of printable ASCII alone."""
    tokens, at, ascii_alone = [], 0, False
    while at < len(pattern):
        token = _TOKEN.match(pattern, at)
        if token is None:
            return None, False
        text, at = token[0], token.end()
        ascii_alone |= token.lastgroup == "ascii" or (token.lastgroup == "class" and "\\" in text)
        if text in ("i", "I"):
            text = f"[i{_DOTTED_I}]"
        elif token.lastgroup == "class" and (re.search(text, "i", re.IGNORECASE) is None) == text.startswith("[^"):
            text = f"{text[:-1]}{_DOTTED_I}]"
        tokens.append(text)
    return "".join(tokens), ascii_alone
