"""`taro annotations lint` from the front door: what it prints, and how it exits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from taro.cli.app import main

LINES = (
    '{"video": "v", "query": "a", "windows": [[5, 2]]}\n'
    '{"video": "v", "query": "b", "windows": [[1, 2]], "duration": 9}\n'
    '{"video": "v", "query": "c", "windows": [[1, 1]]}\n'
)


def run(capsys: pytest.CaptureFixture[str], *line: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["annotations", "lint", *map(str, line)])
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def test_lint_counts_and_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(LINES)
    code, out, _ = run(capsys, path, "--dataset", "jsonl")
    assert code == 0
    assert "line 3: dropped: window has no length" in out and "line 1: repaired: window swapped" in out
    assert "1 rows have no duration" in out and "give the field duration" in out and "--lengths" not in out
    code, out, _ = run(capsys, path, "--dataset", "jsonl", "--json")
    counts = json.loads(out)["counts"]
    assert (code, counts["lines"], counts["kept"], counts["repaired"], counts["dropped"]) == (0, 3, 1, 1, 1)


def test_lint_fails_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(LINES)
    code, _, err = run(capsys, path, "--dataset", "jsonl", "--lint", "fail")
    assert code == 1 and "2 of 3 lines are not fine" in err and "Traceback" not in err
    code, out, err = run(capsys, path, "--dataset", "charades-sta")
    assert code == 1 and "drop: not a Charades-STA line" in out and "is it a charades-sta file?" in err
    assert run(capsys, path)[0] == 2


def test_lint_asks_for_lengths_where_they_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("3MSZA 24.3 30.4##person turn a light on.\n")
    code, out, _ = run(capsys, path, "--dataset", "charades-sta")
    assert code == 0 and "1 rows have no duration" in out and "give --lengths CSV" in out


def test_lint_maps_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("video,sentence,start,end\nv,a dog,1,2\n")
    code, out, _ = run(capsys, path, "--dataset", "hf", "--column", "query=sentence")
    assert code == 0 and "kept" in out
    assert run(capsys, path, "--dataset", "hf", "--column", "query")[0] == 2
    code, _, err = run(capsys, path, "--dataset", "hf")
    assert code == 1 and "query=sentence" in err


@pytest.mark.parametrize(
    ("asked", "meant"),
    [("csv", "use hf, which reads csv"), ("parquet", "use hf"), ("json", "use hf"),
     ("charades", "did you mean charades-sta?"),
     ("qv_highlights", "did you mean qvhighlights?"), ("time_r1", "did you mean time-r1?"), ("", "expected one of")],
)  # fmt: skip
def test_an_unknown_format_is_answered_with_the_one_that_is_meant(tmp_path: Path, asked: str, meant: str) -> None:
    from taro.annotations import import_annotations
    from taro.core.errors import AnnotationError

    with pytest.raises(AnnotationError, match="no such annotation format") as caught:
        import_annotations(tmp_path, dataset=asked)
    assert meant in str(caught.value)
