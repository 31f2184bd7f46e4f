"""The stages are reached by links inside taro/: what a copy without them says, and that git keeps links."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("preprocess", "shards", "train")


def test_the_stages_are_relative_links() -> None:
    assert {stage: (ROOT / "taro" / stage).readlink() for stage in STAGES} == {
        stage: Path("..") / stage for stage in STAGES}


@pytest.mark.parametrize("code", ["import taro", "import taro.train", "from taro import open_shards",
                                  "from taro.cli.app import main"])
def test_a_checkout_without_links_says_so(tmp_path: Path, code: str) -> None:
    """Where git or an archive could not make a link there is a text file that holds its target; a wheel that was built
    from such a checkout holds it too."""
    shutil.copytree(ROOT / "taro", tmp_path / "taro", symlinks=True, ignore=shutil.ignore_patterns("weights"))
    for stage in STAGES:
        (tmp_path / "taro" / stage).unlink()
        (tmp_path / "taro" / stage).write_text(f"../{stage}")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True)
    said = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert said.startswith(f"ImportError: {tmp_path / 'taro' / 'preprocess'}: expected a folder")
    assert "git clone -c core.symlinks=true" in said and "Linux or macOS" in said
