"""What the policy is asked: prompt templates, guided prefixes, and the one form in which a caption is written.

One query normalisation serves prompts, prefixes and evaluation alike (docs/method.md, difference 7). Templates are YAML
files: ours are in `taro/grounding/templates/`; whoever evaluates a released checkpoint gives the path of a file with
the wording that it was trained with. `{query}` is replaced as plain text, so a query may hold braces, quotes or
anything.

Left out: reading what the policy says (`taro.grounding.answers`), chat templates (they belong to the model folder) and
the position of the video (to `taro.models`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, field_validator

from taro.core.config import Config, digest, load_config, recipe_names
from taro.core.errors import ConfigError
from taro.core.numbers import number
from taro.grounding.moment import Moment
from taro.grounding.records import DenseCaption

__all__ = ["TAGS", "Asking", "PromptTemplate", "answer_text", "caption_line", "load_template", "normalise_query",
           "parse_captions", "template_names"]

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
CAPTION_LINE = re.compile(
    rf"\s{{0,8}}from\s{{1,4}}({number()})\s?s\s{{1,4}}to\s{{1,4}}({number()})\s?s\s?,\s{{0,4}}(.*)", re.IGNORECASE)


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


def answer_text(windows: Sequence[Moment]) -> str:
    """The answer that names these windows, as our templates ask for it.

    >>> answer_text([Moment(2, 5.5), Moment(8, 9)])
    '<answer>2.00s to 5.50s, 8.00s to 9.00s</answer>'
    """
    return f"<answer>{', '.join(f'{one.start_s:.2f}s to {one.end_s:.2f}s' for one in windows)}</answer>"


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
        """The open `<think>` of a guided rollout: opening sentence, then `captions` as they are given, one a line, a
        final newline. The policy goes on from there."""
        opening = self.reasoning_opening.replace("{query}", _without_tags(normalise_query(query)))
        return "\n".join(["<think>", opening, *map(caption_line, captions)]) + "\n"


@dataclass(frozen=True)
class Asking:
    """How queries are put to a policy, and how its answers are read. no_think: the answer alone is asked for; protocol:
    a name of `taro.grounding.protocols.PROTOCOLS`."""

    template: PromptTemplate
    no_think: bool = False
    protocol: str = "taro"

    def text(self, query: str) -> str:
        """The text of the user's turn, after the video."""
        return self.template.user_text(query, no_think=self.no_think)


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
