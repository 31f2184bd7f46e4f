"""The pages of a set show what the set says and run nothing; the commands answer in text, JSON and exit codes."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from taro.cli.app import app
from taro.core.errors import ConfigError, ShardError
from taro.grounding.records import DenseCaption, QueryRecord
from taro.shards import view_rows
from taro.shards.format import MANIFEST, shard_path
from taro.shards.index_build import add_index
from taro.shards.manifest import build_manifest, write_manifest
from taro.shards.ops.filter import Selection
from taro.shards.places import STORES
from taro.shards.store_local import LocalStore
from taro.shards.view import view
from taro.shards.view_rows import MAX_ROW_TEXT
from taro.shards.writer import SliceWriter
from taro.train.report.data import last_rollouts
from tests.shards.helpers_sets import FINGERPRINT, SHEET, fingerprint, record, write_set
from tests.shards.test_store import MemoryStore, copied

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


def written(out: Path) -> dict[str, str]:
    """Every text of a folder of pages but taro's own assets, by its path there."""
    return {path.relative_to(out).as_posix(): path.read_text(encoding="utf-8") for path in sorted(out.rglob("*"))
            if path.suffix in {".html", ".js"} and path.parent.name != "assets"}


def listed(out: Path) -> list[Any]:
    """The clips of the list, from its scripts, which are read as the JSON that they hold."""
    found = []
    for path in sorted((out / "data").iterdir()):
        arguments = path.read_text(encoding="ascii").removeprefix("taroRows(").removesuffix(");\n")
        found += json.loads(f"[{arguments}]")[1]
    return found


def test_pages_of_hostile_texts_run_nothing_and_load_nothing_else(tmp_path: Path) -> None:
    key = hostile_set(tmp_path / "set")
    rows = [rollout(key, HOSTILE, text=HOSTILE, predicted=None, step=HOSTILE, answers=HOSTILE, advantage=HOSTILE),
            rollout(key, HOSTILE, g=HOSTILE, predicted=["<script>", {}], reward=HOSTILE, answers=[[HOSTILE, 1]])]
    view(tmp_path / "set", tmp_path / "pages", rollouts={(key, HOSTILE): rows})
    texts = written(tmp_path / "pages")
    assert sorted(texts) == [f"clips/{key}.html", "data/rows-00000.js", "index.html"]
    assert not any(set("\u202e\u2028\x00") & set(text) for text in texts.values())
    script = texts.pop("data/rows-00000.js")
    assert script.isascii() and "<" not in script and "alert(1)" in script
    loaded = {f"clips/{key}.html": {"../assets/clip.js", "../assets/style.css", "../assets/view.css",
                                    f"../sheets/{key}.jpg", "../index.html"},
              "index.html": {"assets/view.js", "assets/style.css", "assets/view.css", "data/rows-00000.js"}}
    for name, text in texts.items():
        found = Page(text)
        assert not [name for name, _ in found.attributes if name.startswith("on")]
        assert {value for name, value in found.attributes if name in {"src", "href", "srcset", "data"}} == loaded[name]
        policy = next(value for name, value in found.attributes if name == "content")
        assert policy == ("default-src 'none'; style-src 'self' 'unsafe-inline'; img-src 'self'; script-src 'self'; "
                          "base-uri 'none'; form-action 'none'")
        assert found.tags.count("script") == len([one for one in loaded[name] if one.endswith(".js")])
        assert "[U+202E]" in found.text and "alert(1)" in found.text
    assert (tmp_path / "pages" / "sheets" / f"{key}.jpg").read_bytes() == SHEET


def test_a_page_shows_the_last_group_of_a_query_with_its_numbers(tmp_path: Path) -> None:
    write_set(tmp_path / "set", [[1, 2]])
    key, other = record(2).key, record(1).key
    run = run_with(tmp_path / "run", rollout(key, "2.0", reward=0.111), rollout(key, "2.0", step=7, reward=1.625),
                   rollout(key, "2.0", step=7, g=1, drop=None, predicted=None, reward=0.375))  # fmt: skip
    made = view(tmp_path / "set", tmp_path / "pages", rollouts=last_rollouts(run), limit=1)
    assert (made.clips, made.clips_in_set, made.queries) == (1, 2, 2)
    found = Page((tmp_path / "pages" / "clips" / f"{key}.html").read_text())
    assert not (tmp_path / "pages" / "clips" / f"{other}.html").exists(), "clips with rollouts come first"
    for part in ("rollouts of step 7", "1.625", "0.25s to 1.50s", "no answer", "event 2 of 2", "the 1 event"):
        assert part in found.text
    assert "0.111" not in found.text
    assert [[query[0], query[6]] for query in listed(tmp_path / "pages")[0][6]] == [["2.0", 1.0], ["2.1", None]]


def test_the_list_holds_what_the_set_says(tmp_path: Path) -> None:
    other = fingerprint("1")
    write_set(tmp_path / "set", [[1, 2], [3]], encoders={"float32": FINGERPRINT, "float64": other})
    made = view(tmp_path / "set", tmp_path / "pages")
    assert (made.clips, made.queries, made.queries_left_out) == (3, 6, 0) and made.page.is_file()
    clips = {clip[0]: clip for clip in listed(tmp_path / "pages")}
    assert clips[record(2).key] == [record(2).key, "v2.mp4", 4.0, 3, [0, 1], True, [
        ["2.0", "the 0 event", "train", None, [[0.0, 1.0]], 0, None],
        ["2.1", "the 1 event", "val", 20.0, [[0.5, 1.5]], 1, None]]]
    keys = [clip[0] for clip in listed(tmp_path / "pages")]
    assert keys == sorted(clips)
    for place, key in enumerate(keys):
        page = Page((tmp_path / "pages" / "clips" / f"{key}.html").read_text())
        names = {f"{one}.html" for one in keys}
        steps = [value for name, value in page.attributes if name == "href" and value in names]
        assert steps == [f"{one}.html" for one in (*keys[place - 1 : place][:place], *keys[place + 1 : place + 2])]
        assert f"clip {place + 1} of 3" in page.text


def test_only_what_is_selected_is_written(tmp_path: Path) -> None:
    write_set(tmp_path / "set", [[1, 2], [3]])
    for words, keys, queries in (
        (["--split", "val"], {1, 2, 3}, 3), (["--text", "the 1 ev"], {1, 2, 3}, 3), (["--difficulty", "15:25"], {2}, 1),
        (["--query", "3.0"], {3}, 1), (["--key", record(1).key], {1}, 2), (["--limit", "2"], None, 4),
    ):  # fmt: skip
        result = CliRunner().invoke(app, ["shards", "view", str(tmp_path / "set"), "--out", str(tmp_path / "pages"),
                                          *words, "--json"])
        assert result.exit_code == 0, result.output
        found = json.loads(result.output)
        pages = {path.stem for path in (tmp_path / "pages" / "clips").iterdir()}
        assert found["queries"] == queries == sum(len(clip[6]) for clip in listed(tmp_path / "pages")), words
        assert pages == {clip[0] for clip in listed(tmp_path / "pages")}
        assert keys is None or pages == {record(number).key for number in keys}, words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pages", "set"], "nothing is left beside the pages"


def test_pages_are_the_same_from_any_place_with_an_index_or_without(tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    write_set(tmp_path / "set", [[1, 2], [3]])
    shutil.copytree(tmp_path / "set", tmp_path / "indexed")
    add_index(tmp_path / "indexed")
    far = MemoryStore("memory://set")
    copied(LocalStore(tmp_path / "indexed"), far)
    monkeypatch.setitem(STORES, "memory", lambda place: {"memory://set": far}[place])
    made = []
    for number, place in enumerate((tmp_path / "set", tmp_path / "indexed", "memory://set")):
        out = tmp_path / f"pages-{number}"
        assert view(place, out, selection=Selection(split="val", text="the 1", difficulty=(15, 40))).queries == 2
        made.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert made[0] == made[1] == made[2] and len(made[0]) == 11


def test_a_wrong_key_run_or_place_is_said(tmp_path: Path) -> None:
    write_set(tmp_path / "set", [[1]])
    with pytest.raises(ShardError, match="holds no key nothing"):
        view(tmp_path / "set", tmp_path / "out", selection=Selection(keys=frozenset(["nothing"])))
    with pytest.raises(ShardError, match="no clip has a query that all"):
        view(tmp_path / "set", tmp_path / "out", selection=Selection(split="nothing"))
    with pytest.raises(ConfigError, match="no rollouts folder"):
        last_rollouts(tmp_path)
    with pytest.raises(ConfigError, match=r"--out page, whose index\.html"):
        view(tmp_path / "set", tmp_path / "page.html")
    with pytest.raises(ConfigError, match="inside the set"):
        view(tmp_path / "set", tmp_path / "set" / "pages")
    assert not (tmp_path / "out").exists()


def test_pages_are_whole_or_as_they_were(tmp_path: Path) -> None:
    write_set(tmp_path / "set", [[1, 2]])
    view(tmp_path / "set", tmp_path / "pages")
    before = written(tmp_path / "pages")
    shard = tmp_path / "set" / shard_path("paths", 0)
    data = bytearray(shard.read_bytes())
    data[data.index(b"event 1 of 2")] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ShardError, match="sha256"):
        view(tmp_path / "set", tmp_path / "pages")
    assert written(tmp_path / "pages") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pages", "set"]


def test_pages_that_a_killed_command_left_are_cleared_away(tmp_path: Path) -> None:
    write_set(tmp_path / "set", [[1]])
    (tmp_path / ".pages.making" / "clips").mkdir(parents=True)
    (tmp_path / ".pages.making" / "clips" / "old.html").write_text("half")
    for _ in range(2):
        view(tmp_path / "set", tmp_path / "pages")
    assert [path.name for path in (tmp_path / "pages" / "clips").iterdir()] == [f"{record(1).key}.html"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pages", "set"]
    assert not (tmp_path / "pages" / ".old").exists()


def test_a_clip_without_a_query_is_a_row_and_no_query(tmp_path: Path) -> None:
    rows = view_rows.RowFiles(tmp_path / "data", [])
    for one in (record(1, queries=0), record(2)):
        rows.add(one, [], sheet=False, keeps=lambda key, query: True, rewards={})
    rows.close()
    assert (rows.queries, rows.left_out) == (2, 0) and [len(clip[6]) for clip in listed(tmp_path)] == [1, 2]


def test_rows_of_many_clips_are_files_of_bounded_size_and_number(tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_rows, "MAX_ROWS", 8_999)
    monkeypatch.setattr(view_rows, "CHUNK_BYTES", 100_000)
    rows = view_rows.RowFiles(tmp_path / "data", ["one", "two"])
    one = record(1)
    queries = [query.model_copy(update={"text": "x" * 100}) for query in one.queries]
    for number in range(5_000):
        clip = one.model_copy(update={"key": f"clip-{number}", "queries": queries})
        rows.add(clip, ["two"], sheet=False, keeps=lambda key, query: True, rewards={})
    rows.close()
    assert (rows.queries, rows.left_out) == (8_999, 1_001)
    sizes = [(tmp_path / "data" / name).stat().st_size for name in rows.names]
    assert len(sizes) > 10 and max(sizes) < 101_000 and len(list((tmp_path / "data").iterdir())) == len(sizes)
    clips = listed(tmp_path)
    assert sum(len(clip[6]) for clip in clips) == 8_999 and clips[7][0] == "clip-7" and clips[7][4] == [1]
    assert [clip[0] for clip in clips] == [f"clip-{number}" for number in range(4_500)]


def test_rollouts_are_those_on_the_set_of_any_place(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", rollout("a", "1", set="far"), rollout("a", "2", set="near"))
    places = {"far": "s3://bucket/sets/one", "near": str(tmp_path / "sets" / "two")}
    (run / "data.json").write_text(json.dumps({"sets": [{"name": name, "path": place}
                                                        for name, place in places.items()]}))
    assert list(last_rollouts(run, places["far"])) == [("a", "1")]
    assert list(last_rollouts(run, Path(places["near"]))) == [("a", "2")]
    assert list(last_rollouts(run, "hf://datasets/me/far")) == [("a", "1")], "by the last part of its name"


def test_one_clip_of_everything_at_once_stays_bounded(tmp_path: Path) -> None:
    """The most that a KEY.json may hold: thousands of captions and queries of thousands of characters."""
    captions = [DenseCaption(start_s=0, end_s=4.0, text=f"{number} " + "<w>" * 2_000) for number in range(1_000)]
    queries = [QueryRecord(id=str(number), text="<q>" * 1_000, windows_s=[(0, 1)] * 50) for number in range(400)]
    one = record(1).model_copy(update={"captions": captions, "queries": queries})
    with SliceWriter(tmp_path / "set", 0, kinds=["paths"]) as writer:
        writer.add_clip(one, SHEET, {}, {})
        writer.commit()
    write_manifest(tmp_path / "set", build_manifest(tmp_path / "set", inputs=400, skipped=0, captions=1_000))
    made = view(tmp_path / "set", tmp_path / "pages")
    page = tmp_path / "pages" / "clips" / f"{one.key}.html"
    assert made.queries == 400 and page.stat().st_size < 15_000_000
    assert "100 more queries of this clip are not drawn" in page.read_text()
    rows = listed(tmp_path / "pages")[0][6]
    assert [rows[0][5], rows[299][5], rows[300][5]] == [0, 299, -1] and len(rows[0][1]) == MAX_ROW_TEXT + 3


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
