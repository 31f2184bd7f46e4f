"""What an untrusted set can make a reader do is bounded, by counts and sizes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import taro.core.json as strict
from taro.core.errors import ConfigError, ShardError
from taro.grounding.records import CandidatePaths, DenseCaption, QueryRecord
from taro.shards.card import card_text
from taro.shards.format import MANIFEST, MAX_ELEMENTS, MAX_KINDS, ClipEncoder, Manifest, clip_key
from taro.shards.manifest import read_manifest
from taro.shards.reader import open_shards, parse_clip
from taro.shards.store_local import LocalStore
from taro.shards.view import view
from taro.shards.view_clip import MAX_PATH_SPANS
from tests.shards.helpers_sets import FINGERPRINT, record, write_set
from tests.shards.test_merge import write_clips


@pytest.mark.parametrize(("path", "fine"), [
    ([0, 1, 2], True), ([2], True), ([], True), ([1, 0], False), ([0, 0], False), ([0, 1, 1], False), ([3], False)])
def test_paths_are_ascending_and_distinct(path: list[int], fine: bool) -> None:
    data = record(1).model_dump(mode="json")
    data["queries"][0]["paths"]["overlap"] = [path]
    if fine:
        parse_clip(json.dumps(data).encode(), "x")
    else:
        with pytest.raises(ShardError, match="a path"):
            parse_clip(json.dumps(data).encode(), "x")


@pytest.mark.parametrize("place", ["shards", "encoders", "config", "new"])
def test_lists_that_are_bombs_are_counted_before_they_are_parsed(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path, [[1]])
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    manifest[place] = ["BOMB"]
    text = json.dumps(manifest).replace('"BOMB"', ",".join(["[]"] * MAX_ELEMENTS[MANIFEST]))
    (tmp_path / MANIFEST).write_text(text)
    parsed: list[int] = []
    real = strict.strict_json
    monkeypatch.setattr(strict, "strict_json", lambda data, **how: parsed.append(len(data)) or real(data, **how))
    with pytest.raises(ShardError, match="values in the JSON, at most 2,000,000"):
        open_shards(tmp_path)
    assert parsed == []
    (tmp_path / MANIFEST).write_text(json.dumps({**manifest, place: [[]] * 100_000}))
    if place != "new":  # a key that a newer version may have
        with pytest.raises(ShardError, match="not a valid Manifest") as error:
            read_manifest(LocalStore(tmp_path))
        assert "more)" not in str(error.value), "one problem is told, and no other was looked for"
    assert len(parsed) <= 1, "parsed once"


def test_kinds_are_bounded() -> None:
    entry = {"index": 0, "bytes": 0, "records": 0, "queries": 0, "sha256": "0" * 64, "sidecar_sha256": "0" * 64}
    for count in (MAX_KINDS, MAX_KINDS + 1, 4_000):
        shards = [{"kind": f"features/x{number:05}", **entry} for number in range(count)]
        if count <= MAX_KINDS:
            assert len(Manifest.model_validate({"shards": shards}).kinds) == count
        else:
            with pytest.raises(ValueError, match="kinds, at most"):
                Manifest.model_validate({"shards": shards})


@pytest.mark.parametrize("name", ["<img src=x>", "a`b", "a\nb", "..", "a/b", "[x](http://y)", ""])
def test_names_of_encoders_have_a_grammar_and_are_escaped_all_the_same(name: str) -> None:
    with pytest.raises(ValueError, match="encoder"):
        Manifest(clip_encoders=[ClipEncoder(name=name, model="m")])
    bad = FINGERPRINT.model_copy(update={"family": name or "`", "model_id": "<b>`*[x](y)", "tower_sha256": f"`{name}"})
    with pytest.raises(ValueError, match="encoder"):
        Manifest(encoders=[bad])
    text = card_text(Manifest.model_construct(**{**Manifest().__dict__, "encoders": [bad]})).partition("## Kinds")[2]
    line = next(line for line in text.splitlines() if line.startswith("- encoder"))
    assert not set("<>`[]*") & set(line) and "Licences" in text


def test_a_page_does_not_grow_with_the_paths(tmp_path: Path) -> None:
    """Every query with every caption in every path: a page of some MB, where it would be 100 times that."""
    captions = [DenseCaption(start_s=0, end_s=4.0, text="x" * 3_000) for _ in range(100)]
    paths = CandidatePaths(random=[list(range(100))] * 16, overlap=[list(range(100))] * 16)
    queries = [QueryRecord(id=str(n), text="q", windows_s=[(0, 1)], paths=paths) for n in range(200)]
    clip = record(1).model_copy(update={"captions": captions, "queries": queries, "key": clip_key("v1.mp4", None)})
    write_clips(tmp_path / "set", [clip])
    view(tmp_path / "set", tmp_path / "pages")
    page = (tmp_path / "pages" / "clips" / f"{clip.key}.html").read_text()
    assert page.count(" path") <= 3 * MAX_PATH_SPANS and len(page) < 20_000_000


def test_a_set_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path, [[1, 2], [3]])
    found: Any = open_shards(tmp_path)
    assert len(found) == 3 and [clip.key for clip in found] == found.keys
    assert found.keys[0] in found and "x" not in found
    ref = found.queries()[0]
    assert len(repr(ref)) < 200 and ref.key in repr(ref) and ref.query.text in repr(ref)
    pytest.importorskip("pandas")
    table = found.to_pandas()
    assert len(table) == 6 and table["query_id"].tolist() == [ref.query.id for ref in found.queries()]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match=r"pip install 'taro-vtg\[pandas\]'"):
        found.to_pandas()
