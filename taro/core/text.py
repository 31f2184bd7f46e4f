"""Untrusted texts, made fit to show: what could move a cursor, reorder a line or hide is written out.

Captions, queries, file names and messages about them end on terminals and pages. A terminal obeys control characters
(clear the screen, set the title, write over a line), and bidirectional ones make a text read otherwise than it is
stored. They are shown as `[U+202E]`, never dropped, so that who looks sees that something is there. Left out: letters
that look alike, and joiners (U+200C, U+200D) and the soft hyphen, which honest texts need."""

from __future__ import annotations

import unicodedata

__all__ = ["one_line", "shortened", "visible"]

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


def one_line(text: str) -> str:
    """`text` as `visible` shows it, newlines and tabs written out too: a name inside a line of ours.

    >>> one_line("a.mp4" + chr(10) + "error: none")
    'a.mp4[U+000A]error: none'
    """
    return visible(text).replace("\n", "[U+000A]").replace("\t", "[U+0009]")


def shortened(text: str, limit: int = 200) -> str:
    """The first `limit` characters of a text, and how many there are where that is not all.

    >>> shortened("a person opens a door", 8)
    'a person... (21 characters)'
    """
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} characters)"
