"""Untrusted texts, made fit to show: what could move a cursor, reorder a line or hide is written out.

Captions, queries, file names and messages about them end on terminals and pages. A terminal obeys control characters
(clear the screen, set the title, write over a line), and bidirectional ones make a text read otherwise than it is
stored. They are shown as `[U+202E]`, never dropped, so that who looks sees that something is there. Left out: letters
that look alike, and joiners (U+200C, U+200D) and the soft hyphen, which honest texts need."""

from __future__ import annotations

import unicodedata

__all__ = ["visible"]

_SHOWN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_KEPT = "\n\t\u00ad\u200c\u200d"


def visible(text: str) -> str:
    """`text` with its control, format, surrogate and line separator characters written out; newlines and tabs stay.

    >>> visible("a" + chr(0x202E) + "b" + chr(27) + "[2J" + chr(13))
    'a[U+202E]b[U+001B][2J[U+000D]'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(f"[U+{ord(char):04X}]" if unicodedata.category(char) in _SHOWN and char not in _KEPT else char
                   for char in text)
