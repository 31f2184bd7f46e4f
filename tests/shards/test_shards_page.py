"""docs/shards.md runs, in order, and prints what it says (bytes aside: encoders of videos and pictures differ)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_readme import SKIP_MARKS, blocks, commands

PAGE = Path(__file__).parents[2] / "docs" / "shards.md"
EXACT = ("taro shards stats", "taro shards diff", "taro shards filter", "taro shards sample")


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path) -> None:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "200"}
    found, ran, held = blocks(PAGE), 0, 0
    for at, block in enumerate(found):
        if block.language != "bash" or block.mark.startswith(SKIP_MARKS):
            continue
        printed = ""
        for line in commands(block.text):
            done = subprocess.run(line, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            printed += done.stdout
            ran += 1
        shown = found[at + 1] if at + 1 < len(found) and found[at + 1].language == "" else None
        if shown and block.text.startswith(EXACT):
            for text in shown.text.splitlines():
                if text.strip() != "..." and "bytes" not in text:
                    assert text in printed.splitlines(), f"{block.text}: {text!r} is not in\n{printed}"
                    held += 1
    assert ran >= 11 and held > 30, (ran, held)
