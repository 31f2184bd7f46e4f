"""`taro preprocess` as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from taro.cli.app import app
from taro.preprocess.config import PreprocessConfig

Make = Callable[..., PreprocessConfig]


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["preprocess", *words])
    return result.exit_code, result.output


@pytest.fixture
def recipe(job: Make, tmp_path: Path) -> str:
    """The job as a YAML file (JSON is YAML)."""
    path = tmp_path / "recipe.yaml"
    path.write_text(job().model_dump_json())
    return str(path)


def test_dry_run_then_job_then_nothing_left_to_do(recipe: str, tmp_path: Path) -> None:
    code, text = run(recipe, "--dry-run")
    assert code == 0 and "12 annotation rows" in text and not (tmp_path / "out").exists()
    code, text = run(recipe, "--json")
    assert code == 0
    report = json.loads(text)
    assert report["complete"] and (report["inputs"], report["written"], report["made"]) == (12, 12, 3)
    code, text = run(recipe)
    assert code == 0 and "(0 made now)" in text and "taro shards verify" in text


def test_what_is_wrong_is_one_message(recipe: str, tmp_path: Path) -> None:
    for words, code, message in [
        (["no-such-recipe"], 1, "no such recipe; give a .yaml file or one of"),
        ([recipe, "--set", "segmentt.method=clip"], 1, "did you mean segment"),
        ([recipe, "--set", "caption.method=transformers"], 1, "caption.model"),
        ([recipe, "--set", f"videos={tmp_path}/nowhere"], 1, "no such folder"),
        ([recipe, "--set", f"annotations={tmp_path}/nowhere"], 1, "no such file"),
        ([recipe, "--policy", f"{tmp_path}/nowhere"], 1, "no such model folder"),
        ([recipe, "--policy", str(tmp_path)], 1, "no config.json; expected a Hugging Face model folder"),
        ([recipe, "--only", "features"], 1, "run without it first"),
        ([recipe, "--set", "device=cuda:9"], 1, "device"),
        ([recipe, "--partition", "3/2"], 2, "expected I/N"),
        ([recipe, "--only", "features", "--retry", "transient"], 1, "run one, then the other"),
        ([recipe, "--dry-run", "--retry", "transient"], 2, "--dry-run counts all that is left"),
        ([recipe, "--dry-run", "--partition", "2/3"], 2, "--dry-run counts all that is left"),
        ([recipe, "--retry", "everything"], 2, "transient"),
    ]:
        got, text = run(*words)
        assert got == code, (words, text)
        assert message in text and "Traceback" not in text, (words, text)
