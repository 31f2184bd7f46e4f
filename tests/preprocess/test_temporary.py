"""Raw videos for one evaluation: what is wrong with them is told of the user's files, not of a temporary folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from taro.cli.app import app


@pytest.mark.parametrize(
    ("lines", "dataset", "told"),
    [
        (["not json"], "jsonl", "annotations.jsonl: none of its 1 rows became a query (1 annotations: not JSON (li"),
        ([{"video": "v0", "query": "q", "windows": [[0, 1]]}], "charades-sta", "its format is charades-sta"),
        ([{"video": "gone", "query": "q", "windows": [[0, 1]]}], "jsonl", "(1 plan: missing (line 1 'gone': no such"),
        ([{"video": "v0", "query": "q", "windows": [[99, 100]]}], "jsonl", "none of 1 rows became a query (1 wind"),
    ],
)
def test_eval_names_the_users_files(
    tmp_path: Path, tiny_policy: Path, videos: Path, lines: list[object], dataset: str, told: str
) -> None:
    path = tmp_path / "annotations.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    words = ["eval", "--policy", str(tiny_policy), "--videos", str(videos), "--annotations", str(path)]
    result = CliRunner().invoke(app, [*words, "--dataset", dataset, "--device", "cpu"])
    text = " ".join(result.output.split())
    assert result.exit_code == 1 and told in text, text
    assert "taro-eval-" not in text and "Traceback" not in text


def test_a_query_that_cannot_be_used_is_wrong_use(tiny_policy: Path, videos: Path) -> None:
    words = ["ground", str(videos / "v0.mp4"), "x" * 20_001, "--policy", str(tiny_policy), "--device", "cpu"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and "query longer than 20,000" in " ".join(result.output.split())
