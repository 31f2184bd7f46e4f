"""`import taro`: instant, lazy, honest about names; and the guard against modules that hide the stages."""

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

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "numpy", "pydantic", "typer", "av", "decord", "open_clip", "webdataset", "datasets")


def python(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs the tests' own interpreter in `cwd`; taro is found as a user's process finds it, or beside the tests."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    return subprocess.run([sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


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
        for alias in node.names:
            is_module = importlib.util.find_spec(f"{node.module}.{alias.name}") if node.module == "train" else None
            typed[alias.asname or alias.name] = (f"train.{alias.name}", "") if is_module else (node.module, alias.name)
    assert typed == taro._LAZY
    assert taro.__all__ == ["__version__", *sorted(taro._LAZY)]


@pytest.mark.parametrize("name", sorted(taro._LAZY))
def test_every_lazy_name_is_the_stage_s_own(name: str) -> None:
    module, attribute = taro._LAZY[name]
    owner = importlib.import_module(module)
    assert getattr(taro, name) is (getattr(owner, attribute) if attribute else owner)
    assert name in dir(taro)


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known() -> None:
    with pytest.raises(AttributeError, match=r"'open_shard'.*open_shards"):
        _ = taro.open_shard  # type: ignore[attr-defined]


def test_the_version_is_the_changelog_s() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\d[^\]]*)\] - \d{4}-\d\d-\d\d$", text, flags=re.MULTILINE)
    assert versions[0] == taro.__version__
    assert len(set(versions)) == len(versions)


@pytest.mark.parametrize("hidden", ["train", "shards", "preprocess"])
def test_a_user_s_module_that_hides_a_stage_is_named(tmp_path: Path, hidden: str) -> None:
    """With a user's train.py first on the path, the lazy table raises one error with both files; the rest works."""
    theirs = tmp_path / f"{hidden}.py"
    theirs.write_text("raise SystemExit('this file must not run')\n")
    name = {"train": "rewards", "shards": "open_shards", "preprocess": "PreprocessConfig"}[hidden]
    code = (
        f"import taro; from taro.errors import TaroError; print(taro.Moment(0, 1).duration_s)\ntry: taro.{name}\n"
        "except TaroError as error: print(error)"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1")
    assert str(theirs) in done.stdout and str(ROOT / hidden / "__init__.py") in done.stdout


def test_the_command_line_names_the_hiding_file(tmp_path: Path) -> None:
    """`python -m taro train` beside a user's own train.py: exit 1, one message, both files, their file not run."""
    theirs = tmp_path / "train.py"
    theirs.write_text("print('their train.py ran')\n")
    done = python("-m", "taro", "train", "whatever", cwd=tmp_path)
    assert done.returncode == 1
    assert str(theirs) in done.stderr and str(ROOT / "train" / "__init__.py") in done.stderr
    assert "Traceback" not in done.stderr and "their train.py ran" not in done.stdout


def test_a_script_that_is_called_train(tmp_path: Path) -> None:
    """The most likely case: the user's script itself is train.py and asks taro for the rewards."""
    script = tmp_path / "train.py"
    script.write_text("import taro\ntaro.rewards\n")
    done = python(str(script), cwd=tmp_path)
    assert done.returncode == 1 and f"TaroError: {script} hides taro's own package" in done.stderr


def test_training_imports_without_the_decoding_libraries() -> None:
    """Reader, loop, evaluation and command of stage 2 import where decord, av, webdataset, open_clip, datasets and
    pyarrow are absent."""
    absent = ["decord", "av", "webdataset", "open_clip", "datasets", "pyarrow"]
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); from without import hide; hide({absent!r})\n"
        "import taro, taro.commands.train, taro.mllm, train.evaluate, train.grpo, shards.reader\n"
        "assert taro.train and taro.open_shards and taro.load_policy; print('imported')"
    )
    done = python("-W", "default", "-c", code)
    assert done.stdout == "imported\n", done.stderr


@pytest.mark.parametrize(
    ("system", "machine", "wanted"),
    [("Linux", "x86_64", True), ("Windows", "AMD64", True), ("Linux", "aarch64", False), ("Darwin", "arm64", False)],
)
def test_decord_is_asked_for_only_where_it_has_a_wheel(system: str, machine: str, wanted: bool) -> None:
    """Elsewhere the installation must not fail over it; PyAV, which has wheels everywhere, is always asked for."""
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {item.name for item in map(Requirement, project["dependencies"])
             if item.marker is None or item.marker.evaluate({"platform_system": system, "platform_machine": machine})}
    assert ("decord" in asked) is wanted
    assert {"av", "torch", "transformers", "open_clip_torch", "webdataset", "datasets"} <= asked


def test_the_package_annotations_is_not_hidden_by_the_future_feature_of_that_name() -> None:
    from taro import annotations

    assert annotations.import_annotations is taro.import_annotations
