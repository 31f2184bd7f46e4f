"""Answers with units: read as what they say, or not at all; in evaluation, rewards and `taro ground` alike."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taro.cli.ground import _inside
from taro.grounding.answers import ANSWER_PARSERS, format_ok, parse_answer, parse_answers, reasoning_stats
from taro.grounding.moment import Moment
from taro.metrics.answers import AnswerRow, score_rows
from taro.train.rewards import rewards

PAGE = Path(__file__).resolve().parents[2] / "docs/protocols.md"
Ends = tuple[float, float] | None

OTHER_UNITS = [
    "minutes",
    "min",
    "m",
    "hours",
    "h",
    "frames",
    "frame",
    "%",
    "percent",
    "ms",
    "\u5206",
    "\u5e27",
    "ticks",
    "fps",
]
FORMS = [
    "{a} to {b} {u}",
    "{a} to {b}{u}",
    "{a} to {b} ({u})",
    "({a} to {b}) {u}",
    "{a}{u} to {b}{u}",
    "{a} {u} to {b} {u}",
    "{a}s to {b} {u}",
    "0{u} {a}s to 0{u} {b}s",
    "1 {u} and {a}s to {b}s",
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("unit", OTHER_UNITS)
@pytest.mark.parametrize("protocol", ["taro", "union", "moment-detr", "multi-window"])
def test_another_unit_is_never_seconds(protocol: str, unit: str, form: str) -> None:
    answer = f"<answer>{form.format(a=2, b=7, u=unit)}</answer>"
    assert parse_answer(answer, protocol=protocol) is None and parse_answers(answer, protocol=protocol) == ()


@pytest.mark.parametrize(
    "answer",
    [
        "1,200s to 1,300s",
        "1 200 to 1 900",
        "1.2.3 to 5",
        "1'03 to 5'10",
        "1_000 to 2_000",
        "frames 125 to 150",
        "2 to 3 and a half minutes",
        "minutes: 2 to 7",
        "2 to 7 minutes, i.e. 120 to 420 seconds",
        "\uff12 to \uff17",
        "12-15 to 20",
        "1/2 to 3/4",
        "15 to 12",
    ],
)
def test_what_is_no_plain_range_of_seconds_is_unparsable(answer: str) -> None:
    assert parse_answer(f"<answer>{answer}</answer>") is None


@pytest.mark.parametrize("form", [
    "{a} to {b}, in {u}", "{a} to {b}. ({u})", "{a} to {b}: {u}", "{a} to {b}; unit: {u}", "{a} to {b} - {u}",
    "{a} to {b} \u2013 {u}", "{a} to {b}\u2014{u}", "{u} from {a} to {b}", "{u}: from {a} to {b}",
    "{u} between {a} and {b}", "{u} range {a} to {b}", "{u} number {a} to {b}", "{u} no. {a} to {b}",
    "[{a}, {b}] {u}", "[{a}, {b}] ({u})", "{u} [{a}, {b}]", "{u}: [{a}, {b}]", "[[{a}, {b}]] {u}",
    '{{"{u}": [{a}, {b}]}}', '{{"{u}": [[{a}, {b}]]}}', '{{"{u}_range": [{a}, {b}]}}', '{{"time_{u}": [{a}, {b}]}}',
    '{{"start": {a}, "end": {b}, "unit": "{u}"}}', "{{'time_unit': '{u}', 'start': '{a}', 'end': '{b}'}}",
])  # fmt: skip
@pytest.mark.parametrize("unit", ["frames", "frame", "minutes", "hours", "percent", "ms"])
def test_a_unit_said_apart_from_bare_numbers_is_never_passed_over(unit: str, form: str) -> None:
    answer = form.format(a=2, b=7, u=unit)
    for protocol in ("taro", "multi-window", "clock"):
        assert parse_answer(f"<answer>{answer}</answer>", protocol=protocol) is None


@pytest.mark.parametrize("answer", [
    "[12, 15] seconds", "[12, 15] of the video", "[12, 15] (frames 300 to 375)", "seconds: [12, 15]",
    '{"seconds": [12, 15]}', '{"start": 12, "end": 15, "unit": "seconds"}', "frames 300 to 375 are [12s, 15s]",
    "It lasts two minutes. From 12 to 15", "12 to 15, the man sits", "'12' to '15'", "[1] minutes: 12s to 15s",
])  # fmt: skip
def test_clock_reads_seconds_beside_words_of_other_units(answer: str) -> None:
    assert parse_answer(answer, protocol="clock") == Moment(12, 15)


CLOCK: dict[str, Ends] = {
    "00:02 to 00:07": (2, 7),
    "1:02:03 - 1:02:05": (3723, 3725),
    "0m 2s to 0m 7s": (2, 7),
    "2 to 7 minutes": (120, 420),
    "1.5 to 2 min": (90, 120),
    "1h2m3s to 1h2m9s": (3723, 3729),
    "2 minutes to 2 minutes 30 seconds": (120, 150),
    '{"start": 12.0, "end": 15.5}': (12, 15.5),
    '```json\n{"start_time": "0:12", "end_time": "0:15"}\n```': (12, 15),
    "{'start': '12s', 'end': '15s'}": (12, 15),
    '[{"start": 1, "end": 2}, {"start": 5, "end": 6}]': (1, 2),
    "[12.0, 15.5]": (12, 15.5),
    "[12,15]": (12, 15),
    "[00:12, 00:15]": (12, 15),
    "[[1, 2], [5, 6]]": (1, 2),
    "\u4ece12\u79d2\u523015\u79d2": (12, 15),
    "2\u52063\u79d2\u52302\u520610\u79d2": (123, 130),
    "\u7b2c12\u79d2\u81f3\u7b2c15\u79d2": (12, 15),
    "1\u5c0f\u65f62\u5206\u949f\u52301\u5c0f\u65f63\u5206\u949f": (3720, 3780),
    "\uff11\uff12\u79d2\u5230\uff11\uff15\u79d2": (12, 15),
    "1250 to 1500 ms": (1.25, 1.5),
    "It happens from 12.5 to 15.3 seconds.": (12.5, 15.3),
    "between 0:12 and 0:15": (12, 15),
    "**0:12** to **0:15**": (12, 15),
    "12s \u2013 15s": (12, 15),
    "12 seconds-15 seconds": (12, 15),
    "see [1]. 0:12 to 0:15": (12, 15),
    "0:12 and 0:15": None,
    "0:15 to 0:12": None,
    "00:75 to 01:80": None,
    "125 to 150 frames": None,
    "40% to 60%": None,
    "1,234.5s to 1,300s": None,
    '{"start_frame": 125, "end_frame": 150}': None,
    '{"start": 125}': None,
    "2 min to 7": None,
    "12 to 00:15": None,
    "[2, 7 minutes]": None,
    "2 to 3 min 30 s": None,
    "[125 frames, 150 frames]": None,
    "\u4ece1\u5206\u52302\u5206\u534a": None,
    "\u7b2c12\u5e27\u523015\u5e27": None,
    "2' to 7'": None,
    '{"unit": "frames", "start": 5}': None,
    "no idea": None,
    "": None,
    "[1e306 h, 1e307 h]": None,
    '{"start": "1e308 min", "end": "1e308 min"}': None,
    "1e307 h to 1e308 h": None,
}


@pytest.mark.parametrize("answer", CLOCK)
def test_clock_reads_what_base_models_answer(answer: str) -> None:
    expected = CLOCK[answer]
    for text in (
        answer,
        f"<think>3s to 4s</think>{answer}",
        f"<think>3s to 4s</think> <answer>{answer}</answer> 8s to 9s",
    ):
        assert parse_answer(text, protocol="clock") == (None if expected is None else Moment(*expected)), text


@given(st.integers(0, 359_999), st.integers(1, 9_999))
def test_clock_reads_every_time_as_it_is_written(start: int, length: int) -> None:
    end = start + length

    def forms(s: int) -> list[str]:
        h, m, rest = s // 3600, s // 60 % 60, s % 60
        return [
            f"{h}:{m:02}:{rest:02}",
            f"{h}h {m}m {rest}s",
            f"{s} seconds",
            f"{h} hours {m} min {rest} sec",
            f"{s}.0s",
            f"{h}\u5c0f\u65f6{m}\u5206{rest}\u79d2",
        ]

    for a, b in zip(forms(start), forms(end), strict=True):
        for text in (
            f"{a} to {b}",
            f"from {a} until {b}.",
            f"[{a}, {b}]",
            f'{{"start": "{a}", "end": "{b}"}}',
            f"{a} - {b}",
        ):
            assert parse_answer(text, protocol="clock") == Moment(start, end), text


def test_the_page_shows_what_is_read() -> None:
    """Each row of the table of units in docs/protocols.md."""
    rows = re.findall(r"^\| ((?:`[^`]+`(?:, )?)+) \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    rows = [
        (re.findall("`([^`]+)`", answers), ours, clock) for answers, ours, clock in rows if "<answer>" not in answers
    ]
    rows = [row for row in rows if " to " in row[0][0] and "Starting" not in row[0][0]]
    assert len(rows) >= 9
    for answers, ours, clock in rows:
        for protocol, shown in (("taro", ours), ("clock", ours if clock.startswith("the same") else clock)):
            match = re.match(r"([\d.]+) to ([\d.]+)", shown)
            for answer in answers:
                found = parse_answer(f"<answer>{answer}</answer>", protocol=protocol)
                assert found == (None if match is None else Moment(float(match[1]), float(match[2]))), (
                    answer,
                    protocol,
                )
                assert match or shown.startswith("unparsable")


def test_the_reward_reads_with_the_same_parser() -> None:
    texts = [
        f"<think>x</think><answer>{answer}</answer>"
        for answer in ("2s to 7s", "2 to 7 minutes", "7.6s to 34.40363474548333s")
    ]
    parts = rewards([texts], [[Moment(2, 7)]], [60.0], np.full((1, 3), np.nan))
    assert parts.predicted_BG == ((Moment(2, 7), None, Moment(7.6, 34.40363474548333)),)
    assert parts.tiou_BG[0, 0] == 1.0 and parts.tiou_BG[0, 1] == 0.0


@given(st.text("0123456789.,:s mto-<>[]{}'\"\u5206\u79d2", max_size=120), st.sampled_from(sorted(ANSWER_PARSERS)))
def test_no_text_raises_and_ours_are_in_order(text: str, protocol: str) -> None:
    for whole in (text, f"<answer>{text}</answer>"):
        found = parse_answers(whole, protocol=protocol)
        assert all(one.is_finite() for one in found)
        if protocol in ("taro", "clock", "union", "moment-detr", "multi-window"):
            assert all(one.start_s <= one.end_s for one in found)
    reasoning_stats(text)


def row(answer: Ends, duration_s: float = 10.0) -> AnswerRow:
    moment = None if answer is None else Moment(*answer)
    return AnswerRow(
        "k",
        "q",
        "a dog",
        "v.mp4",
        "0" * 64,
        "",
        moment,
        (Moment(5, 10),),
        duration_s,
        1,
        True,
        () if moment is None else (moment,),
    )


def test_an_end_past_the_clip_is_clipped_and_said() -> None:
    """Under clock it is scored clipped; under taro, as the reward, as it is; the table says how many, and which."""
    clipped, plain = (score_rows([row((5, 15))], protocol=protocol) for protocol in ("clock", "taro"))
    assert (clipped.miou, plain.miou, clipped.past_end, plain.past_end) == (1.0, 0.5, 1, 1)
    assert "1 answers end past their video (clipped)" in clipped.table()
    assert "1 answers end past their video (compared as they are)" in plain.table()
    assert "end past" not in score_rows([row((5, 10)), row(None)]).table()


@pytest.mark.parametrize(
    ("answer", "kept"),
    [((5, 15), (5, 10)), ((12.0, 11.5), None), ((12, 15), None), ((2, 7), (2, 7)), ((-3, 4), (0, 4)), (None, None)],
)
def test_ground_keeps_what_lies_in_the_video(answer: Ends, kept: Ends) -> None:
    assert _inside(row(answer)) == ([] if kept is None else [Moment(*kept)])


@pytest.mark.parametrize("text", ["<think>a</think><answer>b</answer>\n", "\n <think>a</think>\n<answer>b</answer>"])
def test_blanks_around_a_response_cost_no_format_reward(text: str) -> None:
    assert format_ok(text)
