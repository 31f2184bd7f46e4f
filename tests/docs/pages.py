"""Pages read: fenced blocks with their marks, and the outputs that stand below commands.

A mark is an HTML comment on the line before a block, so that a reader of the page does not see it:

    <!-- shown, not run: WHY -->    the block is not run
    <!-- exit 1 -->                 its last command ends with exit code 1 (0 without the mark)
    <!-- figures vary -->           before an output: its numbers are not compared (another CPU rounds otherwise)

A ``` block without a language right after a ```bash block is its output; one line `...` in it stands for any number
of lines. Options are not listed on pages: `taro COMMAND --help` prints them.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from taro.cli import app as cli

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
SKIP_MARKS = ("run by .ci/run", "shown, not run: ")


def all_pages() -> list[Path]:
    """README, CONTRIBUTING and every page of docs/."""
    return [README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block: the first word after its fence, its text, the mark before it, and its lines in the page.

    `first` and `last` are the fences' own line indices, from 0.
    """

    language: str
    text: str
    mark: str
    first: int
    last: int

    @property
    def skipped(self) -> bool:
        """Whether a mark says that it is not run here."""
        return self.mark.startswith(SKIP_MARKS)


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    return blocks_of(page.read_text(encoding="utf-8"))


def blocks_of(text: str) -> list[Block]:
    """All fenced blocks of a text, in order; a fence that is not closed is an assertion."""
    lines, found, first = text.split("\n"), list[Block](), -1
    for at, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if first < 0:
            first = at
            continue
        assert line == "```", f"line {at + 1}: a fence inside a block: {line}"
        mark = re.fullmatch(r"<!-- (.*) -->", lines[first - 1]) if first else None
        language = (lines[first][3:].split() or [""])[0]
        body = "".join(f"{line}\n" for line in lines[first + 1 : at])
        found.append(Block(language, body, mark[1] if mark else "", first, at))
        first = -1
    assert first < 0, f"line {first + 1}: the block does not end"
    return found


def commands(text: str) -> list[str]:
    """The lines of a shell block: comments dropped, continued lines joined, a here-document in one piece."""
    found: list[str] = []
    end = ""
    for line in text.replace("\\\n", " ").splitlines():
        if end:
            found[-1] += "\n" + line
            end = "" if line == end else end
        elif line.strip() and not line.lstrip().startswith("#"):
            found.append(line.strip())
            here = re.search(r"<<\s*'?(\w+)'?", line)
            end = here[1] if here else ""
    assert not end, f"a here-document does not end with {end}"
    return found


def output_of(page: list[Block], at: int, text: str) -> Block | None:
    """The output that the page shows for block `at`: the next block, if it has no language and only a mark between."""
    if at + 1 == len(page) or page[at + 1].language:
        return None
    between = text.split("\n")[page[at].last + 1 : page[at + 1].first]
    return page[at + 1] if all(re.fullmatch(r"(<!-- .* -->)?", line) for line in between) else None


def subcommands() -> list[str]:
    """Every command that does something: `train`, `shards info`, ..."""
    found: list[str] = []
    for name, row in cli.COMMANDS.items():
        target = getattr(importlib.import_module(row.module), row.attribute)
        inner = target.registered_commands if isinstance(target, typer.Typer) else []
        found += [f"{name} {one.name or one.callback.__name__}" for one in inner if one.callback] or [name]
    return found


def with_output(text: str, block: Block, printed: list[str]) -> str:
    """The page with `printed` in the output block; where it had one `...`, as many lines at each end stay."""
    lines, shown = text.split("\n"), block.text.splitlines()
    if "..." in shown:
        cut = shown.index("...")
        tail = len(shown) - cut - 1
        printed = [*printed[:cut], "...", *(printed[-tail:] if tail else [])]
    return "\n".join([*lines[: block.first + 1], *printed, *lines[block.last :]])


def moved(block: Block, by: int) -> Block:
    """The block where a page grew by `by` lines above it."""
    return replace(block, first=block.first + by, last=block.last + by)
