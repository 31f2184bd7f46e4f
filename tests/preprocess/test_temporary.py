"""Raw videos for one evaluation: what is wrong with them is told of the user's files, not of a temporary folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from taro.cli.app import app
from tests.helpers_video import write_video


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


def test_frames_far_from_the_times_that_are_told_are_warned_about(
    tiny_policy: Path, tmp_path: Path, videos: Path
) -> None:
    """By both commands, on stderr: what --json prints stays JSON. Names that no annotation can hold do not matter."""
    name = os.fsdecode(b" odd\n.\xff ")
    write_video(tmp_path / "v.mp4", 46, fps=10, ticks=[*range(40), *(40 + 100 * i for i in range(6))]).rename(
        tmp_path / name)  # fmt: skip
    policy = ["--policy", str(tiny_policy), "--device", "cpu", "--max-new-tokens", "4", "--json"]
    result = CliRunner().invoke(app, ["ground", str(tmp_path / name), "a dog", *policy])
    assert "warning: 1 clips of variable rate" in result.stderr, result.output
    assert json.loads(result.stdout)["duration_s"] > 50
    shutil.copy(tmp_path / name, tmp_path / "v.mp4")
    rows = [{"video": "v.mp4", "query": "a dog", "windows": [[0, 1]]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) for row in rows))
    words = ["eval", "--videos", str(tmp_path), "--annotations", str(tmp_path / "a.jsonl"), *policy]
    result = CliRunner().invoke(app, words)
    assert "warning: 1 clips of variable rate" in result.stderr and json.loads(result.stdout)["queries"] == 1
    result = CliRunner().invoke(app, ["ground", str(videos / "v0.mp4"), "a dog", *policy])
    assert "warning" not in result.stderr and json.loads(result.stdout)["video"]
