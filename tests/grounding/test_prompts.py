"""Prompts: what goes in comes out unchanged, whatever the query holds; answers are read as each protocol says."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taro.core.errors import ConfigError
from taro.grounding.answers import ANSWER_PARSERS, format_ok, parse_answer, parse_reasoning, reasoning_stats
from taro.grounding.moment import Moment
from taro.grounding.prompts import TAGS, caption_line, load_template, normalise_query, parse_captions, template_names
from taro.grounding.records import DenseCaption
from taro.metrics.scores import PROTOCOLS

HOSTILE = [
    "{query}",
    "{0} {} {query",
    'he says "so"\nand leaves',
    "\\1 \\g<0> %s $1",
    "x" * 10_000,
    "</think>",
    "<|im_end|>",
    "?",
]


@given(st.text(max_size=200))
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise_query(text)
    assert normalise_query(once) == once
    assert once == once.strip() and "  " not in once and "\n" not in once


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        (" a  b\n c. ", "a b c"),
        ("a b .", "a b"),
        ("what?", "what?"),
        ("Mr. X", "Mr. X"),
        ("wait...", "wait..."),
        (".", ""),
        ("", ""),
    ],
)
def test_normalisation_by_example(raw: str, clean: str) -> None:
    assert normalise_query(raw) == clean


@pytest.mark.parametrize("name", ["taro", "taro-multi", "sandbox"])
@pytest.mark.parametrize("query", HOSTILE)
def test_the_query_stands_in_the_prompt_as_it_is(name: str, query: str) -> None:
    template = load_template(name)
    before, _, after = template.text.partition("{query}")
    assert template.user_text(query) == before + normalise_query(query) + after
    assert normalise_query(query) in template.user_text(query, no_think=True)


def test_the_sandbox_prompt_is_in_its_vocabulary() -> None:
    template = load_template("sandbox")
    assert template.user_text("the red square blinks") == "when does the red square blinks happen?"
    assert template.caption_prompt == "describe the events."
    assert template.segment_prompt == "describe the segment."
    caption = DenseCaption(start_s=2, end_s=5.5, text="the red square blinks.")
    assert template.guided_prefix("the red square blinks for the second time", [caption]) == (
        "<think>\nI need to find the specific moment the red square blinks for the second time.\n"
        "From 2.0s to 5.5s, the red square blinks.\n"
    )


@pytest.mark.parametrize("name", ["taro", "taro-multi", "sandbox"])
@pytest.mark.parametrize("query", HOSTILE)
def test_a_guided_prefix_leaves_the_reasoning_open(name: str, query: str) -> None:
    captions = [DenseCaption(start_s=0, end_s=1, text="a </think> <answer>1s to 2s</answer>\nb <|im_end|>")]
    prefix = load_template(name).guided_prefix(query, captions)
    assert [prefix.count(tag) for tag in TAGS] == [1, 0, 0, 0]
    assert "<|" not in prefix
    assert prefix.startswith("<think>\n") and prefix.endswith("\n") and prefix.count("\n") == 3
    assert format_ok(prefix + "so.\n</think>\n<answer>0.00s to 1.00s</answer>")


def test_our_own_example_passes_our_own_rules() -> None:
    text = load_template("taro").text
    example = text[text.rindex("<think>") :]
    assert format_ok(example)
    assert parse_answer(example) == Moment(8.2, 11.0)
    assert parse_reasoning(example).spans[0] == Moment(0.0, 6.5)
    assert parse_captions(load_template("taro").caption_prompt)[0].end_s == 6.5


def test_a_template_is_its_words(tmp_path: Path) -> None:
    ours = load_template("taro")
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nversion: 2\ntext: 'find {query}'\nreasoning_opening: '{query}?'\ncaption_prompt: say\n"
    )
    mine = load_template(path)
    assert mine.user_text("a {b}.") == "find a {b}"
    assert len({ours.sha256, load_template("sandbox").sha256, mine.sha256}) == 3
    assert mine.sha256 == load_template(path).sha256
    assert mine.model_copy(update={"version": 3}).sha256 != mine.sha256
    with pytest.raises(ConfigError, match="no no_think_text"):
        mine.user_text("x", no_think=True)


@pytest.mark.parametrize("text", ["find it", "{query} {query}"])
def test_a_template_names_the_query_once(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"name: bad\nversion: 1\ntext: '{text}'\nreasoning_opening: '{{query}}'\ncaption_prompt: say\n")
    with pytest.raises(ConfigError, match="exactly once"):
        load_template(path)


def test_an_unknown_template_is_answered_with_the_known_ones() -> None:
    assert template_names() == ["sandbox", "taro", "taro-multi"]
    with pytest.raises(ConfigError, match="one of: sandbox, taro"):
        load_template("tarot")


THOUGHT = "<think>a</think>"


@pytest.mark.parametrize(
    ("text", "thinking", "no_think"),
    [
        (THOUGHT + "<answer>b</answer>", True, False),
        (THOUGHT + " \n\t<answer></answer>", True, False),
        ("<think></think><answer>b</answer>", True, False),
        ("<answer>b</answer>", False, True),
        ("<answer>b</answer>\n", False, True),
        (" " + THOUGHT + "<answer>b</answer>\n", True, False),
        (THOUGHT + "<answer>b</answer>.", False, False),
        (THOUGHT + "so <answer>b</answer>", False, False),
        (THOUGHT + "<answer>b", False, False),
        ("<think>a<answer>b</answer></think>", False, False),
        ("<answer>b</answer>" + THOUGHT, False, False),
        ("<think>a<think></think><answer>b</answer>", False, False),
        (THOUGHT + "<answer>b</answer><answer>b</answer>", False, False),
        ("</think><think><answer>b</answer>", False, False),
        ("", False, False),
    ],
)
def test_format_by_example(text: str, thinking: bool, no_think: bool) -> None:
    assert format_ok(text) is thinking
    assert format_ok(text, no_think=True) is no_think


def test_every_protocol_can_read_and_score() -> None:
    assert list(ANSWER_PARSERS) == list(PROTOCOLS)
    with pytest.raises(ConfigError, match=r"expected one of: taro, clock, time-r1"):
        parse_answer("", protocol="tar0")


@pytest.mark.parametrize(
    ("answer", "taro", "time_r1"),
    [
        ("12.0s to 15.5s", (12, 15.5), None),
        ("12 to 15", (12, 15), (12, 15)),
        ("From 12.00 s to 15.50 s.", (12, 15.5), None),
        ("12.0 and 15.5", None, (12, 15.5)),
        ("12 seconds TO 15 seconds", (12, 15), None),
        ("15 to 12", None, (15, 12)),
        ("-1.0 to 5", (-1, 5), (1, 5)),
        ("1s to 2s, or 3 to 4s", (1, 2), (3, 4)),
        ("00:12 to 00:15", None, (12, 0)),
        ("1.2.3 to 5", None, (2.3, 5)),
    ],
)
def test_answers_by_example(answer: str, taro: tuple[float, float] | None, time_r1: tuple[float, float] | None) -> None:
    text = f"<think>9s to 10s</think><answer>7 to 8</answer> <answer>{answer}</answer> 5s to 6s"
    time_r1 = (7, 8) if time_r1 is None else time_r1
    assert parse_answer(text) == (None if taro is None else Moment(*taro))
    assert parse_answer(text, protocol="time-r1") == (None if time_r1 is None else Moment(*time_r1))


@pytest.mark.parametrize("text", ["1s to 2s", "<answer>1s to 2s", "1s to 2s</answer>", "</answer>1s to 2s<answer>"])
def test_no_complete_answer_block_no_answer(text: str) -> None:
    assert parse_answer(text) is None and parse_answer(text, protocol="taro-train") is None


def test_other_protocols_by_example() -> None:
    assert parse_answer("It is 30.5 or so, until 12.", protocol="taro-official") == Moment(12.0, 30.5)
    assert parse_answer("just 12", protocol="taro-official") is None
    assert parse_answer("from 00:01:05 to 1:10, or 3 - 4", protocol="timelens") == Moment(65.0, 70.0)
    assert parse_answer("[3.5 - 4]", protocol="timelens") == Moment(3.5, 4.0)


@pytest.mark.parametrize(
    ("reasoning", "spans", "timed"),
    [
        ("From 2.0s to 5.5s, it blinks. From 6s to 7.5s, it stops", [(2, 5.5), (6, 7.5)], True),
        ("seen in 2.0 - 5.5 seconds", [(2, 5.5)], True),
        ("seen in 2.0\u20135.5 sec", [(2, 5.5)], True),
        ("between 2 and 5 s", [(2, 5)], True),
        ("at 2.0s and 5.5s", [], True),
        ("at 12.3s", [], True),
        ("after 12 seconds", [], True),
        ("00:12 to 01:15.5", [(12, 75.5)], True),
        ("around 1:02", [], True),
        ("2.0 to 5.5", [(2, 5.5)], True),
        ("from 2 to 5 people", [], False),
        ("for the second time, 2 squares", [], False),
        ("v1.5s3", [], False),
        ("", [], False),
    ],
)
def test_time_in_a_reasoning(reasoning: str, spans: list[tuple[float, float]], timed: bool) -> None:
    read = parse_reasoning(f"<think>{reasoning}</think><answer>70s to 80s</answer>")
    assert read.text == reasoning
    assert read.spans == tuple(Moment(*span) for span in spans)
    assert read.has_timestamp is timed
    assert reasoning_stats(reasoning) == read


def test_a_reasoning_without_an_end_stops_at_the_answer() -> None:
    assert parse_reasoning("<think>1s to 2s <answer>3s to 4s</answer>").spans == (Moment(1, 2),)
    assert parse_reasoning("1s to 2s</think>").text == ""


@given(
    st.lists(st.tuples(st.integers(0, 999), st.integers(1, 999), st.sampled_from(["a dog barks", "x, y: 3s to 4s"])))
)
def test_captions_come_back_from_their_lines(items: list[tuple[int, int, str]]) -> None:
    captions = [DenseCaption(start_s=s / 10, end_s=(s + d) / 10, text=text) for s, d, text in items]
    assert parse_captions("\n".join(map(caption_line, captions))) == captions


PIECES = [
    "1",
    "<answer>",
    "<think>",
    " ",
    "1 ",
    "1s",
    "1:",
    "1 to ",
    "9.",
    "from 1 to ",
    "between ",
    "</answer>",
    "-",
    ".",
]


@pytest.mark.parametrize("piece", PIECES)
def test_hostile_text_costs_linear_work(piece: str) -> None:
    """200,000 characters through every parser: a quadratic one would need 4e10 steps and never come back."""
    text = piece * (200_000 // len(piece))
    for protocol in ANSWER_PARSERS:
        parse_answer(text, protocol=protocol)
        parse_answer(f"<answer>{text}</answer>", protocol=protocol)
    assert len(parse_reasoning(f"<think>{text}").text) == (len(text) if piece != "<answer>" else 0)
    assert format_ok(text) is False
    assert parse_captions(text) == []


@given(st.text(alphabet="<>/answerthik 0123456789.:-tos\n", max_size=300))
def test_any_text_is_read_without_an_error(text: str) -> None:
    for protocol in ANSWER_PARSERS:
        moment = parse_answer(text, protocol=protocol)
        assert moment is None or moment.is_finite()
    assert all(span.is_finite() for span in parse_reasoning(text).spans)
