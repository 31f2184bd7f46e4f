"""Where HTML comes from: templates with autoescape alone, each value quoted or escaped, no text too small to read."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from jinja2 import nodes

from taro.pages.render import environment
from tests.test_guard import FILES, name_of, room_of, tree_of

TEMPLATES = Path(__file__).resolve().parents[2] / "taro" / "pages" / "templates"
TAGS = ("div|table|t[rdh]|svg|section|span|p|h[1-6]|pre|img|html|head|body|style|script|details|g|rect|text|path|line|"
        "circle|polyline|li|ul|code|figure|meta|a")
OUR_SCRIPT = re.compile(r'<script src="(?:(?:\.\./)?assets/(?:view|clip)\.js|data/\{\{ name \}\})" defer></script>')
MARKUP = re.compile(rf"</?(?:{TAGS})\b[^>\n]*/?>|<!DOCTYPE|&(?:lt|gt|amp|quot);")


def strings(tree: ast.Module) -> list[ast.Constant]:
    """String literals, docstrings left out."""
    docs = {id(node.body[0].value) for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body
            and isinstance(node.body[0], ast.Expr)}
    return [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
            and id(node) not in docs]


def test_no_html_is_built_from_strings() -> None:
    """Nowhere in the packages, taro/pages included: markup stands in templates."""
    assert MARKUP.search(f"<{'td'}>{{cell}}</td>") and not MARKUP.search("<think>, <answer>, a < b, x -> <folder>")
    found = [f"{name_of(path)}:{node.lineno}: {node.value[:60]!r}" for path in FILES
             for node in strings(tree_of(path)) if MARKUP.search(node.value)]
    assert not found, "\n".join(found)


def test_only_pages_knows_jinja() -> None:
    """And the program that renders chat templates, which makes no page; nothing marks a text as safe."""
    found = [name_of(path) for path in FILES if "jinja2" in (text := path.read_text()) or "markupsafe" in text]
    assert "taro/models/render_chat.py" in found, "chat templates are rendered elsewhere now: shorten this test"
    pages = [path for path in found if path != "taro/models/render_chat.py"]
    assert pages and {path.partition("/pages/")[0] for path in pages} == {"taro"}
    assert not [path for path in FILES if "Markup(" in path.read_text()]
    assert room_of("taro.pages.render") == "pages"


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.html")), ids=lambda path: path.name)
def test_a_template_escapes_all_it_prints(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    tree = environment().parse(source)
    assert not [node for node in tree.find_all(nodes.Filter) if node.name in {"safe", "forceescape", "xmlattr"}]
    assert not list(tree.find_all((nodes.ScopedEvalContextModifier, nodes.MarkSafe)))
    plain = re.sub(r"\{%.*?%\}", "", source, flags=re.DOTALL)
    assert not re.search(r"=\s*\{\{", plain), "an attribute without quotes"
    assert not re.search(r"<script|\son\w+=|javascript:|https?://", OUR_SCRIPT.sub("", source))
    assert environment().autoescape is True and source.isascii()


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.js")), ids=lambda path: path.name)
def test_a_script_writes_text_alone_and_asks_for_nothing(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.isascii() and '"use strict"' in source
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|createContextual|DOMParser|srcdoc|"
                         r"\beval\b|Function\(|fetch|XMLHttp|WebSocket|sendBeacon|EventSource|\bimport\b|https?:",
                         source)


@pytest.mark.parametrize(("name", "least"), [("style.css", 10), ("view.css", 3)])
def test_no_text_is_smaller_than_12_px(name: str, least: int) -> None:
    style = (TEMPLATES / name).read_text()
    sizes = [float(size) for size in re.findall(r"(?:font-size:|font:)[^;}]*?([\d.]+)px", style)]
    assert len(sizes) > least and min(sizes) >= 12 and style.isascii()
    assert not re.search(r"@import|url\(", style), "the style loads something"
