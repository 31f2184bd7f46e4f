"""The programs of benchmarks/ import names that exist, and none in a circle; running them takes minutes to hours."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "benchmarks").glob("*.py"))


def imports(path: Path) -> list[tuple[str, str]]:
    """(module, name) of every `from module import name` of ours."""
    return [(node.module, alias.name) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and node.module for alias in node.names
            if node.module.partition(".")[0] in {"taro", "tests", "benchmarks"}]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_a_program_imports_is_there(path: Path) -> None:
    for module, name in imports(path):
        loaded = importlib.import_module(module)
        assert hasattr(loaded, name) or importlib.import_module(f"{module}.{name}"), f"{module} has no {name}"


def test_no_program_imports_in_a_circle() -> None:
    names = {f"benchmarks.{path.stem}" for path in FILES}
    left = {f"benchmarks.{path.stem}": {named for module, name in imports(path)
                                        for named in (module, f"{module}.{name}") if named in names} for path in FILES}
    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert not left
