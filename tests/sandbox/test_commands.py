"""`taro sandbox` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from taro.cli.app import main


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["sandbox", *words])
    said = capsys.readouterr()
    return int(stopped.value.code or 0), said.out, said.err


def test_make_writes_what_preprocess_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "world"
    code, said, _ = run(capsys, "make", str(out), "--videos", "2", "--seed", "7", "--set", "size_px=56",
                        "--set", "max_events=3", "--queries", "1")  # fmt: skip
    facts = json.loads((out / "world.json").read_text())
    assert (code, facts["videos"], facts["queries"], facts["first_seed"]) == (0, 2, 2, 2_700_000)
    assert (facts["settings"]["size_px"], facts["settings"]["max_events"]) == (56, 3)
    assert "2 videos, 2 queries" in said and f"taro preprocess sandbox --set videos={out}/videos" in said
    assert len(list((out / "videos").glob("*.mp4"))) == 2


@pytest.mark.parametrize(("words", "wanted"), [
    (("--set", "noize=1"), "did you mean noise?"),
    (("--set", "size_px=80"), "multiple of 28"),
    (("--set", "min_events=9"), "must not be below"),
    (("--split", "test", "--seed", "9"), "a seed from 0 to 8"),
    (("--split", " "), "the split is empty"),
])  # fmt: skip
def test_make_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], wanted: str
                                 ) -> None:  # fmt: skip
    code, _, said = run(capsys, "make", str(tmp_path / "x"), *words)
    assert code == 1 and wanted in said and "defect" not in said
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("words", [("make",), ("build", "--quick")])
def test_a_file_in_the_way_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("")
    code, _, said = run(capsys, words[0], str(tmp_path / "file"), *words[1:])
    assert code == 1 and "expected a folder to write" in said


def test_a_build_that_would_take_days_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, said = run(capsys, "build", str(tmp_path / "x"))
    assert code == 1 and "--quick" in said and "--device cuda" in said


def test_a_gpu_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, _, said = run(capsys, "build", str(tmp_path / "x"), "--device", "cuda")
    assert code == 1 and "sees no CUDA GPU" in said


@pytest.mark.parametrize("command", ["make", "build"])
def test_help_teaches_by_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, said, _ = run(capsys, command, "--help")
    assert code == 0 and said.count(f"taro sandbox {command} ") >= 2
