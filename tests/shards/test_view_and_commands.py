"""The page of a set shows what the set says and runs nothing; the commands answer in text, JSON and exit codes."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from taro.cli.app import app
from taro.core.errors import ConfigError, ShardError
from taro.grounding.records import DenseCaption, QueryRecord
from taro.shards.format import MANIFEST, shard_path
from taro.shards.manifest import build_manifest, write_manifest
from taro.shards.view import view
from taro.shards.writer import SliceWriter
from taro.train.report.data import last_rollouts
from tests.shards.helpers_sets import FINGERPRINT, SHEET, record, write_set

HOSTILE = '</title><script>alert(1)</script><img src=x onerror=alert(2)>"\' \u202e{braces}'


class Page(HTMLParser):
    """Tags, attributes and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile_set(root: Path) -> str:
    one = record(1)
    captions = [DenseCaption(start_s=0, end_s=2, text=HOSTILE, alignment=0.5)]
    query = QueryRecord(id=HOSTILE, text=HOSTILE, windows_s=[(0, 1)], paths={"random": [[0]]})
    one = one.model_copy(update={"captions": captions, "queries": [query]})
    one = one.model_copy(update={"video": one.video.model_copy(update={"path_hint": HOSTILE})})
    with SliceWriter(root, 0, kinds=["paths"]) as writer:
        writer.add_clip(one, SHEET, {}, {})
        writer.commit()
    write_manifest(root, build_manifest(root, inputs=1, skipped=0, captions=1, name=HOSTILE))
    return one.key


def run_with(folder: Path, *rows: dict[str, object]) -> Path:
    (folder / "rollouts").mkdir(parents=True)
    for row in rows:
        with (folder / "rollouts" / f"step-{row['step']:06d}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
    return folder


def rollout(key: str, query_id: str, **changes: object) -> dict[str, object]:
    row: dict[str, object] = {
        "step": 0, "key": key, "query_id": query_id, "query": "q", "g": 0, "guided": True,
        "text": "<think>because</think>",
        "forced_tokens": 3, "reward": 1.75, "format": 1.0, "tiou": 0.75, "iou": 0.8, "bonus": 0.0, "drop": 0.125,
        "advantage": -0.5, "predicted": [0.25, 1.5], "windows": [[0, 1]], "duration_s": 4.0}  # fmt: skip
    return row | changes


def test_a_page_of_hostile_texts_runs_nothing_and_loads_nothing(tmp_path: Path) -> None:
    key = hostile_set(tmp_path / "set")
    rows = [rollout(key, HOSTILE, text=HOSTILE, predicted=None, step=HOSTILE, answers=HOSTILE, advantage=HOSTILE),
            rollout(key, HOSTILE, g=HOSTILE, predicted=["<script>", {}], reward=HOSTILE, answers=[[HOSTILE, 1]])]
    text = view(tmp_path / "set", tmp_path / "page", rollouts={(key, HOSTILE): rows}).read_text()
    found = Page(text)
    assert "script" not in found.tags and not [name for name, _ in found.attributes if name.startswith("on")]
    loads = [value for name, value in found.attributes if name in {"src", "href", "srcset", "data"}]
    assert loads and all(value is not None and value.startswith("data:image/jpeg;base64,") for value in loads)
    assert "\u202e" not in text and "[U+202E]" in found.text and "alert(1)" in found.text
    assert text.count("default-src 'none'") == 1


def test_a_page_shows_the_last_group_of_a_query_with_its_numbers(tmp_path: Path) -> None:
    write_set(tmp_path / "set", [[1, 2]])
    key = record(2).key
    run = run_with(tmp_path / "run", rollout(key, "2.0", reward=0.111), rollout(key, "2.0", step=7, reward=1.625),
                   rollout(key, "2.0", step=7, g=1, drop=None, predicted=None))  # fmt: skip
    shown = view(tmp_path / "set", tmp_path / "page.html", rollouts=last_rollouts(run), limit=1)
    found = Page(shown.read_text())
    assert key in found.text and record(1).key not in found.text, "clips with rollouts come first"
    for part in ("rollouts of step 7", "1.625", "0.25s to 1.50s", "no answer", "event 2 of 2", "the 1 event"):
        assert part in found.text
    assert "0.111" not in found.text


def test_a_wrong_key_or_run_is_said(tmp_path: Path) -> None:
    write_set(tmp_path, [[1]])
    with pytest.raises(ShardError, match="no clip nothing"):
        view(tmp_path, tmp_path / "out", keys=["nothing"])
    with pytest.raises(ConfigError, match="no rollouts folder"):
        last_rollouts(tmp_path)


def test_info_prints_what_the_manifest_says(tmp_path: Path) -> None:
    write_set(tmp_path, [[1, 2], [3]])
    result = CliRunner().invoke(app, ["shards", "info", str(tmp_path)])
    assert result.exit_code == 0 and "7 annotation rows = 6 queries + 1 skipped; 3 clips, 9 captions" in result.output
    found = json.loads(CliRunner().invoke(app, ["shards", "info", str(tmp_path), "--json"]).output)
    assert [one["name"] for one in found["encoders"]] == [FINGERPRINT.name]
    assert {one["kind"]: one["records"] for one in found["kinds"]}["paths"] == 3


def test_verify_exits_1_and_names_every_problem(tmp_path: Path) -> None:
    write_set(tmp_path, [[1, 2], [3]])
    fine = CliRunner().invoke(app, ["shards", "verify", str(tmp_path)])
    assert fine.exit_code == 0 and "all right" in fine.output
    for index in (0, 1):
        shard = tmp_path / shard_path("paths", index)
        shard.write_bytes(shard.read_bytes()[:-512])
    (tmp_path / "paths" / "paths-000009.tar").write_bytes(b"")
    result = CliRunner().invoke(app, ["shards", "verify", str(tmp_path), "--json"])
    problems = "\n".join(json.loads(result.output)["problems"])
    assert result.exit_code == 1
    assert all(name in problems for name in ("paths-000000.tar", "paths-000001.tar", "paths-000009.tar"))


def test_a_hostile_name_cannot_move_the_cursor(tmp_path: Path) -> None:
    write_set(tmp_path, [[1]])
    manifest = json.loads((tmp_path / MANIFEST).read_text()) | {"name": "\u001b[2Jgone"}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    assert "\u001b" not in CliRunner().invoke(app, ["shards", "info", str(tmp_path)]).output
