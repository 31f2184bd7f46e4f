"""Pages read: fenced blocks with their marks, the outputs that stand below commands, tables of options.

A mark is an HTML comment on the line before a block, so that a reader of the page does not see it:

    <!-- shown, not run: WHY -->    the block is not run
    <!-- exit 1 -->                 its last command ends with exit code 1 (0 without the mark)
    <!-- figures vary -->           before an output: its numbers are not compared (another CPU rounds otherwise)

A ``` block without a language right after a ```bash block is its output; one line `...` in it stands for any number
of lines. Tables between `<!-- options: taro COMMAND -->` and `<!-- end of options -->` are written from the command.
"""

from __future__ import annotations

import importlib
import inspect
import re
import types
import typing
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer
import typer.models

from taro.cli import app as cli

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
SKIP_MARKS = ("run by .ci/run", "shown, not run: ")
OPTIONS = re.compile(r"^<!-- options: taro (.+?) -->\n(.*?)^<!-- end of options -->$", re.M | re.S)


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


def functions() -> dict[str, Any]:
    """Every command that does something (`train`, `shards info`, ...) and the function behind it."""
    found: dict[str, Any] = {}
    for name, row in cli.COMMANDS.items():
        target = getattr(importlib.import_module(row.module), row.attribute)
        if isinstance(target, typer.Typer):
            for inner in target.registered_commands:
                assert inner.callback is not None
                found[f"{name} {inner.name or inner.callback.__name__}"] = inner.callback
        else:
            found[name] = target
    return found


def options_table(words: str) -> str:
    """The options of a command as a table: what its --help says, read from its signature (typer's own objects differ
    from version to version)."""
    function = functions()[words]
    hints = typing.get_type_hints(function, include_extras=True)
    rows = ["| option | default | |", "|---|---|---|"]
    for name, parameter in inspect.signature(function).parameters.items():
        kind, info = typing.get_args(hints[name])[:2]
        kinds = [one for one in (typing.get_args(kind) if isinstance(kind, types.UnionType) else [kind])
                 if one is not types.NoneType]
        rows.append(f"| {_named(name, kinds[0], info)} | {_default(parameter.default)} | {_cell(info.help or '')} |")
    return "".join(f"{row}\n" for row in rows)


def _named(name: str, kind: Any, info: Any) -> str:
    if isinstance(info, typer.models.ArgumentInfo):
        return f"`{(info.metavar or name).upper()}`"
    dashed = f"--{name.replace('_', '-')}"
    # Inside Annotated, typer takes the first name for a default.
    given = [one for one in (info.default, *(info.param_decls or ())) if isinstance(one, str) and one.startswith("-")]
    names = ", ".join(f"`{one}`" for one in given or ([dashed, f"--no-{dashed[2:]}"] if kind is bool else [dashed]))
    if kind is bool:
        return names
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return f"{names} {' or '.join(one.value for one in kind)}"
    if typing.get_origin(kind) is typing.Literal:
        return f"{names} {' or '.join(typing.get_args(kind))}"
    return f"{names} {info.metavar}" if info.metavar else names


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    return "" if value is None or isinstance(value, bool) else f"`{value}`"


def _cell(text: str) -> str:
    plain = re.sub(r"\[/?(bold|dim|green)\]", "", text)
    return " ".join(plain.split()).replace("|", "\\|").replace("<", "&lt;")


def with_tables(text: str) -> str:
    """The page with every table of options as it must be."""
    return OPTIONS.sub(lambda found: f"<!-- options: taro {found[1]} -->\n{options_table(found[1])}"
                                     "<!-- end of options -->", text)


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
