"""What commands print: all of it goes through here, so that no caption, file name or response drives a terminal.

`say` prints lines of ours: a line end inside one is written out, so that a name cannot add a line. `main` wraps stdout
and stderr in `visible_streams`, which covers what prints beside `say`: wrong use, warnings, tracebacks, libraries. rich
writes escape codes of its own past that wrapper; a `console` makes every text visible before it adds them. Decoding
processes have no terminal at all (preprocess/video/pool.py)."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

import typer

from taro.core.text import one_line, visible

__all__ = ["console", "examples", "say", "say_block", "say_error", "say_json", "visible_streams"]


def say(*lines: str, err: bool = False) -> None:
    """Prints lines, each on one line whatever untrusted text it holds."""
    typer.echo("\n".join(one_line(line) for line in lines), err=err)


def say_block(text: str, *, indent: str = "") -> None:
    """Prints a text of several lines: a table of ours, or a response, which is indented so that it is none."""
    typer.echo("\n".join(indent + visible(line) for line in text.split("\n")))


def say_error(message: str) -> None:
    """Prints a message on stderr; its further lines are indented, so that none passes for a message of its own."""
    typer.echo("\n  ".join(visible(line) for line in message.split("\n")), err=True)


def say_json(value: Any) -> None:
    """Prints a value as JSON on one line (`--json`), in ASCII without control characters, so nothing is lost."""
    typer.echo(json.dumps(value).replace("\x7f", "\\u007f"))


def examples(lines: tuple[str, ...]) -> str | None:
    """What stands under a command's own --help: lines that a reader can copy."""
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(line.replace("[", r"\[") for line in lines) if lines else None


def console(*, err: bool = False, quiet: bool = False) -> Any:
    """A rich console whose texts are visible; only rich's own escape codes reach the terminal."""
    from rich.console import Console

    class Visible(Console):
        """Writes out what a text of any column, table or line holds for a terminal to obey."""

        def render(self, *args: Any, **kwargs: Any) -> Any:
            """As rich renders, with texts made visible."""
            for segment in super().render(*args, **kwargs):
                yield segment if segment.control else segment._replace(text=visible(segment.text))

    return Visible(stderr=err, quiet=quiet)


class _VisibleStream(io.TextIOBase):
    """A text stream that writes out control characters; `rich_proxied_file` is what rich writes to instead."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    @property
    def rich_proxied_file(self) -> TextIO:
        """The stream under all wrappers."""
        file = self._file
        while hasattr(file, "rich_proxied_file"):
            file = file.rich_proxied_file
        return file

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the wrapped stream."""
        return self._file.encoding

    def write(self, text: str) -> int:
        """Writes `text`; what the stream's encoding lacks is written out too."""
        try:
            self._file.write(visible(text))
        except UnicodeEncodeError:
            self._file.write(visible(text).encode(self.encoding, "backslashreplace").decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        """Flushes the wrapped stream."""
        self._file.flush()

    def isatty(self) -> bool:
        """As the wrapped stream."""
        return self._file.isatty()

    def fileno(self) -> int:
        """As the wrapped stream."""
        return self._file.fileno()


@contextmanager
def visible_streams() -> Iterator[None]:
    """Wraps stdout and stderr while the block runs."""
    before = sys.stdout, sys.stderr
    ours = tuple(cast(TextIO, _VisibleStream(file)) for file in before)
    sys.stdout, sys.stderr = ours
    try:
        yield
    finally:  # unless somebody replaced them: typer does, where a reader has left
        sys.stdout = before[0] if sys.stdout is ours[0] else sys.stdout
        sys.stderr = before[1] if sys.stderr is ours[1] else sys.stderr
