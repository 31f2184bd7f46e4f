"""What an extra brings is needed by that one thing alone, and where it is missing the message names the extra."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = {"hf": "datasets", "decord": "decord", "webdataset": "webdataset", "pandas": "pandas", "train": "tensorboard",
          "lora": "peft", "remote": "obstore", "openai": "openai"}
"""extra -> the package that it brings, by the name under which it is imported"""

USES = {
    "hf": "taro.import_annotations('owner/name', dataset='hf')",
    "decord": "open_job(load_config(PreprocessConfig, 'sandbox', ['decode.decoder=decord'], package=RECIPES))",
    "webdataset": "stream('no set')",
    "pandas": "ShardSet.to_pandas(None)",
    "train": "check_trackers(['tensorboard'])",
    "lora": "check_lora(True)",
    "remote": "taro.open_shards('s3://bucket/set')",
    "openai": "open_job(load_config(PreprocessConfig, 'sandbox', ENDPOINT, package=RECIPES))",
}


def without_extras(code: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` where no package of an extra is installed."""
    hide = (f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
            f"from without import hide; hide({[*EXTRAS.values()]})\n")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", hide + code], cwd=ROOT, env=env, capture_output=True, text=True,
                          timeout=300)


def test_the_table_is_pyproject_s() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name != "dev"}
    assert set(extras) == set(EXTRAS) == set(USES)
    assert all(len(lines) == 1 and lines[0].startswith(EXTRAS[name]) for name, lines in extras.items())
    assert not any(line.startswith(tuple(EXTRAS.values())) for line in project["dependencies"])


def test_every_module_imports_without_extras() -> None:
    done = without_extras("import pkgutil, importlib, taro\n"
                          "names = [found.name for found in pkgutil.walk_packages(taro.__path__, 'taro.')]\n"
                          "for name in names: importlib.import_module(name)\n"
                          "print(len(names) > 100)")
    assert done.stdout == "True\n", done.stderr


def test_a_missing_package_is_named_with_its_extra() -> None:
    """And is looked for before anything else: neither set nor videos nor models are there."""
    done = without_extras(
        "import json, taro; from taro.core.errors import MissingPackageError\n"
        "from taro.preprocess.job import open_job; from taro.shards.stream import stream\n"
        "from taro.core.config import load_config; from taro.preprocess.config import PreprocessConfig\n"
        "RECIPES = 'taro.preprocess.recipes'\n"
        "ENDPOINT = ['caption={method: openai, endpoint: {base_url: http://127.0.0.1:1/v1, model: some}}']\n"
        "from taro.shards.reader import ShardSet; from taro.train.trackers import check_trackers\n"
        "from taro.train.run_dir import check_lora\n"
        "said = {}\n"
        f"for extra, use in {USES!r}.items():\n"
        "    try: eval(use)\n"
        "    except MissingPackageError as error: said[extra] = str(error)\n"
        "print(json.dumps(said))")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert set(said) == set(USES)
    for extra, message in said.items():
        assert f"pip install 'taro-vtg[{extra}]'" in message and EXTRAS[extra] in message, message


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_readme_says_which_part_uses_it(extra: str) -> None:
    rows = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert [row for row in rows if row.startswith(f"| {EXTRAS[extra]}, extra `{extra}` |")]
