"""A query on the time axis of its clip, as every page shows one: the parts of a card, and the lanes that pages share.

A card has its words (query, facts, windows as text), its time axis with the contact sheet above, and what belongs to it
(a table, responses), open or folded. `card` of templates/macros.html draws it. Clips come from anything that has them
(`Clips`; a shard set does), so that nothing here knows of shards.

CLIP agreement of a caption is its mean CLIP similarity to the frames of its own segment less that to all other frames.
It is drawn on one fixed scale, equal on all pages: the strongest green from +AGREEMENT_SCALE on, grey at 0, the
strongest red from -AGREEMENT_SCALE on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from taro.grounding.moment import Moment
from taro.grounding.records import ClipRecord, DenseCaption
from taro.pages.render import number, windows_text
from taro.pages.timeline import Lane, Span, Timeline, timeline

__all__ = ["AGREEMENT_NOTE", "MAX_SPAN_TEXT", "MAX_TEXT", "Card", "Clips", "Fold", "Response", "Table",
           "caption_lanes", "captions_fold",
           "find_clip", "group_card", "path_lanes", "window_lane"]

MAX_TEXT = 4000
MAX_SPAN_TEXT = 200
"""where a text is repeated, once a window or a path"""
"""characters of a text that a page shows"""

AGREEMENT_SCALE = 0.1
AGREEMENT_NOTE = (f"CLIP agreement: similarity to the frames of a caption's own segment less that to all others. Green "
                  f"from 0 to +{AGREEMENT_SCALE:.2f}, red from 0 to -{AGREEMENT_SCALE:.2f}; beyond, the colour stays.")

COLUMNS = {"format": "format", "tiou": "tIoU", "bonus": "bonus", "reward": "reward", "drop": "log-prob drop",
           "advantage": "advantage", "iou": "IoU"}
"""numbers of a training rollout: key in its dump, heading"""

Cell = str | tuple[str, str]
"""a text, or a text and the CSS class of its cell"""


class Clips(Protocol):
    """Where clips and their contact sheets come from."""

    @property
    def keys(self) -> Sequence[str]:
        """Keys of all clips."""

    def clip(self, key: str) -> ClipRecord:
        """What is known of a clip."""

    def thumbnail(self, key: str) -> bytes | None:
        """Its contact sheet, a JPEG or PNG file; None where there is none."""


@dataclass(frozen=True)
class Table:
    """Rows under a head; the first `texts` columns are texts, the others numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    texts: int = 1


@dataclass(frozen=True)
class Response:
    """A whole text with a title; `css_class` colours the title."""

    title: str
    text: str
    css_class: str = ""


@dataclass(frozen=True)
class Fold:
    """Parts of a card that open when they are asked for."""

    summary: str
    timeline: Timeline | None = None
    table: Table | None = None
    responses: Sequence[Response] = ()
    note: str = ""


@dataclass(frozen=True)
class Card:
    """One query. `windows`: (what, CSS class, windows as text), printed under it; `facts`: of small interest."""

    title: str
    facts: str
    windows: Sequence[tuple[str, str, str]] = ()
    timeline: Timeline | None = None
    table: Table | None = None
    responses: Sequence[Response] = ()
    folds: Sequence[Fold] = ()


def find_clip(key: str, sets: Sequence[Clips]) -> tuple[ClipRecord | None, bytes | None]:
    """A clip and its contact sheet, from the first set that has the key."""
    found = next((one for one in sets if key in one.keys), None)
    return (None, None) if found is None else (found.clip(key), found.thumbnail(key))


def window_lane(label: str, windows: Sequence[Moment], css_class: str, text: str = "") -> Lane:
    """A lane of windows, all with one text."""
    return Lane(label, [Span(window.start_s, window.end_s, text, css_class) for window in windows])


def caption_lanes(clip: ClipRecord | None) -> list[Lane]:
    """The captions, and their CLIP agreement where the set has it; nothing where a clip has no captions."""
    captions = [] if clip is None else clip.captions
    lanes = [Lane("captions", [Span(c.start_s, c.end_s, c.text[:MAX_TEXT]) for c in captions])] if captions else []
    scored = [Span(c.start_s, c.end_s, _agreement(c), *_colour(c.alignment)) for c in captions
              if c.alignment is not None]
    return [*lanes, Lane("CLIP agreement", scored)] if scored else lanes


def captions_fold(clip: ClipRecord) -> Fold:
    """The captions in full, folded."""
    rows: list[list[Cell]] = []
    for caption in clip.captions:
        css_class = "" if caption.alignment is None else "up" if caption.alignment > 0 else "down"
        rows.append([windows_text([caption.moment]), (caption.text[:MAX_TEXT], "text"),
                     (_agreement(caption), css_class)])
    return Fold(f"{len(rows)} captions", table=Table(["time", "caption", "CLIP agreement"], rows, texts=2))


def path_lanes(clip: ClipRecord, label: str, paths: Sequence[Sequence[int]]) -> list[Lane]:
    """A lane for each candidate path: the captions that it is made of, whose texts stand in full in another lane."""
    return [Lane(f"{label} {number}", [Span(c.start_s, c.end_s, c.text[:MAX_SPAN_TEXT], "path", 0.55)
                                       for c in (clip.captions[index] for index in path)])
            for number, path in enumerate(paths)]


def group_card(rows: Sequence[Mapping[str, Any]], clip: ClipRecord | None, sheet: bytes | None = None, *, title: str,
               facts: str, truth: Sequence[Moment], duration_s: float, folds: Sequence[Fold] = ()) -> Card:
    """A group of training rollouts: every answer on the axis, reward parts, drops and advantages in a table, texts
    folded. `rows` are lines of a rollout dump; what is not of its type there is shown as a text, or as no answer."""
    lanes, body, said = [window_lane("ground truth", truth, "truth")], [], []
    for row in rows:
        name, answers = _cell(row.get("g")), _windows(row.get("answers")) or _windows([row.get("predicted")])
        lanes.append(window_lane(f"{name}, R = {_cell(row.get('reward'), 2)}" if answers else f"{name}, no answer",
                                 answers, "after", f"IoU {_cell(row.get('iou'), 2)}"))
        body.append([name, "guided" if row.get("guided") is True else "free",
                     windows_text(answers) if answers else "no answer",
                     *((_cell(row.get(key)), _sign(row.get(key)) if key == "advantage" else "") for key in COLUMNS)])
        said.append(Response(f"rollout {name}", str(row.get("text", ""))[:MAX_TEXT]))
    table = Table(["rollout", "", "answer", *COLUMNS.values()], body, texts=3)
    return Card(title, facts, [("ground truth", "truth", windows_text(truth))],
                timeline(duration_s, [*lanes, *caption_lanes(clip)], sheet), table,
                folds=[*folds, Fold(f"what the {len(rows)} rollouts said", responses=said)])


def _agreement(caption: DenseCaption) -> str:
    return "-" if caption.alignment is None else f"{caption.alignment:+.2f}"


def _colour(alignment: float) -> tuple[str, float]:
    return "good" if alignment > 0 else "bad", min(abs(alignment) / AGREEMENT_SCALE, 1.0)


def _windows(value: Any) -> list[Moment]:
    """The windows in `value`, a list of pairs of numbers; others are left out."""
    pairs = value if isinstance(value, list | tuple) else ()
    return [Moment(float(pair[0]), float(pair[1])) for pair in pairs
            if isinstance(pair, list | tuple) and len(pair) == 2 and all(type(end) in (int, float) for end in pair)]


def _cell(value: Any, digits: int = 3) -> str:
    """A value of a dump as a table shows it."""
    return number(value, digits) if isinstance(value, float) or value is None else str(value)[:200]


def _sign(value: Any) -> str:
    return "" if not isinstance(value, float) or value == 0 else "up" if value > 0 else "down"
