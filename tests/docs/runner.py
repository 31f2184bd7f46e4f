"""A page's commands, run in order in a folder, and what they print compared with what the page shows.

`taro` lines run in this process, through the same entry point as the program: importing torch for each of some 150
commands would take most of the time. Everything else is a line of bash. A command line is `taro ... | more` at most;
with other shell grammar the whole line goes to bash.

Compared are lines, blanks collapsed, without what differs from machine to machine: seconds, bytes, digests.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from taro.cli import app as cli
from tests.docs.pages import DOCS, Block, blocks, blocks_of, commands, moved, output_of, with_output

START = DOCS / "README.md"
VOLATILE = (
    (r"\b\d[\d,.]* (s|ms|min|h|bytes|kB|MB|GB|GiB|TB)\b(?! to)", r"# \1"),
    (r"(bytes, [^:]+: )[\d,]+", r"\1#"),
    (r"(\.(?:safetensors|json|jpg)) [\d,]+", r"\1 #"),
    (r'("(?:bytes|size|total_bytes|seconds|hours|mtime_ns|encode|answer|time_s)": )[\d.e+-]+', r"\1#"),
    (r"(?<![.\w])[0-9a-f]{16,64}\b", "#"),
)
NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?|\bnull\b|(?<![\w.])-(?![\w.])"


@dataclass(frozen=True)
class Ran:
    """What a line did: its exit code, what it printed, what it said on the side."""

    code: int
    out: str
    err: str


def run_line(line: str, folder: Path) -> Ran:
    """Runs one line of a page in `folder`."""
    head, pipe, rest = line.partition(" | ")
    words = shlex.split(head) if "\n" not in line else []
    if not words or words[0] != "taro" or re.search(r"[<>;&$`*]", re.sub(r"'[^']*'|\"[^\"]*\"", "", head)):
        return _bash(line, folder, "")
    ran = _taro(words[1:], folder)
    return _bash(rest, folder, ran.out) if pipe and ran.code == 0 else ran


def _bash(line: str, folder: Path, given: str) -> Ran:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", line], cwd=folder, input=given, capture_output=True,
                          text=True, timeout=300, env={**os.environ, "PATH": path, "COLUMNS": "100"}, check=False)
    return Ran(done.returncode, done.stdout, done.stderr)


def _taro(words: list[str], folder: Path) -> Ran:
    out, err, code = io.StringIO(), io.StringIO(), 0
    with _inside(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("default")
        try:
            cli.main(words)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return Ran(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before, columns = Path.cwd(), os.environ.get("COLUMNS")
    os.chdir(folder)
    os.environ["COLUMNS"] = "100"
    try:
        yield
    finally:
        os.chdir(before)
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns


def run_block(block: Block, folder: Path) -> tuple[list[str], str]:
    """Runs the lines of a block: what was printed (an expected error included), and what is wrong with an exit code."""
    if block.language == "python":
        done = _bash(f"python - <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK", folder, "")
        return done.out.splitlines(), f"{block.text}\n{done.err}" if done.code else ""
    printed: list[str] = []
    lines = commands(block.text)
    wanted = re.fullmatch(r"exit (\d+)", block.mark)
    for line in lines:
        ran = run_line(line, folder)
        expected = int(wanted[1]) if wanted and line == lines[-1] else 0
        if ran.code != expected:
            return printed, f"{line}\nexit code {ran.code}, expected {expected}\n{ran.out}\n{ran.err}"
        printed += (ran.out + (ran.err if expected else "")).splitlines()
    return [line.rstrip() for line in printed], ""


def plain(line: str, *, vary: bool) -> str:
    """A line without what differs between machines; `vary` leaves no number in it."""
    for pattern, put in VOLATILE:
        line = re.sub(pattern, put, line)
    if vary:
        line = re.sub(NUMBER, "#", line)
    return " ".join(line.split())


def differs(shown: Block, printed: list[str]) -> str:
    """What an output block shows otherwise than it was printed; empty where it is right."""
    vary = shown.mark == "figures vary"
    want = [plain(line, vary=vary) for line in shown.text.splitlines()]
    got = [plain(line, vary=vary) for line in printed]
    if want.count("...") == 1:
        cut = want.index("...")
        tail = len(want) - cut - 1
        if len(got) < cut + tail:
            return f"{len(got)} lines were printed, the page shows more"
        got = [*got[:cut], "...", *(got[-tail:] if tail else [])]
    for at, (one, other) in enumerate(zip(want, got, strict=False)):
        if one != other:
            return f"line {at + 1}: the page shows\n    {one}\nprinted was\n    {other}"
    return "" if len(want) == len(got) else f"the page shows {len(want)} lines, {len(got)} were printed"


def run_page(page: Path, folder: Path, *, update: bool = False) -> tuple[int, int, list[str]]:
    """Runs a page in `folder`: blocks run, outputs held, and what is wrong; `update` writes it right instead."""
    text = page.read_text(encoding="utf-8")
    wrong: list[str] = []
    found, grown, ran, held = blocks_of(text), 0, 0, 0
    for at, block in enumerate(found):
        if block.skipped or block.language not in {"bash", "python"}:
            continue
        printed, failed = run_block(block, folder)
        ran += 1
        if failed:
            wrong.append(failed)
            continue
        shown = output_of([moved(one, grown) for one in found], at, text)
        if shown is None:
            continue
        held += 1
        if said := differs(shown, printed):
            wrong.append(f"{block.text.strip()}\n{said}")
            new = with_output(text, shown, printed)
            grown += new.count("\n") - text.count("\n")
            text = new
    if update and wrong:
        page.write_text(text, encoding="utf-8")
    return ran, held, wrong


def pages_that_run() -> list[Path]:
    """Every page of docs/ with something to run, but the page of the start itself."""
    return [page for page in sorted(DOCS.rglob("*.md")) if page != START
            and any(block.language in {"bash", "python"} and not block.skipped for block in blocks(page))]
