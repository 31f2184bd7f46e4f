"""A command on a terminal of its own (a pty), and what the terminal got."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from pathlib import Path

__all__ = ["RICH", "on_a_terminal"]

RICH = re.compile(r"\x1b\[(?:[0-9;]*m|1A|2K|\?25[lh])")
"""escape codes that rich writes for colours and for a bar: cursor up one line, erase it, hide and show the cursor"""


def on_a_terminal(command: list[str], *, cwd: Path | None = None, columns: int = 80, plain: bool = True) -> str:
    """What a terminal gets of stdout and stderr; with `plain` without the escape codes of rich."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "COLUMNS", "CI"}}
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, cwd=cwd,
                          env={**env, "TERM": "xterm-256color"}) as process:
        os.close(theirs)
        got = bytearray()
        while True:
            try:
                data = os.read(ours, 1 << 16)
            except OSError:  # Linux: the other side is closed
                break
            if not data:
                break
            got += data
        process.wait()
    os.close(ours)
    text = got.decode("utf-8").replace("\r\n", "\n")
    return RICH.sub("", text) if plain else text
