"""What a wheel and an sdist hold, by hatchling's own choice of files; .ci/run builds, installs and runs both."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("preprocess", "shards", "train")


def files_of(builder: type[WheelBuilder] | type[SdistBuilder]) -> list[str]:
    """Paths inside the archive that `builder` would write."""
    found: Iterable[str] = (str(file.distribution_path) for file in builder(str(ROOT)).recurse_included_files())
    return sorted(found)


def ours(folder: str) -> set[str]:
    """Files of a folder at the top, by their place in the package."""
    inside = folder if folder == "taro" else f"taro/{folder}"
    return {f"{inside}/{path.relative_to(ROOT / folder)}" for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
            and not any(parent.is_symlink() for parent in path.parents)}


def test_the_wheel_holds_the_package_and_nothing_beside_it() -> None:
    files = files_of(WheelBuilder)
    assert set(files) == set[str]().union(*(ours(folder) for folder in ("taro", *STAGES)))
    assert len(files) == len(set(files))
    assert {"taro/py.typed", "taro/train/recipes/taro-7b.yaml", "taro/preprocess/recipes/sandbox.yaml",
            "taro/grounding/templates/taro.yaml", "taro/sandbox/weights/policy/model.safetensors"} <= set(files)
    assert all(f"taro/{stage}/__init__.py" in files for stage in STAGES)


def test_the_sdist_holds_the_stages_once_and_what_a_build_needs() -> None:
    files = files_of(SdistBuilder)
    assert {file for file in files if file.startswith("taro/")} == set(files_of(WheelBuilder))
    assert {file.partition("/")[0] for file in files} == {"taro", "docs", "README.md", "CHANGELOG.md", "LICENSE",
                                                          "pyproject.toml"}


@pytest.mark.parametrize("key", ["readme", "license-files"])
def test_files_that_the_metadata_names_are_in_the_sdist(key: str) -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][key]
    assert set([named] if isinstance(named, str) else named) <= set(files_of(SdistBuilder))
