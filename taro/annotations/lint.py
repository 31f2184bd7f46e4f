"""The linter: a raw row goes in, a row that the rest of taro can rely on (or a reason) comes out.

It holds what every dataset has wrong, so importers only translate. Repairs are named one by one; a row is dropped only
where nothing sensible is left. What a kept or repaired row guarantees: a video name and a query that are not blank and
encode as UTF-8, at least one window, every window finite with `0 <= start < end`, `end <= duration` where the duration
is known, and everything within the bounds of `taro.grounding.records`.

Left out: the video itself. Whether it exists and how long it really is, preprocessing finds out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from taro.annotations.rows import AnnotationRow, Dropped, Kept, Outcome, Repaired, Saliency
from taro.grounding.moment import Moment
from taro.grounding.prompts import normalise_query
from taro.grounding.records import DenseCaption

__all__ = ["RawRow", "as_float", "decimal_text", "lint", "lint_captions", "make_unique"]

MAX_QUERY_CHARACTERS = 20_000
MAX_NAME_CHARACTERS = 500
MAX_INTEGER = 10**1000
"""of a name or an id; str() of a larger one may refuse"""
MAX_WINDOWS = 200
MAX_CAPTIONS = 10_000
MAX_TIME_S = 1e6
MAX_SALIENT_CLIPS = 10_000
SHOWN_ITEMS = 4
FAR_OVER_S = 1.0

SWAPPED = "window swapped"
CLIPPED_END = "window clipped to the duration"
CLIPPED_END_FAR = "window clipped to the duration, over by more than 1 s"
CLIPPED_START = "window clipped to the start"
WINDOW_LEFT_OUT = "window left out"
STRIPPED = "query stripped of blanks"
NO_DURATION = "unusable duration left out"
DURATION_OF_CLIP = "duration set to the clip's length"
NO_DIFFICULTY = "unusable difficulty left out"
CAPTIONS_LEFT_OUT = "unusable captions left out"
SALIENCY_LEFT_OUT = "unusable saliency left out"
ID_SHORTENED = "id shortened"
ID_MADE_UNIQUE = "id made unique"


@dataclass(frozen=True)
class RawRow:
    """A row as its file has it: nothing is checked yet, numbers may be anything. `captions` are a list of objects, or
    a tuple that `lint_captions` made, which rows of one video then share; `saliency` is (clip ids, lists of marks)."""

    line: int
    video: Any
    query: Any
    windows: Any
    row_id: Any = None
    duration_s: Any = None
    clip: Any = None
    split: Any = "train"
    difficulty: Any = None
    captions: Any = None
    may_be_cut: bool = False
    saliency: Any = None


class _UnusableError(Exception):
    """Ends the linting of a row; its message is the reason."""


@dataclass
class _Findings:
    repairs: list[str] = field(default_factory=list)

    def note(self, repair: str) -> None:
        """A repair is named once a row, however often it was needed."""
        if repair not in self.repairs:
            self.repairs.append(repair)


def lint(raw: RawRow) -> Outcome:
    """Checks and repairs one row.

    >>> lint(RawRow(7, "v.mp4", "a dog barks ", [[9, 2]], duration_s=8.5)).repairs
    ('query stripped of blanks', 'window swapped', 'window clipped to the duration')
    >>> lint(RawRow(7, "v.mp4", "a dog barks", [[9, 12]], duration_s=8.5)).reason
    'window starts at or past the duration: [9.0, 12.0] of 8.5 s'
    """
    found = _Findings()
    row_id = str(raw.line)
    try:
        row_id = _row_id(raw, found)
        video = _name(raw.video, "video")
        split = _name(raw.split, "split")
        query = _query(raw.query, found)
        clip = _clip(raw.clip)
        duration_s = _duration_s(raw.duration_s, clip, found)
        unclipped = _windows(raw.windows, duration_s, found)
        windows = tuple(w.clip(duration_s if duration_s is not None else math.inf) for w in unclipped)
        row = AnnotationRow(
            row_id=row_id, line=raw.line, video=video, query=query, windows=windows, duration_s=duration_s, clip=clip,
            split=split, difficulty=_difficulty(raw.difficulty, found),
            captions=_captions(raw.captions, duration_s, found), may_be_cut=raw.may_be_cut and clip is not None,
            saliency=_saliency(raw.saliency, found), unclipped=unclipped if unclipped != windows else None)
    except _UnusableError as reason:
        return Dropped(raw.line, row_id, str(reason), tuple(found.repairs))
    return Repaired(row, tuple(found.repairs)) if found.repairs else Kept(row)


def make_unique(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Ids name predictions and records, so a row whose id an earlier row has gets its line number appended. It is
    renamed, not dropped: one id for two different queries is common, and both are data."""
    taken: set[str] = set()
    unique: list[Outcome] = []
    for outcome in outcomes:
        if isinstance(outcome, Dropped):
            unique.append(outcome)
            continue
        row, repairs = outcome.row, outcome.repairs if isinstance(outcome, Repaired) else ()
        row_id = row.row_id
        while row_id in taken:
            row_id = f"{row_id[: MAX_NAME_CHARACTERS - 20]}#{row.line}"
        taken.add(row_id)
        if row_id == row.row_id:
            unique.append(outcome)
        else:
            fields = {name: getattr(row, name) for name in row.__dataclass_fields__} | {"row_id": row_id}
            unique.append(Repaired(AnnotationRow(**fields), (*repairs, ID_MADE_UNIQUE)))
    return unique


def as_float(value: Any) -> float | None:
    """A JSON number as a float (it may be nan); None where it is none, or too large for a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def decimal_text(value: Any) -> Any:
    """An integer as its decimal text, which it is as a name or an id; anything else as it is."""
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < MAX_INTEGER
    return str(value) if whole else value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise _UnusableError(f"no {what}: expected a string, got {_shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _UnusableError(f"{what} is not valid Unicode: {_shown(value)}") from None
    return value


def _name(value: Any, what: str) -> str:
    text = _text(decimal_text(value), what).strip()
    if not text or not text.isprintable():
        raise _UnusableError(f"unusable {what}: expected a printable name, got {_shown(value)}")
    if len(text) > MAX_NAME_CHARACTERS:
        raise _UnusableError(f"unusable {what}: longer than {MAX_NAME_CHARACTERS} characters")
    return text


def _row_id(raw: RawRow, found: _Findings) -> str:
    if raw.row_id is None:
        return str(raw.line)
    text = " ".join(_text(decimal_text(raw.row_id), "qid").split())
    if len(text) > MAX_NAME_CHARACTERS:
        found.note(ID_SHORTENED)
        return f"{text[: MAX_NAME_CHARACTERS - 40]}#{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return text or str(raw.line)


def _query(value: Any, found: _Findings) -> str:
    text = _text(value, "query")
    query = text.strip()
    if not normalise_query(query):
        raise _UnusableError("empty query")
    if len(query) > MAX_QUERY_CHARACTERS:
        raise _UnusableError(f"query longer than {MAX_QUERY_CHARACTERS:,} characters: {len(query):,}")
    if query != text:
        found.note(STRIPPED)
    return query


def _clip(value: Any) -> Moment | None:
    """The windows count from the clip's start: without it they would be those of other moments."""
    if value is None or (isinstance(value, list | tuple) and list(value) == [None, None]):
        return None
    clip = _pair(value)
    if clip is None or not clip.is_finite() or not 0 <= clip.start_s < clip.end_s <= MAX_TIME_S:
        raise _UnusableError(f"unusable clip: expected [start, end] in seconds of the file, got {_shown(value)}")
    return clip


def _duration_s(value: Any, clip: Moment | None, found: _Findings) -> float | None:
    duration_s = as_float(value)
    if value is not None and (duration_s is None or not 0 < duration_s <= MAX_TIME_S):
        found.note(NO_DURATION)
        duration_s = None
    if clip is None:
        return duration_s
    if duration_s is not None and abs(duration_s - clip.duration_s) > FAR_OVER_S:
        found.note(DURATION_OF_CLIP)
        return clip.duration_s
    return duration_s if duration_s is not None else clip.duration_s


def _pair(value: Any) -> Moment | None:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    start_s, end_s = as_float(value[0]), as_float(value[1])
    return None if start_s is None or end_s is None else Moment(start_s, end_s)


def _windows(value: Any, duration_s: float | None, found: _Findings) -> tuple[Moment, ...]:
    """Not clipped yet. Windows that cannot be used are left out; the row falls with its last one, for its reason."""
    if not isinstance(value, list | tuple) or not value:
        raise _UnusableError(f"no window: expected a list of [start, end], got {_shown(value)}")
    if len(value) == 2 and not any(isinstance(item, list | tuple | dict) for item in value):
        value = [value]  # one window that is not in a list of its own
    if len(value) > MAX_WINDOWS:
        raise _UnusableError(f"more than {MAX_WINDOWS} windows: {len(value):,}")
    kept, reasons = [], []
    for item in value:
        try:
            kept.append(_window(item, duration_s, found))
        except _UnusableError as reason:
            reasons.append(str(reason))
    if not kept:
        raise _UnusableError(reasons[-1])
    if reasons:
        found.note(WINDOW_LEFT_OUT)
    return tuple(kept)


def _window(value: Any, duration_s: float | None, found: _Findings) -> Moment:
    """A window that reaches into the clip, in order; what clipping it will do is noted."""
    window = _pair(value)
    if window is None:
        raise _UnusableError(f"window is not two numbers: {_shown(value)}")
    shown = f"[{window.start_s}, {window.end_s}]"
    if not window.is_finite():
        raise _UnusableError(f"window is not finite: {shown}")
    if max(abs(window.start_s), abs(window.end_s)) > MAX_TIME_S:
        raise _UnusableError(f"window is beyond {MAX_TIME_S:,.0f} s: {shown}")
    if window.duration_s == 0:
        raise _UnusableError(f"window has no length: {shown}")
    if window.duration_s < 0:
        found.note(SWAPPED)
        window = Moment(window.end_s, window.start_s)
    if window.end_s <= 0:
        raise _UnusableError(f"window ends at or before the start: {shown}")
    if duration_s is not None and window.start_s >= duration_s:
        raise _UnusableError(f"window starts at or past the duration: {shown} of {duration_s} s")
    if window.start_s < 0:
        found.note(CLIPPED_START)
    if duration_s is not None and window.end_s > duration_s:
        found.note(CLIPPED_END_FAR if window.end_s - duration_s > FAR_OVER_S else CLIPPED_END)
    return window


def _difficulty(value: Any, found: _Findings) -> float | None:
    difficulty = as_float(value)
    if value is not None and (difficulty is None or not math.isfinite(difficulty)):
        found.note(NO_DIFFICULTY)
        return None
    return difficulty


def _captions(value: Any, duration_s: float | None, found: _Findings) -> tuple[DenseCaption, ...] | None:
    """Captions help but are not what the row is for: an unusable one is left out, the row stays."""
    if value is None or isinstance(value, tuple):
        return value
    kept = _usable_captions(value, duration_s)
    if not isinstance(value, list) or len(kept) < len(value):
        found.note(CAPTIONS_LEFT_OUT)
    return kept


def lint_captions(value: Any, duration_s: Any) -> tuple[DenseCaption, ...]:
    """The usable captions of a video, once for all its rows; `duration_s` as the file has it.

    >>> [c.text for c in lint_captions([{"start_s": 0, "end_s": 9, "text": " a dog "}, {"start_s": 1}], 5)]
    ['a dog']
    """
    return _usable_captions(value, _duration_s(duration_s, None, _Findings()))


def _usable_captions(value: Any, duration_s: float | None) -> tuple[DenseCaption, ...]:
    items = value[:MAX_CAPTIONS] if isinstance(value, list) else []
    captions = [_caption(item, duration_s) for item in items]
    return tuple(caption for caption in captions if caption is not None)


def _caption(item: Any, duration_s: float | None) -> DenseCaption | None:
    if not isinstance(item, dict) or not isinstance(item.get("text"), str):
        return None
    try:
        text = _text(item["text"], "caption").strip()
        moment = _window([item.get("start_s"), item.get("end_s")], duration_s, _Findings())
        moment = moment.clip(duration_s if duration_s is not None else math.inf)
    except _UnusableError:
        return None
    if not 0 < len(text) <= MAX_QUERY_CHARACTERS:
        return None
    return DenseCaption(start_s=moment.start_s, end_s=moment.end_s, text=text)


def _saliency(value: Any, found: _Findings) -> Saliency | None:
    """Clip ids and, for each, one list of marks as long as the first; the row does without where that is not so."""
    if value is None:
        return None
    clips, scores = value if isinstance(value, tuple) else (None, None)
    usable = isinstance(clips, list) and isinstance(scores, list) and len(clips) == len(scores) <= MAX_SALIENT_CLIPS
    if usable:
        usable = all(isinstance(c, int) and not isinstance(c, bool) and 0 <= c < MAX_TIME_S for c in clips)
        usable = usable and all(isinstance(s, list) and 0 < len(s) <= 16 and len(s) == len(scores[0]) for s in scores)
        usable = usable and all((n := as_float(mark)) is not None and math.isfinite(n) for s in scores for mark in s)
        usable = usable and len(set(clips)) == len(clips)
    if not usable:
        found.note(SALIENCY_LEFT_OUT)
        return None
    return Saliency(tuple(clips), tuple(tuple(map(float, marks)) for marks in scores))


def _shown(value: Any) -> str:
    """A value of an untrusted file, short enough for a message and on one line."""
    if isinstance(value, list | tuple) and len(value) <= SHOWN_ITEMS:
        text = f"[{', '.join(_shown_item(item) for item in value)}]"
    else:
        text = _shown_item(value) if isinstance(value, str) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


def _shown_item(value: Any) -> str:
    if isinstance(value, str | float) or (isinstance(value, int) and abs(value) <= MAX_TIME_S):
        return ascii(value)
    return type(value).__name__
