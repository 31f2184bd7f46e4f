"""What commands print: every text goes through here, so that no stranger's caption or file name drives a terminal."""

from __future__ import annotations

import typer

from taro.core.text import visible

__all__ = ["say"]


def say(text: str, *, err: bool = False) -> None:
    """Prints lines with control and bidirectional characters written out, see `taro.core.text.visible`."""
    typer.echo(visible(text), err=err)
