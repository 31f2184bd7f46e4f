"""README and docs say what is so: commands exist and run, links lead somewhere, the tree is the tree."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from taro.cli import app as cli
from tests.cli.test_cli import unknown_options
from tests.docs.pages import README, ROOT, SKIP_MARKS, all_pages, blocks, commands

PAGES = all_pages()
TOOLS = {"python", "pip", "git", "cd", ".ci/run", "torchrun", "sbatch", "cp", "mv", "ls", "cat", "head", "tail", "find",
         "printf", "mkdir", "grep", "rm", "export", "hf", "tar", "wc"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_on_every_page_exist(page: Path) -> None:
    """Each `taro` line names a command and options that exist, each `make` line a target."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for block in blocks(page):
        for line in commands(block.text) if block.language == "bash" else []:
            words = shlex.split(line.split("\n")[0], comments=True)
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words = words[1:]
            if words[0] == "taro" and words[1] in cli.COMMANDS:
                piped = words.index("|") if "|" in words else None
                assert unknown_options(words[1:piped]) == [], f"{page.name}: {line}"
            elif words[0] == "make":
                assert {word for word in words[1:] if "=" not in word} <= set(targets), f"{page.name}: {line}"
            else:
                front = words[0] == "taro" and (words[1].startswith("--") or block.mark == "exit 2")
                assert words[0] in TOOLS or front, f"{page.name}: what is this? {line}"


def test_no_gap_is_left_in_the_readme() -> None:
    """Figures come from runs; a place that waits for one is marked and must be filled before a release."""
    assert "GAP" not in README.read_text(encoding="utf-8")


def test_the_tree_is_the_tree() -> None:
    """The README's tree ends the page, names every folder of the packages, and none that is not there."""
    tree = blocks(README)[-1]
    assert README.read_text(encoding="utf-8").rstrip().endswith(f"{tree.text}```")
    folder, named = [""], set()
    for line in tree.text.splitlines():
        indent = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        assert name.endswith("/") and line.strip() != name, f"a folder and what it holds: {line}"
        folder = [*folder[: indent + 1], name]
        named.add("".join(folder))
    there = {f"{path.parent.relative_to(ROOT)}/" for package in ("taro", "shards", "preprocess", "train")
             for path in (ROOT / package).rglob("*.*")
             if path.is_file() and not path.parent.name.startswith("__") and not inside_a_link(path)}
    there = {name for name in there if "/weights/" not in name} | {"taro/sandbox/weights/"}
    assert there <= named, f"the tree does not name {sorted(there - named)}"
    assert all((ROOT / name).is_dir() for name in named), [name for name in named if not (ROOT / name).is_dir()]


def inside_a_link(path: Path) -> bool:
    """Whether a folder on the way is a link, as taro/train is: its files are named once."""
    return any(parent.is_symlink() for parent in path.parents)


@pytest.mark.slow
def test_the_readme_runs(tmp_path: Path) -> None:
    """All bash and python blocks of the README without a skip mark, in order, in an empty folder."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "200"}
    ran = 0
    for block in blocks(README):
        if block.mark.startswith(SKIP_MARKS) or block.language not in {"bash", "python"}:
            continue
        words = ["bash", "-euxc", block.text] if block.language == "bash" else [sys.executable, "-c", block.text]
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{block.text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        ran += 1
    assert ran >= 2
    marked = [block for block in blocks(README) if block.mark]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert all(block.mark.startswith(SKIP_MARKS) for block in marked)
    assert "make test" in ci and "quickstart --steps" in ci
