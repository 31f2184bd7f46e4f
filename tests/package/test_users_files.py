"""Whatever files stand beside a user's script, under our stages' names: taro is itself, and none of them is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import taro
from tests.package.test_import import python

USERS = """
import json, sys
import taro, taro.preprocess.config, taro.shards.reader, taro.train.rewards
from taro import PreprocessConfig, TrainConfig, open_shards
print(json.dumps([m.__file__ for m in (taro, taro.preprocess.config, taro.shards.reader, taro.train.rewards)]))
print(sorted({"train", "shards", "preprocess", "tests"} & set(sys.modules)))
"""


@pytest.fixture
def users_folder(tmp_path: Path) -> Path:
    """A folder in which the user has files and packages of their own under our stages' names."""
    for name in ("train", "preprocess"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('this file must not run')\n")
    for name in ("shards", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('this package must not run')\n")
    return tmp_path


def check_ours(output: str) -> None:
    """What `USERS` printed: our files, and none of the user's loaded."""
    files, loaded = output.strip().splitlines()[-2:]
    assert all(Path(file).is_relative_to(Path(taro.__file__).parent) for file in json.loads(files))
    assert loaded == "[]"


def test_a_users_files_of_the_stages_names_change_nothing(users_folder: Path) -> None:
    """A script that is itself called train.py, and `python -m taro` in such a folder."""
    (users_folder / "train.py").write_text(USERS)
    done = python(str(users_folder / "train.py"), cwd=users_folder)
    assert done.returncode == 0, done.stderr
    check_ours(done.stdout)
    (users_folder / "train.py").write_text("raise SystemExit('this file must not run')\n")
    (users_folder / "a.jsonl").write_text('{"video": "a.mp4", "query": "x", "windows": [[0, 1]], "duration": 5}\n')
    done = python("-m", "taro", "annotations", "lint", "a.jsonl", "--dataset", "jsonl", cwd=users_folder)
    assert done.returncode == 0 and "1" in done.stdout, done.stderr
    done = python("-m", "taro", "train", "sandbox", "--set", "out=run", "--set", "shards=nowhere", cwd=users_folder)
    assert done.returncode == 1 and "nowhere" in done.stderr and "must not run" not in done.stderr


def test_under_torchrun_beside_a_users_files(users_folder: Path) -> None:
    (users_folder / "script.py").write_text(USERS)
    done = python("-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "script.py",
                  cwd=users_folder)
    assert done.returncode == 0, done.stderr
    check_ours(done.stdout)


def test_in_a_notebook_beside_a_users_files(users_folder: Path, tmp_path_factory: pytest.TempPathFactory,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """A real kernel runs a real notebook in that folder."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # Jupyter and IPython leave files there
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "execution_count": None, "outputs": [], "source": USERS}
    notebook = users_folder / "cells.ipynb"
    notebook.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]}))
    done = python("-W", "ignore", "-c", "from nbclient.cli import main; main()", "--inplace", "--timeout=100",
                  str(notebook), cwd=users_folder.parent)
    assert done.returncode == 0, done.stderr
    (output,) = json.loads(notebook.read_text())["cells"][0]["outputs"]
    check_ours("".join(output["text"]))
