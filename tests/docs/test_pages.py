"""Every page of docs/ runs: its commands in order in a fresh folder, its outputs as the page shows them.

All pages begin with what docs/README.md makes: world/, shards/ and run/. `python -m tests.docs --update` writes outputs
anew.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from taro.cli.app import COMMANDS
from tests.docs.pages import DOCS, all_pages, blocks, commands, subcommands
from tests.docs.runner import START, pages_that_run, run_page

HOW = "\n\nwrite it anew with: python -m tests.docs --update {page} (and read what it wrote)"


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that every page begins with, made by the page that says how."""
    folder = tmp_path_factory.mktemp("docs-start")
    _, held, wrong = run_page(START, folder)
    assert not wrong, "\n".join(wrong) + HOW.format(page=START)
    assert held >= 3 and {"world", "shards", "run"} <= {path.name for path in folder.iterdir()}
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_that_run(), ids=lambda page: str(page.relative_to(DOCS)))
def test_a_page_runs_and_prints_what_it_shows(page: Path, start: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    shutil.copytree(start, folder, symlinks=True)
    _, _, wrong = run_page(page, folder)
    assert not wrong, "\n".join(wrong) + HOW.format(page=page)


def test_every_command_has_a_page_that_uses_it() -> None:
    """docs/README.md has a row for each command of the front door, and the pages it links to show each subcommand."""
    rows = dict(re.findall(r"^\| `taro (\w+)` \|(.*)", START.read_text(encoding="utf-8"), re.M))
    assert set(rows) == set(COMMANDS)
    for words in subcommands():
        pages = re.findall(r"\]\(([\w-]+\.md)", rows[words.split()[0]])
        lines = [line for page in pages for block in blocks(DOCS / page) if block.language == "bash"
                 for line in commands(block.text)]
        assert any(line.startswith(f"taro {words}") for line in lines), f"{pages} do not show taro {words}"


def test_a_page_can_be_read_to_its_end() -> None:
    """References in which one looks things up may be longer."""
    references = {"settings.md", "what-to-do-when.md", "log.md", "shard-format.md", "CHANGELOG.md"}
    long = {page.name: n for page in all_pages() if page.name not in references
            and (n := len(page.read_text(encoding="utf-8").split())) > 2000}
    assert not long, f"pages of more than 2,000 words: {long}"
