"""The guard of the house's common names: `train`, `shards` and `preprocess` must be ours.

The import packages have short names, and a user's own `train.py` beside a script hides ours: Python searches the
script's folder first. Whatever came of that would be an AttributeError far from its cause, so `taro` looks before it
imports a stage and names both files. Nothing is imported to find out.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from taro.errors import TaroError

__all__ = ["STAGES", "check_stages"]

STAGES = ("preprocess", "shards", "train")


def check_stages(*names: str) -> None:
    """Raises TaroError where one of the packages `names` (all three by default) would be found elsewhere than beside
    `taro`, or not at all; the message names both files and what to do."""
    house = Path(__file__).resolve().parents[1]
    for name in names or STAGES:
        ours = house / name / "__init__.py"
        found = _origin(name)
        if found is None:
            raise TaroError(f"{name}: expected taro's own package at {ours}, found none; reinstall taro-vtg")
        if found != ours:
            raise TaroError(
                f"{found} hides taro's own package {ours}: Python finds it first under the name '{name}'. "
                f"Rename that file or folder, or run from another folder."
            )


def _origin(name: str) -> Path | None:
    module = sys.modules.get(name)
    if module is not None:
        file = getattr(module, "__file__", None)
        return Path(file).resolve() if file else None
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.has_location or spec.origin is None:
        return None
    return Path(spec.origin).resolve()
