"""Every page of docs/ runs: its commands in order in a fresh folder, its outputs and tables as the page shows them.

All pages begin with what docs/commands/README.md makes: world/, shards/ and run/. To write outputs and tables anew:
`python -m tests.docs --update`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, functions
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


def test_every_command_has_a_page_with_its_options_and_an_output() -> None:
    """A page for each command of the front door, a table of options for each that does something."""
    for words in functions():
        page = DOCS / "commands" / f"{words.split()[0]}.md"
        assert page.is_file(), f"taro {words} needs a page: {page}"
        text = page.read_text(encoding="utf-8")
        assert f"<!-- options: taro {words} -->" in text, f"{page.name} has no table of options of taro {words}"
        assert "exit code" in text.lower(), f"{page.name} does not tell exit codes"
