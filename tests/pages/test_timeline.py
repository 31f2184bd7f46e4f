"""The time axis: nothing that was written elsewhere gets out of its text, and spans lie where their seconds say."""

from __future__ import annotations

import math
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taro.pages.render import environment, render
from taro.pages.timeline import Bar, Lane, Span, Timeline, timeline

texts = st.text(max_size=40)
times = st.floats(allow_nan=True, allow_infinity=True)
HOSTILE = '"/></div><script>alert(1)</script>'


class Tags(HTMLParser):
    """Tags in the order of their start, and the texts and titles; asserts that they close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "img":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def drawn(one: Timeline) -> str:
    source = '{% from "macros.html" import timeline %}{{ timeline(one) }}'
    return environment().from_string(source).render(one=one)


def bars(one: Timeline) -> list[Bar]:
    return [bar for lane in one.lanes for bar in lane.bars]


@settings(deadline=None)  # the first example compiles the template
@given(texts, texts, texts, times, times, times)
def test_any_input_is_well_formed_and_adds_no_element(label: str, text: str, css: str, a: float, b: float,
                                                      duration_s: float) -> None:
    lanes = [Lane(label + HOSTILE, [Span(a, b, text + HOSTILE, css + HOSTILE, a), Span(0, 1, HOSTILE, css)])]
    found = Tags(drawn(timeline(duration_s, lanes)))
    assert set(found.tags) == {"div", "span", "i"}
    assert {name for name, _ in found.attributes} <= {"class", "style", "title"}
    assert all("script" not in str(value) for name, value in found.attributes if name != "title")


@given(st.lists(st.tuples(times, times), max_size=8), times)
def test_every_bar_lies_on_the_axis(spans: list[tuple[float, float]], duration_s: float) -> None:
    one = timeline(duration_s, [Lane("a", [Span(*span) for span in spans])])
    for bar in bars(one):
        assert 0 <= bar.left <= 100 and bar.width >= 0 and bar.left + bar.width <= 100.001
    assert len(bars(one)) == sum(math.isfinite(a) and math.isfinite(b) for a, b in spans)


def test_spans_lie_where_their_seconds_say() -> None:
    first, second = bars(timeline(10.0, [Lane("a", [Span(0, 5), Span(5, 12)])]))
    assert (first.left, first.width, first.row) == (0, 50, 0)
    assert (second.left, second.width, second.row) == (50, 50, 0)


def test_overlapping_spans_take_rows_of_their_own() -> None:
    one = timeline(10.0, [Lane("a", [Span(0, 6), Span(5, 10), Span(6, 7)])])
    assert [bar.row for bar in bars(one)] == [0, 1, 0] and one.lanes[0].rows == 2


@pytest.mark.parametrize(("start_s", "end_s"), [(3, 3), (9, 2), (-4, -1), (20, 30)])
def test_a_span_without_length_is_a_mark_and_keeps_its_text(start_s: float, end_s: float) -> None:
    (bar,) = bars(timeline(10.0, [Lane("a", [Span(start_s, end_s, "said")])]))
    assert bar.width == 0 and bar.left == 10 * min(max(start_s, 0), 10) and bar.tip.endswith(": said")


def test_a_span_that_is_not_finite_stays_in_the_tooltip() -> None:
    one = timeline(10.0, [Lane("a", [Span(0, math.inf, "lost"), Span(1, 2)])])
    assert len(bars(one)) == 1 and one.lanes[0].tip == "a\nnot finite: lost"


def test_text_that_reorders_a_page_is_made_visible() -> None:
    out = render("answers.html", title="x\u202e<y>\ud800", table="a\u2028b", agreement="", tiles=[], groups=[], total=0)
    assert "\u202e" not in out and "[U+202E]&lt;y&gt;[U+D800]" in out and "a[U+2028]b" in out and out.encode()


def test_a_value_that_a_template_misses_is_an_error() -> None:
    with pytest.raises(Exception, match="'table' is undefined"):
        render("answers.html", title="x", tiles=[], groups=[], total=0)
