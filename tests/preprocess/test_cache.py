"""A caption is asked for once, whatever dies in between."""

from __future__ import annotations

from pathlib import Path

from taro.grounding.moment import Moment
from taro.preprocess.captioners.cache import CaptionCache, question

WHOLE = Moment(0, 2)


def ask(stretch: Moment = WHOLE, video: str = "a" * 64, prompt: str = "p") -> str:
    return question(video, Moment(0, 9), stretch, "captioner", prompt)


def test_answers_outlive_the_process_and_the_slice(tmp_path: Path) -> None:
    CaptionCache(tmp_path).add(3, [(ask(), "a door opens.\nFrom 1"), (ask(Moment(2, 4)), 'says "hi" {x}')])
    again = CaptionCache(tmp_path)
    assert again.get(ask()) == "a door opens.\nFrom 1"
    assert again.get(ask(Moment(2, 4))) == 'says "hi" {x}'
    assert again.get(ask(Moment(2, 4.5))) is None


def test_every_part_of_a_question_counts() -> None:
    asked = {ask(), ask(Moment(0, 3)), ask(video="b" * 64), ask(prompt="q"),
             question("a" * 64, Moment(1, 9), Moment(0, 2), "captioner", "p"),
             question("a" * 64, Moment(0, 9), Moment(0, 2), "another", "p")}  # fmt: skip
    assert len(asked) == 6


def test_a_torn_last_line_costs_only_itself(tmp_path: Path) -> None:
    cache = CaptionCache(tmp_path)
    cache.add(0, [(ask(), "one")])
    path = tmp_path / "captions-000000.jsonl"
    for cut in range(1, 60):
        whole = path.read_bytes()
        path.write_bytes(whole + b'{"question": "abc", "text": "half of a sentence that never ended'[:cut])
        torn = CaptionCache(tmp_path)
        assert torn.get(ask()) == "one" and torn.get("abc") is None
        torn.add(0, [(f"new {cut}", "two")])
        assert CaptionCache(tmp_path).get(f"new {cut}") == "two"
        path.write_bytes(whole)


def test_an_empty_answer_is_an_answer(tmp_path: Path) -> None:
    CaptionCache(tmp_path).add(0, [(ask(), "")])
    assert CaptionCache(tmp_path).get(ask()) == ""
