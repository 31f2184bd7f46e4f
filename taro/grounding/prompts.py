"""What the policy is asked, and how what it says is read: templates, guided prefixes, answers, reasonings.

One query normalisation serves prompts, prefixes and evaluation alike (METHOD 5b; METHOD 4, row 7). Templates are YAML
files: ours ship in `taro/grounding/templates/`; whoever evaluates a released checkpoint gives the path of a file that
holds the wording it was trained with. `{query}` is replaced as plain text, so that a query may hold braces, quotes or
anything.

How an answer is read differs between evaluations, so it has a name: `ANSWER_PARSERS`, one function per protocol; what
the protocols score with the answer is in `taro.metrics.scores`. Everything here is linear in the length of the text,
whatever the text: numbers and blanks in the patterns are bounded, and tags are found by plain search.

Left out: chat templates (they belong to the model folder) and the position of the video (to `taro.models`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pydantic import Field, field_validator

from taro.core.config import Config, digest, load_config, recipe_names
from taro.core.errors import ConfigError
from taro.grounding.moment import Moment
from taro.grounding.records import DenseCaption

__all__ = [
    "ANSWER_PARSERS",
    "PromptTemplate",
    "Reasoning",
    "caption_line",
    "format_ok",
    "load_template",
    "normalise_query",
    "parse_answer",
    "parse_answers",
    "parse_captions",
    "parse_reasoning",
    "reasoning_stats",
    "template_names",
]

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
NUMBER = r"\d{1,9}(?:\.\d{0,9})?"
UNIT = r"(?:seconds?|secs?|s)\b"
CLOCK = r"(?:\d{1,3}:)?\d{1,3}:\d{2}(?:\.\d{1,9})?"
DASHES = "[-\u2010-\u2015]"
SECONDS_RANGE = re.compile(
    rf"(?<![\w.:-])(-?{NUMBER})\s{{0,4}}(?:{UNIT})?\s{{0,4}}to\s{{1,4}}(-?{NUMBER})(?![\d:])", re.IGNORECASE
)
TIME_R1_RANGE = re.compile(
    rf"(?<![\w.])({NUMBER})\s{{0,4}}(?:{UNIT})?\s{{0,4}}(?:to|and)\s{{1,4}}({NUMBER})(?![\d:])", re.IGNORECASE
)
LONE_NUMBER = re.compile(rf"(?<![\d.]){NUMBER}(?!\d)")
TIMELENS_RANGE = re.compile(
    rf"(?<![\w.:])({CLOCK}|{NUMBER})\s{{0,4}}(?:{UNIT})?\s{{0,4}}(?:{DASHES}|to)\s{{0,4}}({CLOCK}|{NUMBER})(?![\d:])",
    re.IGNORECASE,
)
SPAN = re.compile(
    rf"(?<![\w.:])(?:(?P<lead>from|between)\s{{1,4}})?(?P<start>{CLOCK}|{NUMBER})\s{{0,4}}(?P<start_unit>{UNIT})?"
    rf"\s{{0,4}}(?:to|until|till|through|(?P<conjunction>and)|{DASHES})\s{{0,4}}"
    rf"(?P<end>{CLOCK}|{NUMBER})(?![\d:])\s{{0,4}}(?P<end_unit>{UNIT})?",
    re.IGNORECASE,
)
SINGLE_TIME = re.compile(rf"(?<![\w.:])(?:{NUMBER}\s{{0,4}}{UNIT}|{CLOCK}(?![\w:]))", re.IGNORECASE)
CAPTION_LINE = re.compile(
    rf"\s{{0,8}}from\s{{1,4}}({NUMBER})\s?s\s{{1,4}}to\s{{1,4}}({NUMBER})\s?s\s?,\s{{0,4}}(.*)", re.IGNORECASE
)


def normalise_query(text: str) -> str:
    """Strips, collapses blanks, drops a final full stop and keeps everything else; doing it twice changes nothing.

    >>> normalise_query("  Person  turns a light on. ")
    'Person turns a light on'
    >>> normalise_query("and then ...")
    'and then ...'
    """
    text = " ".join(text.split())
    while text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip()
    return text


def _without_tags(text: str) -> str:
    """`text` on one line, its tags defused: a caption that says `</think>` must not end the reasoning, one that says
    `<|im_end|>` must not become that token."""
    text = " ".join(text.split()).replace("<|", "< |")
    for tag in TAGS:
        text = text.replace(tag, f"({tag[1:-1]})")
    return text


def caption_line(caption: DenseCaption) -> str:
    """The one form in which a caption enters a reasoning.

    >>> caption_line(DenseCaption(start_s=2, end_s=5.5, text="a door opens"))
    'From 2.0s to 5.5s, a door opens'
    """
    return f"From {caption.start_s:.1f}s to {caption.end_s:.1f}s, {_without_tags(caption.text)}"


class PromptTemplate(Config):
    """The wording of one prompt. Every text that holds the query holds `{query}` exactly once."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    version: int = Field(ge=1)
    text: str
    """the user's turn after the video; holds {query}"""
    no_think_text: str | None = None
    """the same where only an answer is wanted; None: this template has no such mode"""
    reasoning_opening: str
    """the sentence that opens a guided reasoning; holds {query}"""
    caption_prompt: str
    """asks for all events of a video, with times"""
    segment_prompt: str = "Describe in one sentence what happens in this video."
    """asks for one sentence about a cut of a video"""

    @field_validator("text", "no_think_text", "reasoning_opening")
    @classmethod
    def _names_query_once(cls, text: str | None) -> str | None:
        if text is not None and text.count("{query}") != 1:
            raise ValueError(f"expected {{query}} exactly once, found it {text.count('{query}')} times")
        return text

    @property
    def sha256(self) -> str:
        """Digest over every field, in hex: what manifests and checkpoints record."""
        return digest(self)

    def user_text(self, query: str, *, no_think: bool = False) -> str:
        """The text of the user's turn, after the video."""
        text = self.no_think_text if no_think else self.text
        if text is None:
            raise ConfigError(f"template {self.name} has no no_think_text; add one to its file, or leave no_think off")
        return text.replace("{query}", normalise_query(query))

    def guided_prefix(self, query: str, captions: Sequence[DenseCaption]) -> str:
        """The open `<think>` of a guided rollout (METHOD 1): opening sentence, then `captions` as they are given, one
        a line, a final newline. The policy goes on from there."""
        opening = self.reasoning_opening.replace("{query}", _without_tags(normalise_query(query)))
        return "\n".join(["<think>", opening, *map(caption_line, captions)]) + "\n"


def template_names() -> list[str]:
    """Names of the templates that ship with taro."""
    return recipe_names("taro.grounding.templates")


def load_template(name_or_path: str | Path) -> PromptTemplate:
    """The template of that name, or of the YAML file at that path. Raises ConfigError otherwise."""
    if Path(name_or_path).suffix not in {".yaml", ".yml"} and str(name_or_path) not in template_names():
        known = ", ".join(template_names())
        raise ConfigError(f"{str(name_or_path)[:200]}: no such prompt template; give the path of a .yaml file, or one "
                          f"of: {known}")
    return load_config(PromptTemplate, name_or_path, package="taro.grounding.templates")


def parse_captions(text: str) -> list[DenseCaption]:
    """Reads back lines in the form of `caption_line`; lines in any other form, and empty times, are left out.

    >>> [c.text for c in parse_captions("Sure:\\nFrom 0.0s to 2.5s, a dog barks\\nFrom 3s to 3s, nothing")]
    ['a dog barks']
    """
    captions = []
    for line in text.splitlines():
        match = CAPTION_LINE.match(line)
        if match is None or not match[3].strip():
            continue
        start_s, end_s = float(match[1]), float(match[2])
        if start_s < end_s <= 1e6:
            captions.append(DenseCaption(start_s=start_s, end_s=end_s, text=match[3].strip()[:20_000]))
    return captions


def format_ok(text: str, *, no_think: bool = False) -> bool:
    r"""METHOD 2: each tag exactly once, and the whole of `text` is `<think>...</think>\s*<answer>...</answer>`; with
    `no_think`, the whole is `<answer>...</answer>` and nothing thinks.

    >>> format_ok("<think>a</think>\n<answer>1.00s to 2.00s</answer>")
    True
    >>> format_ok("<answer>1.00s to 2.00s</answer>"), format_ok("<answer>1.00s to 2.00s</answer>", no_think=True)
    (False, True)
    """
    if [text.count(tag) for tag in TAGS] != ([0, 0, 1, 1] if no_think else [1, 1, 1, 1]):
        return False
    head, _, rest = text.partition("<answer>")
    if not rest.endswith("</answer>"):
        return False
    if no_think:
        return head == ""
    return head.startswith("<think>") and head.rstrip().endswith("</think>")


def _last_answer(text: str) -> str | None:
    """The content of the last complete `<answer>` block; None where there is none."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return None if end < 0 or start < 0 else text[start + len("<answer>") : end]


def _parse_taro(text: str) -> Moment | None:
    match = SECONDS_RANGE.search(_last_answer(text) or "")
    return None if match is None else Moment(float(match[1]), float(match[2]))


def _parse_time_r1(text: str) -> Moment | None:
    matches = TIME_R1_RANGE.findall(_last_answer(text) or "")
    return Moment(float(matches[-1][0]), float(matches[-1][1])) if matches else None


def _parse_taro_official(text: str) -> Moment | None:
    numbers = [float(number) for number in LONE_NUMBER.findall(text)][-2:]
    return Moment(min(numbers), max(numbers)) if len(numbers) == 2 else None


def _parse_timelens(text: str) -> Moment | None:
    match = TIMELENS_RANGE.search(text)
    return None if match is None else Moment(_seconds(match[1]), _seconds(match[2]))


ANSWER_PARSERS: dict[str, Callable[[str], Moment | None]] = {
    "taro": _parse_taro,
    "time-r1": _parse_time_r1,
    "taro-official": _parse_taro_official,
    "timelens": _parse_timelens,
    "union": _parse_taro,
    "moment-detr": _parse_taro,
    "multi-window": _parse_taro,
}
"""Protocol name -> how it reads a moment from a whole response (table in docs/protocols.md)."""

SEVERAL = ("moment-detr", "multi-window")
"""protocols under which an answer may hold several windows; its first is the moment that `parse_answer` reads"""
MAX_ANSWERS = 100


def parse_answer(text: str, *, protocol: str = "taro") -> Moment | None:
    """The moment that a response answers, in seconds, as `protocol` reads it; None where it holds none. The moment may
    be reversed or lie outside the video: scoring decides what that is worth.

    >>> parse_answer("<think>at 1s</think><answer>12.00s to 15.5 s</answer>")
    Moment(start_s=12.0, end_s=15.5)
    >>> parse_answer("12.0s to 15.5s") is None
    True
    >>> parse_answer("from 9 down to 3", protocol="taro-official")
    Moment(start_s=3.0, end_s=9.0)
    """
    if protocol not in ANSWER_PARSERS:
        raise ConfigError(f"{protocol}: no such evaluation protocol; expected one of: {', '.join(ANSWER_PARSERS)}")
    return ANSWER_PARSERS[protocol](text)


def parse_answers(text: str, *, protocol: str = "multi-window") -> tuple[Moment, ...]:
    """All windows that a response answers, as written and in its order: under `SEVERAL` every `a s to b s` of its last
    answer, at most 100, elsewhere the one that `parse_answer` reads.

    >>> [w.start_s for w in parse_answers("<answer>2.00s to 5.50s, 8.00s to 9.00s</answer>")]
    [2.0, 8.0]
    >>> len(parse_answers("<answer>2.00s to 5.50s, 8.00s to 9.00s</answer>", protocol="taro"))
    1
    """
    if protocol not in SEVERAL:
        only = parse_answer(text, protocol=protocol)
        return () if only is None else (only,)
    found = islice(SECONDS_RANGE.finditer(_last_answer(text) or ""), MAX_ANSWERS)
    return tuple(Moment(float(match[1]), float(match[2])) for match in found)


@dataclass(frozen=True)
class Reasoning:
    """What stands between `<think>` and `</think>`. `spans`: its time ranges, in order, as written (one may be
    reversed); `has_timestamp`: it holds a time range or a single time in seconds."""

    text: str
    spans: tuple[Moment, ...]
    has_timestamp: bool


def parse_reasoning(text: str) -> Reasoning:
    """The reasoning of a whole response: from its first `<think>` to the next `</think>`, or to the answer or the end
    where it was never closed; empty where nothing opens it.

    >>> parse_reasoning("<think>From 2.0s to 5.5s, it blinks.</think><answer>1s to 2s</answer>").spans
    (Moment(start_s=2.0, end_s=5.5),)
    """
    _, opened, inside = text.partition("<think>")
    if not opened:
        return Reasoning("", (), False)
    inside = inside.partition("</think>")[0].partition("<answer>")[0]
    return reasoning_stats(inside)


def reasoning_stats(reasoning: str) -> Reasoning:
    """The same for a text that is a reasoning already. Ranges count with a unit ("2.0 - 5.5 seconds"), as clock times
    ("00:12 to 00:15") or with decimals on both sides; bare integers ("from 2 to 5") may count anything and do not.

    >>> reasoning_stats("it starts at 12.3s").has_timestamp, reasoning_stats("2 to 5 people").has_timestamp
    (True, False)
    """
    times = [match for match in SPAN.finditer(reasoning) if _is_time(match)]
    spans = tuple(Moment(_seconds(match["start"]), _seconds(match["end"])) for match in times)
    return Reasoning(reasoning, spans, bool(spans) or SINGLE_TIME.search(reasoning) is not None)


def _is_time(match: re.Match[str]) -> bool:
    if match["conjunction"] and (match["lead"] or "").lower() != "between":
        return False  # "at 2.0s and 5.5s" are two times, not a range
    ends = (match["start"], match["end"])
    return bool(match["start_unit"] or match["end_unit"]) or all(":" in e for e in ends) or all("." in e for e in ends)


def _seconds(text: str) -> float:
    """Seconds of `12.5`, `00:12` or `1:02:03.5`."""
    total_s = 0.0
    for part in text.split(":"):
        total_s = total_s * 60 + float(part)
    return total_s
