"""`import taro`: instant, lazy, honest about names; each file one module; decord asked for where it has a wheel."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import taro

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "numpy", "pydantic", "typer", "av", "decord", "open_clip", "webdataset", "datasets")


def python(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs the tests' own interpreter in `cwd`; taro is found as a user's process finds it, or beside the tests."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    return subprocess.run([sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=600)


def test_import_taro_loads_nothing_heavy() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import taro; seconds = time.perf_counter() - start\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules]); print(f'{{seconds:.3f}}')"
    )
    done = python("-c", code)
    loaded, seconds = done.stdout.split("\n")[:2]
    print(f"import taro: {seconds} s")
    assert loaded == "[]", done.stderr


def test_the_lazy_table_says_what_type_checkers_read() -> None:
    """The TYPE_CHECKING block and the table are one list of names."""
    tree = ast.parse(Path(taro.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    typed: dict[str, tuple[str, str]] = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names if node.module.startswith("taro.") else ():
            typed[alias.asname or alias.name] = (node.module, alias.name)
    assert typed == taro._LAZY
    assert taro.__all__ == ["__version__", *sorted([*taro._LAZY, "load_recipe"])]


@pytest.mark.parametrize("name", sorted(taro._LAZY))
def test_every_lazy_name_is_the_stage_s_own(name: str) -> None:
    module, attribute = taro._LAZY[name]
    owner = importlib.import_module(module)
    assert getattr(taro, name) is getattr(owner, attribute)
    assert name in dir(taro)


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known() -> None:
    with pytest.raises(AttributeError, match=r"'open_shard'.*open_shards"):
        _ = taro.open_shard  # type: ignore[attr-defined]


def test_the_version_is_the_changelog_s() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\d[^\]]*)\] - \d{4}-\d\d-\d\d$", text, flags=re.MULTILINE)
    assert versions[0] == taro.__version__
    assert len(set(versions)) == len(versions)


def test_nothing_is_loaded_twice() -> None:
    """Links make one file reachable under two paths; it must be one module."""
    code = ("import sys, taro\nfor name in taro.__all__: getattr(taro, name)\n"
            "files = [m.__file__ for n, m in sys.modules.items() if n.startswith('taro') and m.__file__]\n"
            "import os; print(len(files) - len({os.path.realpath(f) for f in files}))")
    assert python("-W", "default", "-c", code).stdout == "0\n"


def test_training_imports_without_the_decoding_libraries() -> None:
    """Reader, loop, evaluation and command of stage 2 import where decord, av, webdataset, open_clip, datasets and
    pyarrow are absent."""
    absent = ["decord", "av", "webdataset", "open_clip", "datasets", "pyarrow"]
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); from without import hide; hide({absent!r})\n"
        "import taro, taro.cli.train, taro.models, taro.train.evaluate, taro.train.loop, taro.shards.reader\n"
        "assert taro.train and taro.open_shards and taro.load_policy; print('imported')"
    )
    done = python("-W", "default", "-c", code)
    assert done.stdout == "imported\n", done.stderr


@pytest.mark.parametrize(
    ("system", "machine", "wanted"),
    [("Linux", "x86_64", True), ("Windows", "AMD64", False), ("Linux", "aarch64", False), ("Darwin", "arm64", False)],
)
def test_decord_is_asked_for_only_where_it_has_a_wheel(system: str, machine: str, wanted: bool) -> None:
    """Elsewhere the installation must not fail over it; PyAV, which has wheels everywhere, is always asked for."""
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["decord"]]
    asked = {item.name for item in map(Requirement, lines)
             if item.marker is None or item.marker.evaluate({"platform_system": system, "platform_machine": machine})}
    assert ("decord" in asked) is wanted
    assert {"av", "torch", "transformers", "open_clip_torch"} <= asked


def test_the_package_annotations_is_not_hidden_by_the_future_feature_of_that_name() -> None:
    from taro import annotations

    assert annotations.import_annotations is taro.import_annotations
