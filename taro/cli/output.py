"""What commands print: every text goes through here, so that no untrusted caption or file name drives a terminal."""

from __future__ import annotations

import json
from typing import Any

import typer

from taro.core.text import visible

__all__ = ["examples", "say", "say_json", "say_line"]


def say(text: str, *, err: bool = False) -> None:
    """Prints lines with control and bidirectional characters written out, see `taro.core.text.visible`."""
    typer.echo(visible(text), err=err)


def examples(lines: tuple[str, ...]) -> str | None:
    """What stands under a command's own --help: lines that a reader can copy."""
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(line.replace("[", r"\[") for line in lines) if lines else None


def say_line(text: str) -> None:
    """Prints one line, whatever untrusted text it holds: line ends are written out too."""
    say(text.replace("\n", "[U+000A]"))


def say_json(value: Any) -> None:
    """Prints a value as JSON on one line (`--json`)."""
    say(json.dumps(value))
