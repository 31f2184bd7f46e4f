"""Runs a module as if some packages were not installed: `python tests/without.py av decord -- pytest tests/x.py`.

Exact about absence: the finder of the path does not see them, so `import av` raises ModuleNotFoundError and
`importlib.util.find_spec("av")` is None, as on a machine that lacks them.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import runpy
import sys
from collections.abc import Sequence
from types import ModuleType


def hide(names: Sequence[str]) -> None:
    """Makes the top-level packages `names` impossible to find from now on."""
    hidden = frozenset(names)

    class Without(importlib.machinery.PathFinder):
        @classmethod
        def find_spec(
            cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
        ) -> importlib.machinery.ModuleSpec | None:
            if fullname.partition(".")[0] in hidden:
                return None
            return importlib.machinery.PathFinder.find_spec(fullname, path, target)

    for i, finder in enumerate(sys.meta_path):
        if finder is importlib.machinery.PathFinder:
            sys.meta_path[i] = Without
    loaded = hidden & set(sys.modules)
    assert not loaded, f"imported before they were hidden: {loaded}"
    assert all(importlib.util.find_spec(name) is None for name in hidden)


def main() -> None:
    """`NAMES -- MODULE ARGS`: hides NAMES, then runs `python -m MODULE ARGS` in this process."""
    at = sys.argv.index("--")
    hide(sys.argv[1:at])
    sys.argv = sys.argv[at + 1 :]
    sys.path[0] = ""  # as `python -m` has it, not this script's folder
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
