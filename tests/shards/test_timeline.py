"""The time axis: nothing a stranger writes gets out of its text, and spans lie where their seconds say."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from taro.pages.timeline import LABEL_PX, Lane, Span, page, safe_text, timeline_svg

SVG = "{http://www.w3.org/2000/svg}"
texts = st.text(max_size=40)
times = st.floats(allow_nan=True, allow_infinity=True)


def _rects(svg: str) -> list[tuple[float, float, float]]:
    rects = ElementTree.fromstring(svg).iter(f"{SVG}rect")
    return [(float(r.attrib["x"]), float(r.attrib["width"]), float(r.attrib["y"])) for r in rects]


@given(texts, texts, texts, times, times, times)
def test_any_input_is_well_formed_and_adds_no_element(label: str, text: str, css: str, a: float, b: float,
                                                      duration_s: float) -> None:
    hostile = '"/></svg><script>alert(1)</script>'
    svg = timeline_svg(duration_s, [Lane(label + hostile, [Span(a, b, text + hostile, css)])])
    tags = {element.tag.removeprefix(SVG) for element in ElementTree.fromstring(svg).iter()}
    assert tags <= {"svg", "g", "title", "rect", "text", "line"}


def test_spans_lie_where_their_seconds_say() -> None:
    rects = _rects(timeline_svg(10.0, [Lane("a", [Span(0, 5), Span(5, 10)])], 1000))
    (x0, w0, y0), (x1, w1, y1) = rects
    assert x0 == LABEL_PX and math.isclose(w0, w1, abs_tol=0.2) and math.isclose(x0 + w0, x1, abs_tol=0.2)
    assert y0 == y1 and math.isclose(x1 + w1, 992, abs_tol=0.2)


def test_overlapping_spans_take_rows_of_their_own() -> None:
    ys = [y for _, _, y in _rects(timeline_svg(10.0, [Lane("a", [Span(0, 6), Span(5, 10), Span(6, 7)])]))]
    assert ys[0] == ys[2] < ys[1]


def test_text_that_reorders_a_page_is_made_visible() -> None:
    out = page("x\u202e<y>", "", "")
    assert "\u202e" not in out and "[U+202E]&lt;y&gt;" in out
    assert safe_text("\ud800").encode() == b"[U+D800]"
