"""docs/faults.md: every row names a test that exists, or the benchmark."""

from __future__ import annotations

import ast
import re

from tests.docs.pages import DOCS, ROOT

SHORT = {"P": "tests/preprocess/test_faults.py", "T": "tests/train/test_faults.py", "K": "benchmarks/faults.py",
         "C": "benchmarks/crash_points.py"}


def named(cell: str) -> list[tuple[list[str], list[str]]]:
    """(files, beginnings of tests' names in them) of each part, up to a semicolon, of a last column.

    >>> named("K; P, T `small...`; `test_run.py` `two...`")[1:]
    [(['tests/preprocess/test_faults.py', 'tests/train/test_faults.py'], ['small']), (['test_run.py'], ['two'])]
    """
    parts = []
    for part in cell.split(";"):
        quoted = re.findall(r"`([^`]+)`", part)
        files = [SHORT[word] for word in re.findall(r"\b[PTKC]\b", re.sub(r"`[^`]+`", "", part))]
        files += [word for word in quoted if word.endswith(".py")]
        parts.append((files, [word.removesuffix("...") for word in quoted if not word.endswith(".py")]))
    return parts


def test_every_row_names_a_test_that_exists() -> None:
    rows = [row for row in (DOCS / "faults.md").read_text(encoding="utf-8").splitlines()
            if row.startswith("| ") and not row.startswith("| what")]
    assert len(rows) > 20
    for row in rows:
        cell = row.rstrip(" |").split(" | ")[-1]
        for files, beginnings in [] if cell == "the same" else named(cell):
            assert files, row
            for file in files:
                paths = list(ROOT.glob(file if "/" in file else f"tests/*/{file}"))
                assert len(paths) == 1, (file, row)
                tree = ast.parse(paths[0].read_text(encoding="utf-8"))
                names = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
                for beginning in beginnings:
                    assert any(beginning in name for name in names), (file, beginning)
