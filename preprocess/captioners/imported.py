"""Captions that somebody else made: from a file, or from the annotation rows; and where each of them ended.

Every entry that is offered to a clip ends used, repaired (and how) or skipped (and why), once, and is counted in the
slice's ledger; entries for videos that no row asks for are counted when the job ends. So what was given adds up, as the
rows do. Times of a file are seconds of the video, those of annotation rows seconds of the clip.

Left out: entries that are no captions at all (a time that is no number): reading the file names the line and stops."""

from __future__ import annotations

import math
import posixpath
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from taro.annotations.lint import as_float, decimal_text
from taro.annotations.reading import BLANK, LineReader
from taro.core.errors import AnnotationError
from taro.core.files import file_sha256
from taro.grounding.moment import Moment
from taro.grounding.records import DenseCaption
from taro.preprocess.config import CaptionConfig
from taro.preprocess.listing import plain_name
from taro.preprocess.plan import PlannedClip

__all__ = ["Entry", "Given", "captions_file", "file_facts", "fit"]

MAX_CAPTIONS = 10_000
"""of one clip"""
MAX_CHARACTERS, MAX_TEXT_BYTES = 20_000, 20_000
"""of one caption, as shards hold it"""
NO_CLIP = "skipped: no row has its video"
SHARED_NAME = "skipped: its name fits several videos"
LOST_CLIP = "skipped: its clip was skipped"


class Entry(NamedTuple):
    """A caption as it was given; seconds."""

    start_s: float
    end_s: float
    text: str


def file_facts(config: CaptionConfig, whole: bool, dtype: str) -> dict[str, Any]:
    """What captions of a file are, for the plan: the file's digest. Raises AnnotationError."""
    assert config.file is not None
    try:
        return {"method": config.method, "sha256": file_sha256(config.file)}
    except OSError as error:
        raise AnnotationError(
            f"caption.file {config.file}: cannot be read ({error.strerror}); expected JSONL") from None


class Given:
    """What there is for each clip. `by_video` is None where the annotation rows bring their captions."""

    def __init__(self, by_video: dict[str, list[Entry]] | None) -> None:
        self._by_video = by_video

    @classmethod
    def of_file(cls, config: CaptionConfig) -> Given:
        """Those of `caption.file`. Raises AnnotationError."""
        assert config.file is not None
        return cls(captions_file(config.file))

    def entries(self, clip: PlannedClip) -> list[Entry]:
        """All that is offered to a clip: the file's under each name that the video goes by, or those of the clip's
        rows, each once."""
        if self._by_video is not None:
            return [entry for name in _names(clip) for entry in self._by_video.get(name, [])]
        found = (Entry(c.start_s, c.end_s, c.text) for row in clip.rows for c in row.captions or ())
        return list(dict.fromkeys(found))

    def fitted(self, clip: PlannedClip, span: Moment) -> tuple[list[DenseCaption], Counter[str]]:
        """`fit` of a clip's entries; `span`: the clip in seconds of its file."""
        return fit(self.entries(clip), span.duration_s, start_s=0.0 if self._by_video is None else span.start_s)

    def lost(self, clip: PlannedClip) -> Counter[str]:
        """What becomes of a clip's entries where the clip itself was skipped."""
        return Counter({LOST_CLIP: len(self.entries(clip))})

    def unasked(self, clips: Iterable[PlannedClip]) -> Counter[str]:
        """Entries of videos that no clip has."""
        clips, fates = list(clips), Counter[str]()
        known = {name for clip in clips for name in _names(clip)}
        shared = {name for clip in clips for name in clip.shared_names} - known
        for name, found in (self._by_video or {}).items():
            if name not in known:
                fates[SHARED_NAME if name in shared else NO_CLIP] += len(found)
        return +fates


def captions_file(path: Path) -> dict[str, list[Entry]]:
    """Entries by video name from a JSONL file: {"video": ..., "captions": [{"start_s", "end_s", "text"}, ...]}, read
    as annotations are (`taro.annotations.reading`). Raises AnnotationError that names the line."""
    found: dict[str, list[Entry]] = {}
    for one in LineReader(path, kind="a file of captions").values():
        if one.problem == BLANK:
            continue
        try:
            if one.problem is not None:
                raise ValueError(one.problem)
            video, captions = decimal_text(one.value["video"]), one.value["captions"]
            if not isinstance(video, str) or not isinstance(captions, list | None):
                raise ValueError(f"video is a {type(video).__name__}, captions are a {type(captions).__name__}")
            found.setdefault(plain_name(video.strip()), []).extend(_entry(caption) for caption in captions or ())
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise AnnotationError(f'{path}, line {one.number}: expected {{"video": ..., "captions": [{{"start_s", '
                                  f'"end_s", "text"}}]}} in UTF-8; {type(error).__name__}: '
                                  f"{str(error)[:200]}") from None
    return found


def _entry(caption: Any) -> Entry:
    start_s, end_s = (as_float(caption[end]) for end in ("start_s", "end_s"))
    if start_s is None or end_s is None:
        raise ValueError(f"a caption needs two finite times, got {str(caption)[:100]!a}")
    entry = Entry(start_s, end_s, caption["text"])
    finite = math.isfinite(entry.start_s) and math.isfinite(entry.end_s)
    if not (finite and isinstance(entry.text, str) and len(entry.text.encode()) <= MAX_TEXT_BYTES):  # encodes: is text
        raise ValueError(f"a caption needs two finite times and a text of at most {MAX_TEXT_BYTES:,} bytes, got "
                         f"{str(caption)[:100]!a}")
    return entry


def fit(entries: Sequence[Entry], duration_s: float, *, start_s: float = 0.0
        ) -> tuple[list[DenseCaption], Counter[str]]:
    """(captions of a clip in chronological order, how many entries ended how). `start_s`: of the clip, in the entries'
    time; `duration_s`: its length.

    >>> captions, fates = fit([Entry(2, 1, "swapped "), Entry(1, 9, "long"), Entry(8, 9, "late")], 5.0)
    >>> [(c.start_s, c.end_s, c.text) for c in captions]
    [(1.0, 2.0, 'swapped'), (1.0, 5.0, 'long')]
    >>> sorted(fates)
    ['repaired: clipped to the clip', 'repaired: start and end swapped', 'skipped: outside the clip']
    """
    kept: dict[tuple[float, float, str], DenseCaption] = {}
    fates: Counter[str] = Counter()
    for entry in entries:
        text, repairs = entry.text.strip(), []
        first_s, last_s = round(entry.start_s - start_s, 6), round(entry.end_s - start_s, 6)
        if last_s < first_s:
            first_s, last_s = last_s, first_s
            repairs.append("start and end swapped")
        moment = Moment(first_s, last_s).clip(duration_s)
        if moment != Moment(first_s, last_s):
            repairs.append("clipped to the clip")
        place = (moment.start_s, moment.end_s, text)
        reason = _unusable(text, last_s - first_s, moment, place in kept, len(kept))
        if reason is None:
            kept[place] = DenseCaption(start_s=moment.start_s, end_s=moment.end_s, text=text)
            fates[f"repaired: {', '.join(repairs)}" if repairs else "used"] += 1
        else:
            fates[f"skipped: {reason}"] += 1
    return [kept[place] for place in sorted(kept)], fates


def _names(clip: PlannedClip) -> list[str]:
    """Names that a captions file may give a clip's video: as annotated, its path, its file name, without extension;
    none that another file of the folder has too."""
    stem = posixpath.splitext(clip.path)[0]
    short = {name: None for path in (clip.path, stem) for name in (path, path.rpartition("/")[2])}
    return list(dict.fromkeys((plain_name(clip.video), clip.path,
                               *(name for name in short if name not in clip.shared_names))))


def _unusable(text: str, length_s: float, moment: Moment, said: bool, kept: int) -> str | None:
    """Why an entry cannot be used; None where it can."""
    if not text:
        return "no text"
    if len(text) > MAX_CHARACTERS:
        return f"text longer than {MAX_CHARACTERS:,} characters"
    if not text.isascii() and text.encode("utf-8", "ignore").decode() != text:
        return "text is not valid Unicode"
    if length_s == 0:
        return "no length"
    if moment.duration_s <= 0:
        return "outside the clip"
    if said:
        return "given before"
    return f"more than {MAX_CAPTIONS:,} captions" if kept >= MAX_CAPTIONS else None
