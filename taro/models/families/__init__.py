"""Model families: one file each over the contract in base.py, registered here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from taro.core.errors import ModelError
from taro.models.families.base import Family
from taro.models.families.qwen2_5_vl import QWEN2_5_VL
from taro.models.families.qwen3_vl import QWEN3_VL

__all__ = ["FAMILIES", "family_of"]

FAMILIES = {family.model_type: family for family in (QWEN2_5_VL, QWEN3_VL)}
"""every registered family by the `model_type` of its config.json"""


def family_of(config: Any, folder: Path) -> Family:
    """The family of a loaded config; ModelError where taro does not know it."""
    if config.model_type not in FAMILIES:
        raise ModelError(f"{folder}: model_type is {config.model_type!r}; taro knows {', '.join(sorted(FAMILIES))}. "
                         "docs/families.md tells what a new family needs.")
    return FAMILIES[config.model_type]
