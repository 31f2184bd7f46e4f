"""Every command on a terminal, fed with hostile names, captions, queries and responses: shown, never obeyed."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from taro.cli import app as cli
from taro.models.resolve import resolve_model
from tests.helpers_terminal import on_a_terminal

EVIL = "\x1b[2J\x1b]0;owned\x07\u202egnp\rOVER\nFAKE: all right\x9b31m\u2028\x1b[8m[bold]x[[bold]"
"""erase, title, bell, right to left, back to the line's start, a line of its own, C1, a line separator, concealed"""
RUN = """
import json, sys
from taro.cli.app import main
for words in json.loads(sys.argv[1]):
    code = 0
    try:
        main(words)
    except SystemExit as stop:
        code = stop.code
    print("@@", json.dumps([words[:2], code]))
"""
QUICK = ["--set", "length.amount=1", "--set", "rollout.prompts=1", "--set", "rollout.group=2",
         "--set", "rollout.max_new_tokens=48", "--set", "rollout.min_free_tokens=24"]


def assert_harmless(got: str) -> None:
    """Nothing of `EVIL` reached the terminal as more than its writing."""
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029]", got)
    for payload in ("\x1b[2J", "\x1b]", "\x1b[8m", "\rOVER"):
        assert payload not in got, got[max(0, got.index(payload) - 200):][:400]
    assert not re.search(r"^FAKE", got, re.MULTILINE), "further lines of a message are indented"


def run(lines: list[list[str]], cwd: Path) -> dict[str, int]:
    """Runs command lines on one terminal; exit codes by the first two words."""
    got = on_a_terminal([sys.executable, "-c", RUN, json.dumps(lines)], cwd=cwd, plain=False)
    assert_harmless(got)
    codes = [json.loads(line.partition("@@ ")[2]) for line in got.split("\n") if "@@ [" in line]
    assert len(codes) == len(lines), got[-3000:]
    assert "Traceback" not in got and "[U+001B]" in got, got[-3000:]
    return {" ".join(words).replace(EVIL, "EVIL"): code for words, code in codes}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a hostile name: a policy whose responses are hostile, hostile annotations and captions."""
    here = tmp_path_factory.mktemp("terminal") / EVIL
    shutil.copytree(resolve_model("sandbox:policy"), here / f"policy{EVIL}")
    file = here / f"policy{EVIL}" / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    words = {" the", " a", " is", "From", " From"}
    tokenizer["model"]["vocab"] = {word + EVIL if word in words else word: number
                                   for word, number in tokenizer["model"]["vocab"].items()}
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    return here


@pytest.mark.slow
def test_every_command_is_harmless(place: Path) -> None:
    pytest.importorskip("av")
    policy, shards, out = f"policy{EVIL}", f"shards{EVIL}", f"run{EVIL}"
    assert run([["sandbox", "make", f"world{EVIL}", "--videos", "2", "--seed", "7", "--queries", "1"]], place) == {
        "sandbox make": 0}
    videos = place / f"world{EVIL}" / "videos"
    rows, captions = [], []
    for number, video in enumerate(sorted(videos.glob("*.mp4"))):
        name = f"{number}.mp4"
        (videos / EVIL).mkdir(exist_ok=True)
        video.rename(videos / EVIL / name)
        rows += [{"video": name, "query": f"it moves {number} {EVIL}", "windows": [[0, 2 + number]],
                  "qid": f"{number}", "split": f"s{number}"},
                 {"video": EVIL, "query": EVIL, "windows": [[0, 1]], "qid": EVIL}]
        captions.append({"video": name, "captions": [{"start_s": 0, "end_s": 2, "text": EVIL * 9}]})
    for file, lines in (("a", rows), ("captions", captions)):
        (place / f"{file}{EVIL}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = ["--set", f"videos={json.dumps(str(videos))}", "--set", f"annotations={json.dumps(f'a{EVIL}.jsonl')}",
            "--set", f"caption.file={json.dumps(f'captions{EVIL}.jsonl')}", "--set", "caption.method=file",
            "--set", "clip_model=null", "--set", "segment.method=uniform", "--set", "paths.count=2",
            "--set", "max_skipped=1", "--set", "dataset=jsonl", "--policy", policy, "--out", shards]
    answers = [{"query_id": "0", "predicted": [0, 1], EVIL: EVIL}, {"query_id": EVIL, "predicted": None}]
    (place / f"answers{EVIL}").write_text("".join(json.dumps(line) + "\n" for line in answers))
    asked = ["--policy", policy, "--max-new-tokens", "48"]
    codes = run([
        ["annotations", "lint", f"a{EVIL}.jsonl", "--dataset", "jsonl"],
        ["preprocess", "sandbox", *made, "--dry-run"], ["preprocess", "sandbox", *made],
        ["shards", "info", shards], ["shards", "verify", shards], ["shards", "stats", shards],
        ["shards", "sample", shards], ["shards", "view", shards, "--out", f"page{EVIL}"],
        ["shards", "filter", shards, f"part{EVIL}", "--split", "s0"], ["shards", "diff", shards, f"part{EVIL}"],
        ["shards", "split", shards, f"parts{EVIL}", "--by", "split"],
        ["shards", "merge", f"parts{EVIL}/s0", f"parts{EVIL}/s1", f"both{EVIL}"],
        ["train", "quickstart", "--set", f"policy={json.dumps(policy)}", "--set", f"shards={json.dumps(shards)}",
         "--set", f"out={json.dumps(out)}", "--set", "data.split=s0", *QUICK],
        ["report", out], ["eval", *asked, "--shards", shards, "--breakdown"],
        ["eval", "--predictions", f"answers{EVIL}", "--annotations", f"a{EVIL}.jsonl"],
        ["ground", str(videos / EVIL / "0.mp4"), f"it moves {EVIL}", *asked],
        ["sensitivity", *asked, "--shards", shards, "--group", "2", "--kinds", "patch", "--radius", "1"],
    ], place)
    wrong = {words: code for words, code in codes.items() if code != (words == "shards diff")}
    assert all(words.startswith("ground") for words in wrong), wrong  # a response may hold no moment
    assert {words.split()[0] for words in codes} >= set(cli.COMMANDS) - {"quickstart", "sandbox", "config"}


def test_what_is_refused_is_harmless(place: Path) -> None:
    """A hostile word as command, argument, option and value, given to every command."""
    (place / EVIL).mkdir()
    (place / EVIL / "file").touch()
    lines = [words for name in sorted(cli.COMMANDS) if name != "quickstart" for words in (
        [name, EVIL], [name, f"--{EVIL}"], [name, EVIL, EVIL, EVIL, EVIL], [name, "--limit", EVIL],
        [name, EVIL, "--policy", EVIL, "--shards", EVIL], [name, EVIL, "--dataset", EVIL], [f"{name}{EVIL}"])]
    codes = run([*lines, ["quickstart", "--out", EVIL], ["quickstart", "--seed", EVIL]], place)
    assert set(codes.values()) <= {1, 2}, codes
