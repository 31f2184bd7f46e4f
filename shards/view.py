"""A set as a folder of static pages: a list of its queries with search and filters, and one page a clip.

    index.html            the list; assets/view.js searches it
    data/rows-00000.js    the rows of the list, in parts
    clips/KEY.html        contact sheet, truth, captions and paths on one time axis
    sheets/KEY.jpg        contact sheets, as they lie in the set
    assets/               style and scripts of taro

The folder is opened from the disk or from any web server and loads nothing from elsewhere. Clips are read, drawn and
forgotten one by one, so memory does not grow with them; the list has at most MAX_ROWS queries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from taro.core.counting import OnProgress, counted
from taro.core.errors import ConfigError, ShardError
from taro.pages.cards import AGREEMENT_NOTE
from taro.pages.folder import copy_assets, page_folder
from taro.pages.render import render
from taro.shards.ops.filter import Selection
from taro.shards.places import local_folder
from taro.shards.reader import ShardSet, open_shards
from taro.shards.view_clip import Rollouts, clip_page
from taro.shards.view_rows import RowFiles

__all__ = ["Rollouts", "View", "view"]

ASSETS = ("style.css", "view.css", "view.js", "clip.js")


@dataclass(frozen=True)
class View:
    """Pages that were written. `page`: the one to open; `clips` of `clips_in_set` have a page; `queries` are listed,
    `queries_left_out` of these clips are not."""

    page: Path
    clips: int
    clips_in_set: int
    queries: int
    queries_left_out: int

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "page": str(self.page)}


def view(place: str | Path, out: str | Path, *, rollouts: Rollouts | None = None, limit: int | None = None,
         selection: Selection | None = None, progress: OnProgress | None = None) -> View:
    """Writes the pages of the first `limit` clips (None: all) that have a query which `selection` keeps, into the
    folder `out`: a new one, or one of such pages, which they replace.

    `rollouts`: clips that have some come first. Raises ShardError where the set is damaged or a key of the selection is
    not in it, ConfigError where nothing is selected or `out` is something else."""
    shard_set, rollouts, selection = open_shards(place), rollouts or {}, selection or Selection()
    final, folder = Path(out), local_folder(shard_set.place)
    if folder is not None and final.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"{final}: inside the set {shard_set.place}; name a folder outside of it")
    keys = _chosen(shard_set, rollouts, selection)[:limit]
    with page_folder(final) as made:
        rows = _write_clips(shard_set, made, keys, rollouts, selection, progress)
        counts = shard_set.manifest.counts
        done = View(final / "index.html", len(keys), len(shard_set), rows.queries, rows.left_out)
        lead = f"{done.clips:,} of {done.clips_in_set:,} clips, {done.queries:,} of {counts.queries:,} queries"
        text = render("view.html", title=shard_set.manifest.name or "a shard set", lead=lead, rows=_facts(shard_set),
                      data=rows.names)
        (made / "index.html").write_text(text, encoding="utf-8")
    return done


def _write_clips(shard_set: ShardSet, made: Path, keys: Sequence[str], rollouts: Rollouts, selection: Selection,
                 progress: OnProgress | None) -> RowFiles:
    """Everything but index.html."""
    copy_assets(made / "assets", *ASSETS)
    for name in ("clips", "sheets"):
        (made / name).mkdir()
    rows, around = RowFiles(made / "data", shard_set.encoders), [None, *keys, None]
    rewards = _mean_rewards(rollouts)
    for place, key in enumerate(counted(keys, progress), 1):
        clip, sheet = shard_set.clip(key), shard_set.thumbnail(key)
        if sheet is not None:
            (made / "sheets" / f"{key}.jpg").write_bytes(sheet)
        drawn = clip_page(clip, None if sheet is None else f"../sheets/{key}.jpg", rollouts)
        text = render("clip.html", title=key, one=drawn, set_name=shard_set.manifest.name or "a shard set", place=place,
                      clips=len(keys), before=around[place - 1], after=around[place + 1], agreement=AGREEMENT_NOTE)
        (made / "clips" / f"{key}.html").write_text(text, encoding="utf-8")
        rows.add(clip, [name for name in shard_set.encoders if shard_set.listed(f"features/{name}", key)],
                 sheet=sheet is not None, keeps=selection.keeps, rewards=rewards.get(key, {}))
    rows.close()
    return rows


def _chosen(shard_set: ShardSet, rollouts: Rollouts, selection: Selection) -> list[str]:
    """Keys of the clips to draw: those with rollouts first, else ascending."""
    selection.check(shard_set)
    if selection.as_dict():
        kept = {ref.key for ref in shard_set.queries() if selection.keeps(ref.key, ref.known)}
        keys = [key for key in shard_set.keys if key in kept or selection.keeps_empty(key)]
    else:
        keys = list(shard_set.keys)
    if not keys and len(shard_set):
        raise ShardError(f"{shard_set.place}: no clip has a query that all of these options let through; "
                         "`taro shards stats` counts splits and difficulties")
    seen = {key for key, _ in rollouts}
    return sorted(keys, key=lambda key: (key not in seen, key))


def _mean_rewards(rollouts: Rollouts) -> dict[str, dict[str, float]]:
    """By clip key and query id, of the rollouts whose reward is a number."""
    found: dict[str, dict[str, float]] = {}
    for (key, query_id), group in rollouts.items():
        rewards = [float(row["reward"]) for row in group if type(row.get("reward")) in (int, float)
                   and math.isfinite(row["reward"])]
        if rewards:
            found.setdefault(key, {})[query_id] = math.fsum(rewards) / len(rewards)
    return found


def _facts(shard_set: ShardSet) -> list[tuple[str, str]]:
    counts, source = shard_set.manifest.counts, shard_set.manifest.provenance
    return [("dataset", f"{source.dataset}, {source.split}"), ("clips", f"{counts.clips:,}"),
            ("queries", f"{counts.queries:,}, and {counts.skipped:,} skipped"), ("captions", f"{counts.captions:,}"),
            ("features", ", ".join(shard_set.encoders) or "none"),
            ("licences", f"videos: {source.licence_videos}; annotations: {source.licence_annotations}; captions: "
                         f"{source.licence_captions}")]
