"""Names of code on the pages exist: files, `file.py:function`, modules and their attributes, tests, options.

Looked at is inline code in prose and tables; blocks are run, or read by tests/test_readme.py. docs/log.md has today's
names, so that its commands run.
"""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest

from taro.cli import app as cli
from tests.docs.pages import ROOT, all_pages, blocks_of, subcommands
from tests.test_guard import MAY_IMPORT

CHANGELOG = ROOT / "CHANGELOG.md"
PAGES = [page for page in all_pages() if page != CHANGELOG]
FOLDERS = ("taro", "preprocess", "tests", "benchmarks")
"""names below these are ours; shards/ and train/ may be a user's folders, so that only their .py files are looked at"""
OTHERS_OPTIONS = {"--check", "--compiled", "--debug", "--help", "--kills", "--local-dir", "--odd", "--revision"}
"""of no single command, of a benchmark, or of another program"""


def names(page: Path) -> list[str]:
    """Each inline code of a page, outside its fenced blocks."""
    text = page.read_text(encoding="utf-8")
    lines = text.split("\n")
    for block in blocks_of(text):
        lines[block.first : block.last + 1] = [""] * (block.last + 1 - block.first)
    return [" ".join(name.split()) for name in re.findall(r"`([^`]+)`", "\n".join(lines))]


@cache
def defined(path: Path) -> frozenset[str]:
    """Functions, classes, `Class.method`s and constants of a file."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        for one in [node, *(node.body if isinstance(node, ast.ClassDef) else [])]:
            prefix = f"{node.name}." if isinstance(node, ast.ClassDef) and one is not node else ""
            if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(prefix + one.name)
            elif isinstance(one, ast.Assign | ast.AnnAssign):
                targets = one.targets if isinstance(one, ast.Assign) else [one.target]
                found |= {prefix + target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(found)


@cache
def names_of_tests() -> frozenset[str]:
    """The name of each test."""
    return frozenset(name for path in (ROOT / "tests").rglob("test_*.py") for name in defined(path))


def wrong_with(name: str) -> str:
    """What is wrong with a name of code, or nothing."""
    if found := re.fullmatch(r"([\w./-]+\.py):([\w.]+)", name):
        path = ROOT / found[1]
        if not path.is_file():
            return f"{found[1]}: no such file"
        return "" if found[2] in defined(path) else f"{found[1]} defines no {found[2]}"
    if re.fullmatch(r"[\w/-]+\.py", name) or re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w/.-]+", name):
        paths = [ROOT / name, *((ROOT / "tests").rglob(name) if "/" not in name else [])]
        return "" if any(path.exists() for path in paths) else f"{name}: no such file"
    if re.fullmatch(r"taro(\.\w+)+", name) and name not in {"taro.json", "taro.egg"}:
        return wrong_attribute(name.split("."))
    if re.fullmatch(r"test_\w+", name):
        return "" if name in names_of_tests() else f"no test is called {name}"
    return ""


def wrong_attribute(parts: list[str]) -> str:
    """What is wrong with `taro.module.name`: the longest module is imported, the rest are attributes."""
    for cut in range(len(parts), 0, -1):
        try:
            value: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[cut:]:
            if not hasattr(value, attribute):
                return f"{'.'.join(parts)}: {'.'.join(parts[:cut])} has no {attribute}"
            value = getattr(value, attribute)
        return ""
    return f"{'.'.join(parts)}: no such module"


@cache
def options() -> frozenset[str]:
    """The options of all commands."""
    found = set(OTHERS_OPTIONS)
    for words in subcommands():
        command = cli._load(words.split()[0])
        for word in words.split()[1:]:
            command = command.commands[word]  # type: ignore[attr-defined]
        found |= {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_of_code_exist(page: Path) -> None:
    wrong = [said for name in names(page) if (said := wrong_with(name))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name == "docs"],
                         ids=lambda page: page.name)
def test_options_exist(page: Path) -> None:
    ours = [name for name in names(page) if name.startswith(("--", "taro "))]
    used = {word for name in ours for word in re.findall(r"--[a-z][\w-]*", name)}
    assert used <= options(), f"no command has {sorted(used - options())}"


def test_what_the_changelog_says_moved_is_there() -> None:
    """The last column of its table holds modules and names; `old`: A, B in the first says what of a module moved."""
    section = CHANGELOG.read_text(encoding="utf-8").partition("### Moved")[2].partition("###")[0]
    rows = re.findall(r"^\| (`.*) \| (.*) \|$", section, re.M)
    assert len(rows) > 100
    wanted = [name for _, now in rows for name in re.findall(r"`(taro(?:\.\w+)+)`", now)]
    for was, now in rows:
        if found := re.fullmatch(r"`[\w.]+`: (\w+(?:, \w+)*)", was):
            wanted += [f"{now.strip('`')}.{name}" for name in found[1].split(", ")]
    wrong = [said for name in wanted if (said := wrong_attribute(name.split(".")))]
    assert not wrong, "\n".join(wrong)


def test_the_arrows_are_the_guards() -> None:
    """CONTRIBUTING.md shows what tests/test_guard.py checks."""
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ([\w, ]*) ?\|$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.M)
    shown = {folder: set(re.findall(r"\w+", may)) for folders, may in rows for folder in re.findall(r"\w+", folders)}
    everything = set(MAY_IMPORT) - {"cli"}
    assert {**shown, "cli": everything} == MAY_IMPORT


def test_the_comparison_by_hand() -> None:
    """What the tests above rest on."""
    assert wrong_with("taro/core/draws.py:rng") == "" and "defines no" in wrong_with("taro/core/draws.py:rgn")
    assert "no such file" in wrong_with("taro/core/draw.py") and wrong_with("tests/docs/test_names.py") == ""
    assert wrong_with("taro.core.draws.rng") == "" and "has no" in wrong_with("taro.core.draws.rgn")
    assert wrong_with("test_names_of_code_exist") == "" and wrong_with("test_no_such") and wrong_with("a word") == ""
    assert {"--limit", "--partition"} <= options()
