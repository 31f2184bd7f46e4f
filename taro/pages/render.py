"""Every HTML page of taro: one base page, jinja2 templates with autoescape, one writer.

No markup is put together from strings: Python prepares values (spans, points, cards), a template of
`taro/pages/templates` draws them, and jinja2 escapes each value where it is printed. What came from outside can
therefore neither run nor close a tag. Control and bidirectional characters are shown as `[U+202E]`, over the whole
page at its end, so that no text reorders another. A page has one file: its style is inside, pictures are data URIs, and
a content-security policy in its head forbids scripts and external resources, in case an escape was missed. It has no
script; what is long is folded by `<details>`.

The pages of a set (view.html, clip.html) are a folder (`taro.pages.folder`): style, pictures and scripts of ours are
files in it, and their policy allows these alone."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import jinja2

from taro.core.errors import ConfigError
from taro.core.files import make_folders, write_atomically
from taro.core.text import visible
from taro.grounding.moment import Moment

__all__ = ["environment", "number", "render", "windows_text", "write_page"]

PNG_MAGIC = b"\x89PNG"
ODD_CHARACTERS = re.compile(r"[^\n\t -~]+")
"""all that `visible` may have to show; a page is ASCII apart from what came from outside"""


def render(template: str, **context: object) -> str:
    """The page of a template, such as "report.html", with every value escaped. A name that the template uses and
    `context` has not is an error of jinja2: a page never shows a hole."""
    text = environment().get_template(template).render(**context)
    return ODD_CHARACTERS.sub(lambda found: visible(found[0]), text)


def write_page(path: Path, text: str) -> Path:
    """Writes a page, whole or not at all, with the folders above it, and returns its path. Raises ConfigError."""
    try:
        make_folders(path.parent)
        write_atomically(path, text.encode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}; make room or name another file, then run the "
                          "same command again") from None
    return path


@cache
def environment() -> jinja2.Environment:
    """The templates of taro, with autoescape in all of them."""
    found = jinja2.Environment(loader=jinja2.PackageLoader("taro.pages"), autoescape=True, trim_blocks=True,
                               undefined=jinja2.StrictUndefined, lstrip_blocks=True)
    found.filters |= {"number": number, "source": _source, "plural": _plural, "windows": windows_text}
    return found


def number(value: float | None, digits: int = 3) -> str:
    """A number as a page writes it.

    >>> number(0.5), number(None), number(float("nan")), number(12345.6, 0), number(3.2e-6)
    ('0.500', '-', '-', '12,346', '3.2e-06')
    """
    if value is None or not math.isfinite(value):
        return "-"
    if value != 0 and abs(value) < 0.5 * 10.0**-digits:
        return f"{value:.1e}"
    return f"{value:,.{digits}f}"


def windows_text(windows: Iterable[Moment]) -> str:
    """Windows as a page writes them under a query.

    >>> windows_text([Moment(0, 2.5), Moment(4, 5)]), windows_text([])
    ('0.00s to 2.50s, 4.00s to 5.00s', 'none')
    """
    return ", ".join(f"{window.start_s:.2f}s to {window.end_s:.2f}s" for window in windows) or "none"


def _source(picture: bytes | str) -> str:
    """What an img loads: the picture itself, or its address."""
    if isinstance(picture, str):
        return picture
    kind = "png" if picture.startswith(PNG_MAGIC) else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"
