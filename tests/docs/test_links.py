"""Links of the pages lead somewhere, anchors included; every page of docs/ can be reached from README.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import README, ROOT, all_pages, blocks_of


def prose(page: Path) -> str:
    """A page without its fenced and indented blocks and its inline code."""
    text = page.read_text(encoding="utf-8")
    lines = text.split("\n")
    for block in blocks_of(text):
        lines[block.first : block.last + 1] = [""] * (block.last + 1 - block.first)
    return re.sub(r"`[^`\n]+`", "`code`", "\n".join(line for line in lines if not line.startswith("    ")))


def links(page: Path) -> list[tuple[str, str]]:
    """(path, anchor) of each relative link of a page; either may be empty."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [(target.partition("#")[0], target.partition("#")[2]) for target in found if "://" not in target]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub names them, and those that it sets itself."""
    text = page.read_text(encoding="utf-8")
    fenced = {line for block in blocks_of(text) for line in range(block.first, block.last + 1)}
    heads = [re.sub(r"^#+ ", "", line) for at, line in enumerate(text.split("\n"))
             if re.match(r"#+ ", line) and at not in fenced]
    named = [re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", head).lower()).replace(" ", "-")
             for head in heads]
    return {*named, *re.findall(r'<a id="([^"]+)"></a>', text)}


@pytest.mark.parametrize("page", all_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in links(page):
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {path}, which is not there"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name} links to {path}#{anchor}; {sorted(anchors(target))}"


def test_no_page_is_orphaned() -> None:
    """Following links from README.md reaches every page."""
    reached, ahead = {README.resolve()}, [README]
    while ahead:
        page = ahead.pop()
        for path, _ in links(page):
            target = (page.parent / path).resolve()
            if target.suffix == ".md" and target not in reached:
                reached.add(target)
                ahead.append(target)
    lost = sorted(str(page.relative_to(ROOT)) for page in all_pages() if page.resolve() not in reached)
    assert not lost, f"no page links to {lost}; docs/README.md is the index"


def test_anchors_are_githubs() -> None:
    """Hand-checked against what GitHub makes of these headings."""
    found = anchors(ROOT / "docs" / "evaluation.md")
    assert {"a-file-of-predictions", "one-video-one-question", "beside-each-score"} <= found
