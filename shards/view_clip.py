"""The page of one clip: contact sheet, truth, captions and candidate paths on one time axis, and each query as a card.

Rollouts of a training run may stand with the queries that they answer; they are handed in as rows, since a set knows
nothing of runs. A page is bounded, whatever a clip holds: of many captions each shows fewer characters, of many queries
and paths the first are drawn and the others counted. Left out: drawing (taro/pages)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taro.grounding.records import ClipRecord, QueryRecord
from taro.pages.cards import (
    MAX_SPAN_TEXT,
    MAX_TEXT,
    Card,
    Fold,
    caption_lanes,
    captions_fold,
    group_card,
    path_lanes,
    window_lane,
)
from taro.pages.render import windows_text
from taro.pages.timeline import Lane, Span, Timeline, timeline

__all__ = ["MAX_PAGE_QUERIES", "MAX_PATH_SPANS", "ClipPage", "Rollouts", "clip_page"]

MAX_PATHS = 8
MAX_PATH_SPANS = 5_000
"""captions in the lanes of candidate paths of one page; beyond, paths are counted and not drawn"""
MAX_PAGE_QUERIES = 300
MAX_TRUTH_SPANS = 1_000
"""in the lane of all queries; each query's own windows are written under it"""
MAX_PAGE_CHARACTERS = 500_000
"""of all captions of a page, which are in it up to three times; and of all queries"""
LEAST_TEXT = 100
"""characters of a caption that are shown even so"""

Rollouts = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]
"""the group of rollouts of a query, by (clip key, query id), rows as in a run's rollout dump"""


@dataclass(frozen=True)
class ClipPage:
    """A clip as its page shows it. `scored`: its captions have CLIP agreement; `more_queries`: not drawn."""

    facts: str
    timeline: Timeline
    scored: bool
    captions: Fold | None
    queries: Sequence[Card]
    more_queries: int


@dataclass
class _Room:
    """How many spans of paths a page still takes."""

    spans: int

    def fitting(self, paths: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """The first of `paths`, as many as fit."""
        kept: list[Sequence[int]] = []
        for path in paths:
            if len(path) > self.spans:
                break
            self.spans -= len(path)
            kept.append(path)
        return kept


def clip_page(clip: ClipRecord, sheet: bytes | str | None, rollouts: Rollouts) -> ClipPage:
    """The page of a clip. `sheet`: its contact sheet, or the address of it; `rollouts`: of any clips."""
    clip, room = _shortened(clip), _Room(MAX_PATH_SPANS)
    of = clip.video
    facts = (f"{of.path_hint}, {clip.clip.start_s:g}s to {clip.clip.end_s:g}s of {round(of.duration_s, 3):g}s, "
             f"{of.width} x {of.height} at {of.fps:.3g} fps, {len(clip.times_s)} frames sampled, "
             f"decoded by {of.decoder}" + (f", {of.corrupt_frames} corrupt" if of.corrupt_frames else ""))
    drawn = clip.queries[:MAX_PAGE_QUERIES]
    truth = Lane("ground truth", [Span(w.start_s, w.end_s, query.text[:MAX_SPAN_TEXT], "truth")
                                  for query in drawn for w in query.windows][:MAX_TRUTH_SPANS])
    return ClipPage(facts, timeline(clip.duration_s, [truth, *caption_lanes(clip)], sheet),
                    any(caption.alignment is not None for caption in clip.captions),
                    captions_fold(clip) if clip.captions else None,
                    [_query(clip, query, rollouts.get((clip.key, query.id), ()), room) for query in drawn],
                    len(clip.queries) - len(drawn))


def _shortened(clip: ClipRecord) -> ClipRecord:
    """The clip with captions of a length that its page has room for."""
    most = min(MAX_TEXT, max(LEAST_TEXT, MAX_PAGE_CHARACTERS // max(len(clip.captions), 1)))
    if all(len(caption.text) <= most for caption in clip.captions):
        return clip
    return clip.model_copy(update={"captions": [caption.model_copy(update={"text": caption.text[:most]})
                                                for caption in clip.captions]})


def _query(clip: ClipRecord, query: QueryRecord, rows: Sequence[Mapping[str, Any]], room: _Room) -> Card:
    facts = f"{query.id}, split {query.split}"
    facts += "" if query.difficulty is None else f", difficulty {query.difficulty:g}"
    kinds = (("random path", query.paths.random), ("overlap path", query.paths.overlap))
    drawn = [(label, room.fitting(paths[:MAX_PATHS])) for label, paths in kinds]
    lanes = [lane for label, paths in drawn for lane in path_lanes(clip, label, paths)]
    more = sum(len(paths) for _, paths in kinds) - len(lanes)
    folds = [Fold("candidate paths", note=f"{more} more candidate paths." if more else "", timeline=timeline(
        clip.duration_s, [window_lane("ground truth", query.windows, "truth"), *lanes]))] if lanes else []
    title = query.text[:MAX_TEXT]
    if rows:
        return group_card(rows, None, title=title, facts=f"{facts}, rollouts of step {str(rows[0].get('step'))[:40]}",
                          truth=query.windows, duration_s=clip.duration_s, folds=folds)
    return Card(title, facts, [("ground truth", "truth", windows_text(query.windows))], folds=folds)
