"""What is fuzzed of numbers, times and answers, and of the beginnings of video files.

Answers are checked against more than "no exception": a moment is finite and, under taro's own protocols, in order; each
number that `taro` reads stands whole in the text; protocols with an evaluator's name equal the oracles of
tests/grounding; forms of times whose value is known are read as that value, or by `taro` not at all.
"""

from __future__ import annotations

import math
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import fuzz_mutations as change
from benchmarks.fuzz_targets import Files, Target
from taro.core.numbers import MAX_DIGITS, number, read_count, read_number
from taro.grounding.answers import ANSWER_PARSERS, SPAN, TO, format_ok, parse_answer, parse_answers, parse_reasoning
from taro.grounding.clock import JOINS
from taro.grounding.moment import Moment
from taro.grounding.prompts import parse_captions
from taro.grounding.protocols import PROTOCOLS
from taro.grounding.times import CLOCK_UNITS, SECONDS, ranges, read_time, times
from taro.preprocess.video.contents import CONTAINERS, HEAD_BYTES, OTHERS, demuxer_of, is_plain_mp4, opened_file
from tests.grounding.test_evaluators import ORACLES, PIECES, released_format
from tests.preprocess.test_contents import NO_VIDEOS

OWN = ("taro", "clock", "union", "moment-detr", "multi-window")
"""protocols whose moments start before they end"""
ORACLE_CHARACTERS = 400
MORE = [
    "h",
    "ms",
    "min",
    "1h 2m 3s",
    "2 to 7 minutes",
    "[12.0, 15.5]",
    '{"start": "00:12", "end": 15}',
    "[",
    "]",
    "{",
    "}",
    '"start": ',
    '"end_s": ',
    "\u79d2",
    "\u5206",
    "\u5230",
    "\u534a",
    "\uff1a",
    "\u2013",
    "~",
    "1e307",
    " 1e306 h",
    "1e-320",
    "9" * 39,
    "9" * 41,
    "0." + "3" * 40,
    "0:60",
    "999:59",
    "e5",
    "+",
    "'",
    "`",
    "/",
    "\u00b0",
    "until",
    "\u0131",
    "\u00b2",
]
FORMS: list[Callable[[int], str]] = [
    lambda s: f"{s // 60:02d}:{s % 60:02d}", lambda s: f"{s // 3600}:{s // 60 % 60:02d}:{s % 60:02d}",
    lambda s: f"{s}s", lambda s: f"{s}.0 seconds", lambda s: f"{s // 60}m {s % 60}s",
    lambda s: f"{s // 60} min {s % 60} sec",
    lambda s: f"{s * 1000} ms", lambda s: f"{s // 3600}h{s // 60 % 60}m{s % 60}s",
    lambda s: f"{s // 60}\u5206{s % 60}\u79d2",
    lambda s: f"{s}\u79d2",
]  # fmt: skip
AROUND = ["", "", "It happens from ", "**", "Answer: ", "\n", "<think>a dog</think>", "about ", "the video: "]
HEADS = [*(start for starts in CONTAINERS.values() for start in starts), *(start for _, _,
         starts in OTHERS for start in starts),
         *(data[:400] for data, _ in NO_VIDEOS.values()), b"RIFF\0\0\0\0AVI LIST", b"\0\0\1\xba\x44",
         b"\0\0\0\1\x67\x64",
         b"\0\0\1\xb3", (b"\x47" + b"\1" * 187) * 8, b"\0\0\0\0" + (b"\x47" + b"\1" * 191) * 8]  # fmt: skip
PLAYLIST = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:#EXTM3U|ffconcat|v=0\r?\no=|\[playlist\]|<MPD|<smil)", re.IGNORECASE)


def answer_targets(_: Path) -> list[Target]:
    """The targets of this file."""
    return [Target("numbers", _numbers, _read_numbers, 10), Target("times", _response, _read_times, 10),
            Target("protocols", _response, _read_answers, 10), Target("clock-forms", _clock_form, _read_form, 10),
            Target("demuxers", _head, _read_head, 10)]  # fmt: skip


def _numbers(rng: random.Random) -> Files:
    value = struct.unpack("d", rng.randbytes(8))[0] if rng.random() < 0.6 else rng.uniform(-1e4, 1e4)
    value = value if math.isfinite(value) else 0.1
    text = f"{value!r}" if rng.random() < 0.5 else f"{value:.{rng.randrange(50)}f}"
    return {"value": struct.pack("d", value), "places": bytes([rng.randrange(50)]),
            "text": change.blob(rng, text.encode())}  # fmt: skip


def _read_numbers(files: Files, _: Path) -> None:
    value, text = struct.unpack("d", files["value"])[0], files["text"].decode("utf-8", "replace")
    assert read_number(repr(value)) == value and re.fullmatch(number(signed=True), repr(value)), "what Python prints"
    printed = f"{value:.{files['places'][0]}f}"
    long = any(len(part) > MAX_DIGITS for part in printed.lstrip("-").split("."))
    assert read_number(printed) == (None if long else float(printed)), "read whole or refused"
    found, count = read_number(text), read_count(text)
    assert found is None or (math.isfinite(found) and found == float(text))
    assert count is None or (count == int(text) and text.isascii())
    for match in re.finditer(number(), text):
        float(match[0])
        around = text[max(0, match.start() - 1) : match.start()], text[match.end() : match.end() + 1]
        assert not (around[0].isalnum() or around[1].isdecimal()), "a piece of a number"


def _response(rng: random.Random) -> Files:
    pieces = [rng.choice((*PIECES, *MORE)) if rng.random() < 0.7 else f"{rng.uniform(0, 99):.{rng.randrange(4)}f}"
              for _ in range(rng.randrange(1, 16))]  # fmt: skip
    text = rng.choice(("", " ")).join(pieces)
    text = f"<think>{rng.choice(pieces)}</think><answer>{text}</answer>" if rng.random() < 0.5 else text
    data = text.encode() * (rng.choice((30, 900)) if rng.random() < 0.003 else 1)
    return {"response": change.blob(rng, data) if rng.random() < 0.4 else data}


def _read_times(files: Files, _: Path) -> None:
    text = files["response"].decode("utf-8", "replace")
    for units, joins, clock in ((SECONDS, TO, False), (SECONDS, SPAN, True), (CLOCK_UNITS, JOINS, True)):
        at = 0
        for one in times(text, units, clock=clock):
            assert at <= one.start < one.end <= len(text) and any(char.isdigit() for char in text[one.start : one.end])
            assert one.seconds is None or math.isfinite(one.seconds)
            at = one.end
        for lenient in (False, True):
            found = list(ranges(text, units, joins, clock=clock, lenient=lenient))
            assert all(one.moment is None or one.moment.is_finite() for one in found)
    alone = read_time(text)
    assert alone is None or alone.seconds is None or math.isfinite(alone.seconds)


def _read_answers(files: Files, _: Path) -> None:
    text = files["response"].decode("utf-8", "replace")
    for name in ANSWER_PARSERS:
        moment, several = parse_answer(text, protocol=name), parse_answers(text, protocol=name)
        assert moment == (several[0] if several else None) and len(several) <= 100
        for one in several:
            assert one.is_finite() and (name not in OWN or one.start_s <= one.end_s)
            _score(name, one, several)
    whole = _whole_numbers(text)
    for one in parse_answers(text):
        assert {abs(one.start_s), abs(one.end_s)} <= whole, f"{one}: not the numbers of the text"
    if len(text) <= ORACLE_CHARACTERS:
        assert format_ok(text) == released_format(text)
        for name, oracle in ORACLES.items():
            expected, found = oracle(text), parse_answer(text, protocol=name)
            if expected is not None and not all(map(math.isfinite, expected)):
                expected = None  # the source reads infinity, taro nothing
            assert (found is None) == (expected is None), name
            ends = () if found is None or expected is None else zip((found.start_s, found.end_s), expected, strict=True)
            assert all(math.isclose(ours, theirs, rel_tol=1e-12) for ours, theirs in ends), name
    assert all(span.is_finite() for span in parse_reasoning(text).spans)
    assert all(math.isfinite(one.start_s) and math.isfinite(one.end_s) for one in parse_captions(text))


def _score(name: str, moment: Moment, several: tuple[Moment, ...]) -> None:
    protocol, windows = PROTOCOLS[name], (Moment(2.0, 5.5), Moment(7.0, 9.0))
    for duration_s in (None, 10.0):
        truths, scored = protocol.truths(windows, duration_s), protocol.answer(moment, duration_s)
        assert (
            scored is None
            or duration_s is None
            or not protocol.clip_answers
            or 0 <= scored.start_s <= scored.end_s <= 10
        )
        assert 0.0 <= protocol.iou(scored, truths, several) <= 1.0


def _whole_numbers(text: str) -> set[float]:
    """Numbers as long as they go, signs aside: of `1,200` neither 1 nor 200."""
    found = set()
    for match in re.finditer(r"(?<![\w./])(?<![0-9],)[0-9.](?:[\w.,:/]|(?<=[eE])[-+](?=[0-9]))*", text):
        run = re.fullmatch(r"([0-9.]+(?:[eE][-+]?[0-9]+)?)[a-zA-Z]*", match[0].rstrip(".,:;/'\"_"))
        if run and run[1].strip("."):
            found.add(_float(run[1]))
    return found


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _clock_form(rng: random.Random) -> Files:
    start_s = rng.randrange(5000)
    end_s = start_s + rng.randrange(500)
    form = rng.choice(FORMS)
    start, end = form(start_s), form(end_s)
    ways = [f"{start} to {end}", f"{start} - {end}", f"[{start}, {end}]", f'{{"start": "{start}", "end": "{end}"}}',
            f"between {start} and {end}"]  # fmt: skip
    if "\u79d2" in start:
        ways.append(f"{start}\u5230{end}")
    text = rng.choice(ways)
    if rng.random() < 0.2:
        text = text.translate({ord(str(digit)): chr(0xFF10 + digit) for digit in range(10)})
    text = (
        rng.choice(AROUND) + (text if rng.random() < 0.5 else f"<answer>{text}</answer>") + rng.choice(("", ".", "\n"))
    )
    return {"text": text.encode(), "truth": f"{start_s} {end_s}".encode()}


def _read_form(files: Files, _: Path) -> None:
    text, truth = files["text"].decode(), [float(part) for part in files["truth"].split()]
    found = parse_answer(text, protocol="clock")
    assert found is not None and all(math.isclose(a, b, abs_tol=1e-9) for a, b in
                                     zip((found.start_s, found.end_s), truth,
                                         strict=True)), f"{found}, not {truth}"  # fmt: skip
    for name in ("taro", "union", "moment-detr", "multi-window"):
        other = parse_answer(text if "<answer>" in text else f"<answer>{text}</answer>", protocol=name)
        assert other is None or [other.start_s, other.end_s] == truth, f"{name}: {other}, not {truth}"


def _head(rng: random.Random) -> Files:
    data = rng.choice(HEADS)
    if rng.random() < 0.4:
        data = b"".join(_box(rng) for _ in range(rng.randrange(1, 5)))
    if rng.random() < 0.15:
        data = (
            rng.choice((b"\n", b"\xef\xbb\xbf", b" " * 188, b"#EXTM3U\n", b"ffconcat version 1.0\n", b"\0" * 4)) + data
        )
    if rng.random() < 0.3:
        data += bytes(rng.choice((1, 500, HEAD_BYTES)))
    return {"a": change.blob(rng, data, HEADS) if rng.random() < 0.6 else data}


def _box(rng: random.Random) -> bytes:
    kind = rng.choice((b"ftyp", b"moov", b"mdat", b"free", b"moof", b"styp", b"uuid", b"xxxx", b"\0\0\0\0"))
    inner = rng.choice((b"", b"isom\0\0\0\0", b"heic\0\0\0\0", rng.randbytes(20)))
    size = rng.choice((8 + len(inner),) * 6 + (0, 1, 7, 8, 2**32 - 1))
    wide = rng.choice((16 + len(inner), 0, 15, 2**63, 2**64 - 1)).to_bytes(8, "big") if size == 1 else b""
    return size.to_bytes(4, "big") + kind + wide + inner


def _read_head(files: Files, folder: Path) -> Any:
    (folder / "a%d.m3u8").write_bytes(files["a"])
    with opened_file(folder / "a%d.m3u8") as descriptor:
        plain = is_plain_mp4(descriptor)
        demuxer = demuxer_of(descriptor, "a")
    known = {*CONTAINERS, "mov", "avi", "apng", "mpegts", "mpeg", "mpegvideo", "hevc", "h264"}
    assert demuxer in known and not (plain and demuxer != "mov"), demuxer
    assert not PLAYLIST.match(files["a"]), f"{demuxer}: a playlist"
    return demuxer
