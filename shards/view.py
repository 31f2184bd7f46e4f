"""A set as one static, self-contained page: per clip its contact sheet, truth, captions and paths on one time axis.

With a run folder also what the policy answered in training: predictions, reward parts and log-probability drops of the
last dumped group of each query. No script, no external resource; every text is escaped in taro/pages/timeline.py's way,
so a caption of a stranger stays a caption. CLIP's agreement of a caption with its segment is drawn as a heat lane where
the set has it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taro.core.errors import ShardError
from taro.core.files import write_atomically
from taro.core.json import parse_json
from taro.grounding.records import ClipRecord, QueryRecord
from taro.pages.timeline import LABEL_PX, Lane, Span, page, safe_text, timeline_svg
from taro.shards.format import MAX_JSON_BYTES
from taro.shards.reader import ShardSet, open_shards

__all__ = ["read_rollouts", "view"]

WIDTH_PX = 1000
MAX_PATHS = 8
MAX_TEXT = 2000

_CSS = f"""
.sheet {{ padding: 0 0.8% 0 {100 * LABEL_PX / WIDTH_PX:.2f}%; }} .sheet img {{ width: 100%; border-radius: 3px; }}
section {{ border-top: 1px solid var(--rule); margin-top: 28px; }} .wide {{ overflow-x: auto; }}
summary {{ cursor: pointer; color: var(--dim); }}
"""


@dataclass(frozen=True, slots=True)
class _Parts:
    """Columns of the table of rollouts: key in the dump, heading."""

    key: str
    heading: str


_COLUMNS = tuple(_Parts(*pair) for pair in (
    ("g", "g"), ("guided", "guided"), ("reward", "reward"), ("format", "format"), ("tiou", "tIoU"), ("iou", "IoU"),
    ("bonus", "bonus"), ("drop", "drop"), ("advantage", "advantage")))  # fmt: skip


def view(root: str | Path, out: str | Path, *, run: str | Path | None = None, limit: int = 50,
         keys: Sequence[str] = ()) -> Path:
    """Writes the page of the first `limit` clips (or of `keys`) to `out`, a .html file or a folder for index.html.

    `run`: a training run's folder; clips that it has rollouts of then come first. Returns the page's path.
    """
    shard_set = open_shards(root)
    rollouts = {} if run is None else read_rollouts(run, Path(shard_set.place))
    unknown = sorted(set(keys) - set(shard_set.keys))
    if unknown:
        raise ShardError(f"{root}: no clip {unknown[0][:120]}; the set holds {len(shard_set.keys)} clips, such as "
                         f"{', '.join(shard_set.keys[:3])}")
    seen = {key for key, _ in rollouts}
    chosen = list(keys) or sorted(shard_set.keys, key=lambda key: (key not in seen, key))[:limit]
    body = [_head(shard_set, len(chosen)), *(_clip(shard_set, key, rollouts) for key in chosen)]
    path = Path(out) if Path(out).suffix == ".html" else Path(out) / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page(f"Shards: {shard_set.manifest.name}", "\n".join(body), _CSS).encode())
    return path


def read_rollouts(run: str | Path, root: Path | None = None) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Rollouts of a run by (clip key, query id): the group of the last step that dumped one, in order of g.

    Of a run on several sets those on the set at `root` alone: the one that the run's data.json has at that path, else
    the one with the name of that folder."""
    folder = Path(run) / "rollouts"
    if not folder.is_dir():
        raise ShardError(f"{run}: no rollouts folder there; expected the folder of a `taro train` run")
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    name = None if root is None else _set_name(Path(run), root)
    for path in sorted(folder.glob("step-*.jsonl")):
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            row = parse_json(line, f"{path}: line {number}", limit_bytes=MAX_JSON_BYTES)
            if not isinstance(row, dict):
                raise ShardError(f"{path}: line {number}: not a rollout")
            if row.get("repeat") or (name is not None and row.get("set", name) != name):
                continue
            groups.setdefault((str(row.get("key")), str(row.get("query_id"))), []).append(row)
        found |= groups
    return found


def _set_name(run: Path, root: Path) -> str:
    """What a run on several sets calls the set at `root`."""
    path = run / "data.json"
    data = parse_json(path.read_bytes(), str(path), limit_bytes=MAX_JSON_BYTES) if path.is_file() else {}
    sets = data.get("sets") if isinstance(data, dict) else None
    for one in sets if isinstance(sets, list) else ():
        if isinstance(one, dict) and str(one.get("path")) in (str(root), str(root.resolve())):
            return str(one.get("name"))
    return root.resolve().name


def _head(shard_set: ShardSet, shown: int) -> str:
    manifest = shard_set.manifest
    counts, source = manifest.counts, manifest.provenance
    rows = [("dataset", f"{source.dataset}, {source.split}"), ("clips", f"{counts.clips} ({shown} shown)"),
            ("queries", f"{counts.queries}, and {counts.skipped} skipped"), ("captions", str(counts.captions)),
            ("features", ", ".join(shard_set.encoders) or "none"),
            ("licences", f"videos: {source.licence_videos}; annotations: {source.licence_annotations}; captions: "
                         f"{source.licence_captions}")]
    table = "".join(f"<tr><th>{name}</th><td>{safe_text(value)}</td></tr>" for name, value in rows)
    return f"<h1>{safe_text(manifest.name)}</h1><table>{table}</table>"


def _clip(shard_set: ShardSet, key: str, rollouts: Mapping[tuple[str, str], list[dict[str, Any]]]) -> str:
    clip = shard_set.clip(key)
    facts = clip.video
    told = (f"{facts.path_hint}, {clip.clip.start_s:g}s to {clip.clip.end_s:g}s of {round(facts.duration_s, 3):g}s, "
            f"{facts.width} x {facts.height} at {facts.fps:.3g} fps, {len(clip.times_s)} frames sampled, "
            f"decoded by {facts.decoder}" + (f", {facts.corrupt_frames} corrupt" if facts.corrupt_frames else ""))
    sheet = shard_set.thumbnail(key)
    image = ""
    if sheet is not None:
        data = base64.b64encode(sheet).decode()
        image = f'<div class="sheet"><img alt="frames of the clip" src="data:image/jpeg;base64,{data}"></div>'
    queries = "".join(_query(clip, query, rollouts.get((key, query.id), [])) for query in clip.queries)
    lanes = timeline_svg(clip.duration_s, _clip_lanes(clip), WIDTH_PX)
    captions = "".join(f"<tr><td>{c.start_s:.1f}s to {c.end_s:.1f}s</td><td>{safe_text(c.text[:MAX_TEXT])}</td><td>"
                       f"{'' if c.alignment is None else f'{c.alignment:.2f}'}</td></tr>" for c in clip.captions)
    table = (f"<details><summary>{len(clip.captions)} captions</summary><table><tr><th>time</th><th>caption</th>"
             f"<th>CLIP</th></tr>{captions}</table></details>") if captions else '<p class="dim">No captions.</p>'
    return (f'<section id="{safe_text(key)}"><h2>{safe_text(key)}</h2><p class="dim">{safe_text(told)}</p>'
            f"{image}{lanes}{table}{queries}</section>")


def _clip_lanes(clip: ClipRecord) -> list[Lane]:
    lanes = [Lane("truth", [Span(w.start_s, w.end_s, query.text[:MAX_TEXT], "truth")
                            for query in clip.queries for w in query.windows])]
    if clip.captions:
        lanes.append(Lane("captions", [Span(c.start_s, c.end_s, c.text[:MAX_TEXT]) for c in clip.captions]))
    scored = [c for c in clip.captions if c.alignment is not None]
    if scored:
        low, high = (pick(c.alignment or 0.0 for c in scored) for pick in (min, max))
        lanes.append(Lane("CLIP agreement", [
            Span(c.start_s, c.end_s, f"{c.alignment or 0.0:.2f}", "heat",
                 0.15 + 0.85 * ((c.alignment or 0.0) - low) / (high - low or 1.0)) for c in scored]))
    return lanes


def _query(clip: ClipRecord, query: QueryRecord, rows: Sequence[Mapping[str, Any]]) -> str:
    facts = f"{query.id}, split {query.split}"
    facts += "" if query.difficulty is None else f", difficulty {query.difficulty:g}"
    lanes = [Lane("truth", [Span(w.start_s, w.end_s, "", "truth") for w in query.windows])]
    for tag, paths in (("random", query.paths.random), ("overlap", query.paths.overlap)):
        for number, path in enumerate(paths[:MAX_PATHS]):
            picked = [clip.captions[index] for index in path]
            spans = [Span(c.start_s, c.end_s, c.text[:MAX_TEXT], "path") for c in picked]
            lanes.append(Lane(f"{tag} path {number}", spans))
    more = sum(max(len(paths) - MAX_PATHS, 0) for paths in (query.paths.random, query.paths.overlap))
    drawn = timeline_svg(clip.duration_s, lanes, WIDTH_PX)
    note = f'<p class="dim">{more} more candidate paths.</p>' if more else ""
    return (f"<h3>{safe_text(query.text[:MAX_TEXT])}</h3><p class=\"dim\">{safe_text(facts)}</p>"
            f"<details><summary>candidate paths</summary>{drawn}{note}</details>{_rollouts(clip, query, rows)}")


def _rollouts(clip: ClipRecord, query: QueryRecord, rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    lanes = [Lane("truth", [Span(w.start_s, w.end_s, "", "truth") for w in query.windows])]
    body, texts = [], []
    for row in rows:
        cells = "".join(f"<td>{safe_text(_cell(row.get(column.key)))}</td>" for column in _COLUMNS)
        predicted = row.get("predicted")
        moment = [] if not _is_window(predicted) else [float(end) for end in predicted or ()]
        lanes.append(Lane(f"rollout {_cell(row.get('g'))}", [
            Span(moment[0], moment[1], f"reward {_cell(row.get('reward'))}", "after")] if moment else []))
        answer = f"{moment[0]:.2f}s to {moment[1]:.2f}s" if moment else "no answer"
        body.append(f"<tr>{cells}<td>{safe_text(answer)}</td></tr>")
        texts.append(f"<pre>{safe_text(str(row.get('text', ''))[:MAX_TEXT])}</pre>")
    head = "".join(f"<th>{column.heading}</th>" for column in _COLUMNS) + "<th>answer</th>"
    return (f'<p class="dim">rollouts of step {safe_text(_cell(rows[0].get("step")))}</p>'
            f"{timeline_svg(clip.duration_s, lanes, WIDTH_PX)}"
            f'<div class="wide"><table><tr>{head}</tr>{"".join(body)}</table></div>'
            f"<details><summary>responses</summary>{''.join(texts)}</details>")


def _is_window(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(end) in (int, float) for end in value)


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    return f"{value:.3f}" if isinstance(value, float) else str(value)[:200]
