"""The pages of a set in a real browser: found, opened and left by hand and by keyboard, wide and on a phone.

Hostile texts stand in every place that a set has for one. No console line, no request beyond the folder, nothing that
runs, with the pages' policy and without it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taro.grounding.records import DenseCaption, QueryRecord
from taro.shards.manifest import build_manifest, write_manifest
from taro.shards.view import view
from taro.shards.writer import SliceWriter
from tests.pages.browser import Browser, browser, needs_browser
from tests.pages.test_layout import MEASURE
from tests.pages.test_pages import EVIL, PAYLOADS, evil_clip
from tests.report.synthetic import clip_record, sheet
from tests.shards.helpers_sets import FINGERPRINT, features, fingerprint, record

WIDTHS = (1400, 390)
CLIPS = 50
LONG = "w" * 3_000 + " " + "\u202e\u2066\x00\u2028</script><script>document.title='owned'</script>"
MEASURED = MEASURE.replace("<script>", "").replace("</script>", "").replace("parent.postMessage(", "return (").replace(
    ', "*")', ")")


def demo_set(root: Path) -> Path:
    """Fifty clips of two queries each, splits and difficulties, and one hostile clip; features of two encoders, of
    which the last slice has one alone."""
    clips = []
    for number in range(CLIPS):
        one = clip_record(number)
        queries = [query.model_copy(update={"split": "val" if number % 5 == 0 else "train",
                                            "difficulty": None if number % 3 == 0 else float(number)})
                   for query in one.queries]  # fmt: skip
        span = one.clip.model_copy(update={"end_s": 24.0 + number})
        clips.append(one.model_copy(update={"queries": queries, "clip": span}))
    evil = evil_clip()
    extra = QueryRecord(id=LONG[:500], text=LONG, split="constructor", windows_s=[(0, 1)])
    evil = evil.model_copy(update={"key": "zz-evil", "queries": [extra, *evil.queries], "captions": [
        *evil.captions, DenseCaption(start_s=0, end_s=24, text=LONG)]})
    for index, part in enumerate(([*clips], [evil])):
        encoders = (FINGERPRINT, fingerprint("1"))[: 2 - index]
        with SliceWriter(root, index, kinds=["paths", *(f"features/{one.name}" for one in encoders)]) as writer:
            for one in part:
                one = one.model_copy(update={"times_s": record(1).times_s})
                writer.add_clip(one, sheet(1), {encoder.name: features(1) for encoder in encoders}, {})
            writer.commit()
    queries = sum(len(one.queries) for one in (*clips, evil))
    write_manifest(root, build_manifest(root, inputs=queries, skipped=0, captions=0, name=EVIL[:20_000],
                                        encoders=[FINGERPRINT, fingerprint("1")],
                                        provenance={"dataset": EVIL, "split": EVIL}))  # fmt: skip
    return root


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of pages of `demo_set`, with rollouts of two queries."""
    root = tmp_path_factory.mktemp("view")
    rows = [{"step": 3, "key": "clip-07", "query_id": "q7-0", "g": EVIL, "guided": True, "reward": reward, "text": EVIL,
             "format": EVIL, "predicted": [0, 1], "drop": EVIL, "advantage": -0.5, "iou": 0.5} for reward in (1.0, 2.0)]
    rollouts = {("clip-07", "q7-0"): rows, ("zz-evil", "q0-0"): rows}
    view(demo_set(root / "set"), root / "pages", rollouts=rollouts)
    return root / "pages"


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for the tests of this file."""
    with browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


def focused(window: Browser) -> Any:
    """What has the focus: the id of a field, or a row's query as it is shown."""
    return window.run("const now = document.activeElement;"
                      "return now.id || now.querySelector('.said')?.textContent || now.tagName")


def shown(window: Browser) -> list[str]:
    """The keys of the rows that are on the page of the list."""
    return [str(href).partition("clips/")[2].partition(".html")[0] for href in
            window.run("return [...document.querySelectorAll('a.row')].map(link => link.href)")]


def count(window: Browser) -> str:
    """What the page says of how many queries pass."""
    return str(window.run("return document.getElementById('count').textContent"))


def choose(window: Browser, name: str, value: str) -> None:
    """Sets a field as a hand would."""
    window.run("const field = document.getElementById(arguments[0]); field.value = arguments[1];"
               "field.dispatchEvent(new Event('input', {bubbles: true}));", name, value)


def no_harm(window: Browser, folder: Path) -> None:
    """Nothing was complained of, nothing beyond the folder was asked for, nothing ran."""
    assert window.console() == []
    asked = [url for url in window.requests() if url != "about:blank"]
    assert asked and all(url.startswith(folder.as_uri() + "/") for url in asked), asked
    assert window.run("return document.title") != "owned"


@needs_browser
@pytest.mark.parametrize("width", WIDTHS)
def test_the_keyboard_finds_opens_and_leaves(window: Browser, pages: Path, width: int) -> None:
    window.resize(width)
    window.open(pages / "index.html")
    total = 2 * CLIPS + len(PAYLOADS) + 2
    assert count(window) == f"{total} queries" and shown(window)[:2] == ["clip-07", "clip-07"], "rollouts come first"
    window.press("/", *"blue 42.mp4")
    assert count(window) == f"1 of {total} queries" and shown(window) == ["clip-42"] and focused(window) == "text"
    window.press("Enter")
    assert window.address.endswith("/clips/clip-42.html#q1")
    window.press("j")
    assert window.address.endswith("/clips/clip-43.html")
    window.press("Left", "k")
    assert window.address.endswith("/clips/clip-41.html")
    window.press("Right", "u")
    assert window.address.endswith("/index.html") and count(window) == f"{total} queries"
    window.press("Down", "j", "j", "k")
    assert focused(window) == "the blue circle enters"
    assert window.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid", "focus is visible"
    window.press("k", "k")
    assert focused(window) == "text"
    window.press(*"square", "Escape")
    assert count(window) == f"{total} queries"
    window.press("Down", "Right", "Up")
    assert len(shown(window)) == 40 and window.run("return document.getElementById('list').start") == 41
    window.press("j", "Left", "/", *"q9-1", "Down", "Enter")
    assert window.address.endswith("/clips/clip-09.html#q1")
    window.press("/")
    assert focused(window) == "text" and "index.html" in window.address
    no_harm(window, pages)


@needs_browser
@pytest.mark.parametrize("width", WIDTHS)
def test_filters_and_orders_tell_rows_apart(window: Browser, pages: Path, width: int) -> None:
    window.resize(width)
    window.open(pages / "index.html")
    if not window.run("return document.getElementById('filters').open"):
        window.click("#filters summary")
    choose(window, "split", "=val")
    assert count(window).startswith("20 of ")
    choose(window, "difficulty-from", "10")
    choose(window, "difficulty-to", "25")
    assert set(shown(window)) == {"clip-10", "clip-20", "clip-25"}
    choose(window, "duration-to", "45")
    choose(window, "order", "1")
    assert shown(window) == ["clip-20", "clip-20", "clip-10", "clip-10"]
    window.click("a.row")
    assert window.address.endswith("/clips/clip-20.html#q0")
    window.click("a[rel=next]")
    window.click("a.home")
    assert count(window).endswith("queries") and " of " not in count(window)
    for _ in range(3):
        window.back()
    assert shown(window) == ["clip-20", "clip-20", "clip-10", "clip-10"], "back returns to the same list"
    window.click("button[type=reset]")
    choose(window, "encoder", f"={fingerprint('1').name}")
    assert count(window).startswith(f"{2 * CLIPS} of "), "the evil clip lacks the second encoder"
    choose(window, "encoder", "")
    choose(window, "video", "3.mp4")
    assert {key[-1] for key in shown(window)} == {"3"}
    choose(window, "video", "no such video")
    assert count(window).startswith("0 of ") and window.run("return !document.getElementById('none').hidden")
    choose(window, "video", "")
    choose(window, "order", "5")
    assert shown(window)[0] == "clip-07" and "mean reward 1.500" in window.run("return document.body.innerText")
    no_harm(window, pages)


@needs_browser
@pytest.mark.parametrize("width", WIDTHS)
def test_pages_can_be_read_and_hostile_texts_are_texts(window: Browser, pages: Path, width: int) -> None:
    window.resize(width)
    for page, opened in (("index.html#text=evil", ".filters"), ("clips/zz-evil.html", "details"),
                         ("clips/clip-07.html", "details")):  # fmt: skip
        name, _, fragment = page.partition("#")
        window.open(pages / name, f"#{fragment}")
        window.run("for (const one of document.querySelectorAll(arguments[0])) one.open = true", opened)
        found = json.loads(window.run(MEASURED))
        assert found == {"window": width, "wide": width, "small": [], "wrapped": 0}, page
        text = window.run("return document.body.textContent")
        if "clip-07" not in page:
            assert all(part in text for part in ("[U+202E]", "[U+2028]", "[U+0000]", "owned")), page
            assert not set("\u202e\u2066\x00\u2028") & set(text)
        tags = set(window.run("return [...document.body.querySelectorAll('*')].map(one => one.localName)"))
        assert not tags & {"script", "iframe", "link", "meta", "base", "math", "svg", "style", "animate"}
        assert not window.run("return [...document.querySelectorAll('*')].some(one => "
                              "one.getAttributeNames().some(name => name.startsWith('on')))")
        unlabelled = window.run("return [...document.querySelectorAll('input, select')].filter(one => "
                                "!one.labels.length && !one.getAttribute('aria-label')).map(one => one.id)")
        assert unlabelled == []
    no_harm(window, pages)


@needs_browser
def test_without_their_policy_nothing_runs_either(window: Browser, pages: Path, tmp_path: Path) -> None:
    """The escapes stand alone: the same pages without their content security policy."""
    for path in pages.rglob("*"):
        to = tmp_path / path.relative_to(pages)
        to.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            to.write_bytes(re.sub(rb'<meta http-equiv="Content-Security-Policy"[^>]*>', b"", path.read_bytes()))
    for page in ("index.html", "clips/zz-evil.html"):
        window.open(tmp_path / page, "#text=evil")
        assert "Content-Security-Policy" not in window.run("return document.head.innerHTML")
        assert window.run("return document.title") not in ("owned", "1")
        no_harm(window, tmp_path)


@needs_browser
def test_of_10_000_rows_a_few_are_drawn(window: Browser, pages: Path, tmp_path: Path) -> None:
    """Whatever is searched for, the page has under 1,000 elements (its time: benchmarks/view.py)."""
    folder = tmp_path / "pages"
    for name in ("assets", "data"):
        (folder / name).mkdir(parents=True)
    for asset in (pages / "assets").iterdir():
        (folder / "assets" / asset.name).write_bytes(asset.read_bytes())
    clips = [[f"clip-{number}", f"{number}.mp4", 30.0, 5, [0], False,
              [["q", f"query {number} " + "some words of it " * 25, "train", float(number), [[1, 2]], 0, None]]]
             for number in range(10_000)]
    (folder / "data" / "rows-00000.js").write_text(f"taroRows(['one'], {json.dumps(clips)});")
    index = (pages / "index.html").read_text()
    names = re.findall(r'<script src="data/(rows-\d+\.js)" defer></script>', index)
    assert names == ["rows-00000.js"]
    (folder / "index.html").write_text(index)
    window.open(folder / "index.html")
    assert count(window) == "10,000 queries"
    drawn = window.run("""const field = document.getElementById("text"), drawn = [];
        for (const value of ["w", "wo", "wor", "word", "word 9", "word 99", "999", ""]) {
          field.value = value;
          field.dispatchEvent(new Event("input", {bubbles: true}));
          drawn.push([document.getElementById("count").textContent, document.querySelectorAll("*").length]);
        }
        return drawn;""")
    assert [line[0] for line in drawn[-2:]] == ["19 of 10,000 queries", "10,000 queries"]
    assert max(line[1] for line in drawn) < 1_000, drawn
