"""A set as one static, self-contained page: per clip its contact sheet, truth, captions and paths on one time axis.

Rollouts of a training run may be shown beside the queries that they answer; they are handed in as rows, since a set
knows nothing of runs. Left out: drawing (taro/pages)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taro.core.counting import OnProgress, counted
from taro.core.errors import ShardError
from taro.grounding.records import ClipRecord, QueryRecord
from taro.pages.cards import (
    AGREEMENT_NOTE,
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
from taro.pages.render import render, windows_text, write_page
from taro.pages.timeline import Lane, Span, Timeline, timeline
from taro.shards.reader import ShardSet, open_shards

__all__ = ["Rollouts", "view"]

MAX_PATHS = 8
MAX_PATH_SPANS = 20_000
"""captions in the lanes of candidate paths of one page; beyond, paths are counted and not drawn"""

Rollouts = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]
"""the group of rollouts of a query, by (clip key, query id), rows as in a run's rollout dump"""


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


@dataclass(frozen=True)
class _Clip:
    """A clip as the page shows it."""

    key: str
    facts: str
    timeline: Timeline
    captions: Fold | None
    queries: Sequence[Card]


def view(root: str | Path, out: str | Path, *, rollouts: Rollouts | None = None, limit: int = 50,
         keys: Sequence[str] = (), progress: OnProgress | None = None) -> Path:
    """Writes the page of the first `limit` clips (or of `keys`) to `out`, a .html file or a folder for index.html.

    `rollouts`: clips that have some come first. Returns the page's path. Raises ShardError where a key is not in the
    set."""
    shard_set, rollouts = open_shards(root), rollouts or {}
    unknown = sorted(set(keys) - set(shard_set.keys))
    if unknown:
        raise ShardError(f"{root}: no clip {unknown[0][:120]}; the set holds {len(shard_set.keys)} clips, such as "
                         f"{', '.join(shard_set.keys[:3])}")
    seen = {key for key, _ in rollouts}
    chosen = list(keys) or sorted(shard_set.keys, key=lambda key: (key not in seen, key))[:limit]
    room = _Room(MAX_PATH_SPANS)
    clips = [_clip(shard_set, key, rollouts, room) for key in counted(chosen, progress)]
    scored = any(lane.label == "CLIP agreement" for clip in clips for lane in clip.timeline.lanes)
    text = render("shards.html", title=shard_set.manifest.name, rows=_facts(shard_set, len(chosen)), clips=clips,
                  agreement=AGREEMENT_NOTE if scored else "")
    return write_page(Path(out) if Path(out).suffix == ".html" else Path(out) / "index.html", text)


def _facts(shard_set: ShardSet, shown: int) -> list[tuple[str, str]]:
    counts, source = shard_set.manifest.counts, shard_set.manifest.provenance
    return [("dataset", f"{source.dataset}, {source.split}"), ("clips", f"{counts.clips} ({shown} shown)"),
            ("queries", f"{counts.queries}, and {counts.skipped} skipped"), ("captions", str(counts.captions)),
            ("features", ", ".join(shard_set.encoders) or "none"),
            ("licences", f"videos: {source.licence_videos}; annotations: {source.licence_annotations}; captions: "
                         f"{source.licence_captions}")]


def _clip(shard_set: ShardSet, key: str, rollouts: Rollouts, room: _Room) -> _Clip:
    clip = shard_set.clip(key)
    of = clip.video
    facts = (f"{of.path_hint}, {clip.clip.start_s:g}s to {clip.clip.end_s:g}s of {round(of.duration_s, 3):g}s, "
             f"{of.width} x {of.height} at {of.fps:.3g} fps, {len(clip.times_s)} frames sampled, "
             f"decoded by {of.decoder}" + (f", {of.corrupt_frames} corrupt" if of.corrupt_frames else ""))
    truth = Lane("ground truth", [Span(w.start_s, w.end_s, query.text[:MAX_SPAN_TEXT], "truth")
                                  for query in clip.queries for w in query.windows])
    return _Clip(key, facts, timeline(clip.duration_s, [truth, *caption_lanes(clip)], shard_set.thumbnail(key)),
                 captions_fold(clip) if clip.captions else None,
                 [_query(clip, query, rollouts.get((key, query.id), ()), room) for query in clip.queries])


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
