"""What the runner of the pages rests on, by hand; and the glossary's order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, Block, blocks_of, commands, output_of, with_output
from tests.docs.runner import differs, plain, run_block, run_line, run_page

PAGE = """# A page
<!-- exit 1 -->
```bash
# a comment
printf 'one\\ntwo\\n' | tail -n 1
cat <<'END'
a \\
b
END
taro shards info nowhere
```
<!-- figures vary -->
```
old
```
text
```json x
{}
```
"""


def block(text: str, mark: str = "") -> Block:
    return Block("", text, mark, 0, 0)


def test_a_page_is_read() -> None:
    first, shown, other = found = blocks_of(PAGE)
    assert (first.mark, shown.mark, other.language) == ("exit 1", "figures vary", "json")
    assert commands(first.text) == ["printf 'one\\ntwo\\n' | tail -n 1", "cat <<'END'\na  b\nEND",
                                    "taro shards info nowhere"]
    assert output_of(found, 0, PAGE) == shown and output_of(found, 1, PAGE) is None
    with pytest.raises(AssertionError, match="does not end"):
        blocks_of("```bash\nx\n")


def test_a_block_runs_and_a_wrong_exit_code_is_said(tmp_path: Path) -> None:
    first = blocks_of(PAGE)[0]
    printed, wrong = run_block(first, tmp_path)
    assert printed[:2] == ["two", "a  b"] and printed[2].startswith("error: nowhere: no such folder") and not wrong
    assert "exit code 1, expected 0" in run_block(Block("bash", first.text, "", 0, 0), tmp_path)[1]
    assert "exit code 0, expected 1" in run_block(Block("bash", "taro --version", "exit 1", 0, 0), tmp_path)[1]
    assert run_line("taro --version | tr a-z A-Z", tmp_path).out.startswith("TARO ")


def test_outputs_are_compared() -> None:
    assert differs(block("a\n...\nd\n"), ["a", "b", "c", "d"]) == ""
    assert "line 3" in differs(block("a\n...\nd\n"), ["a", "b", "c", "e"])
    assert differs(block("took 3 s, 1,024 bytes\n"), ["took  12.5 s, 7 bytes"]) == ""
    assert differs(block("mIoU 34.9\n"), ["mIoU 35.0"])
    assert not differs(block("mIoU 34.9\n", "figures vary"), ["mIoU 35.0"])
    assert differs(block("a\n"), ["a", "b"]) and differs(block("a\nb\n"), ["a"])
    assert differs(block("a\n...\nb\n"), ["a"])
    times = "17.00s to 32.00s, 8 clips"
    assert plain(times, vary=False) == times, "times of a video are compared"


def test_an_update_keeps_what_was_left_out() -> None:
    text = "```\na\n...\nz\n```\nend"
    assert with_output(text, blocks_of(text)[0], ["1", "2", "3", "4"]) == "```\n1\n...\n4\n```\nend"


def test_a_page_is_updated_in_place(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```bash\nprintf 'a\\nb\\n'\n```\n```\nx\n```\n```bash\nprintf c\n```\n```\ny\n```\n")
    assert len(run_page(page, tmp_path)[2]) == 2 and "x" in page.read_text()
    run_page(page, tmp_path, update=True)
    assert run_page(page, tmp_path) == (2, 2, []) and "```\na\nb\n```" in page.read_text()


def test_the_glossary_is_in_order() -> None:
    terms = re.findall(r"^\| .*?\*\*(.+?)\*\*", (DOCS / "glossary.md").read_text(encoding="utf-8"), re.M)
    assert len(terms) > 40 and terms == sorted(terms, key=lambda term: re.sub(r"[^a-z0-9]", "", term.lower()))
