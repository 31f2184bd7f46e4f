"""Untrusted text on a terminal: shown, never obeyed."""

from __future__ import annotations

import ast
import contextlib
import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taro.cli.app import main
from taro.cli.progress import progress
from taro.core.text import visible

ROOT = Path(__file__).resolve().parents[2]
EVIL = "\x1b[2J\x1b]0;owned\x07\u202egnp.exe\r\x9b31m[bold]x[/bold]\u2028"


BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


@given(st.text())
def test_nothing_that_moves_a_cursor_is_left(text: str) -> None:
    shown = visible(text)
    kinds = {unicodedata.category(char) for char in shown if char not in "\n\t"}
    assert not kinds & {"Cc", "Cs", "Zl", "Zp"} and not {unicodedata.bidirectional(char) for char in shown} & BIDI
    assert shown == text or "[U+" in shown
    assert visible(shown) == shown and shown.encode().decode() == shown


def test_honest_texts_stay_as_they_are() -> None:
    for text in ("a dog", "\u00fcber", "\u3053\u3093\u306b\u3061\u306f", "\U0001f468\u200d\U0001f469\u200d\U0001f467",
                 "\u0645\u06cc\u200c\u0631\u0648\u0645", "two\nlines\tand a tab", "[bold]x[/bold]"):  # fmt: skip
        assert visible(text) == text


def fine(text: str) -> bool:
    return visible(text) == text


def test_every_command_prints_through_say() -> None:
    """`say` makes texts visible; what prints beside it would not."""
    beside, files = [], sorted((ROOT / "taro" / "cli").glob("*.py"))
    assert len(files) > 10
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in {"typer.echo", "typer.secho", "click.echo", "print", "Console"} and path.name != "output.py":
                beside.append(f"{path.name}:{node.lineno}: {called}")  # type: ignore[attr-defined]
    assert not beside


def test_errors_are_shown_not_obeyed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = tmp_path / EVIL.replace("/", "")
    evil.mkdir()
    (evil / "manifest.json").write_text("{}")
    for line in (["shards", "info", str(evil)], ["shards", "verify", str(evil)], ["report", str(evil)],
                 ["annotations", "lint", str(evil), "--dataset", "jsonl"], ["train", str(evil / "a.yaml")],
                 ["train", str(evil)], ["eval", "--policy", str(evil), "--shards", str(evil)]):  # fmt: skip
        with pytest.raises(SystemExit):
            main(line)
        out, err = capsys.readouterr()
        assert fine(out) and fine(err) and "[U+001B]" in out + err, line


def test_what_lint_says_of_a_file_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"video": EVIL, "query": EVIL, "windows": [[0, 1]]}, {"video": "v", "query": EVIL, "windows": EVIL},
            {"video": "v", "query": EVIL, "qid": EVIL, "windows": [[0, 1]], EVIL: 1}]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for policy in ("repair", "drop", "fail"):
        with contextlib.suppress(SystemExit):
            main(["annotations", "lint", str(tmp_path / "a.jsonl"), "--dataset", "jsonl", "--lint", policy])
        out, err = capsys.readouterr()
        assert fine(out) and fine(err)


def test_progress_does_not_obey_either(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("working") as shown:
        shown.say(EVIL)
    err = capsys.readouterr().err
    assert fine(err) and "[bold]x[/bold]" in err.replace("\n", "")


def test_ids_of_a_predictions_file_are_shown_and_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = EVIL + "x" * 100_000
    (tmp_path / "truth").write_text(json.dumps({"video": "v", "query": "q", "qid": 1, "windows": [[0, 1]]}) + "\n")
    for ids in ([1, long], [1, long, long], [{long: 1}]):
        rows = [{"query_id": one, "predicted": None, long: 0} for one in ids]
        (tmp_path / "answers").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with contextlib.suppress(SystemExit):
            main(["eval", "--predictions", str(tmp_path / "answers"), "--dataset", "jsonl", "--annotations",
                  str(tmp_path / "truth")])  # fmt: skip
        out, err = capsys.readouterr()
        assert fine(out) and fine(err) and 0 < len(out + err) < 5_000
