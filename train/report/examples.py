"""The part of a report that shows single videos: held-out answers before and after, and a group of training rollouts.

A clip is its contact sheet over the same time axis as the lanes below it. Whatever comes from a model, a captioner or
an annotator goes through `safe_text` here. Left out: which examples are shown (train/report/data.py decides by rule).
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from taro.grounding.moment import Moment
from taro.pages.timeline import LABEL_PX, Lane, Span, safe_text, timeline_svg
from taro.train.report.charts import number
from taro.train.report.data import Evaluation, Example, row_iou

if TYPE_CHECKING:
    from taro.grounding.records import ClipRecord, QueryRecord
    from taro.shards.reader import ShardSet

__all__ = ["EXAMPLES_CSS", "example_html", "group_html"]

AXIS_WIDTH_PX = 1000
SHOWN_PATHS = 3
PNG_MAGIC = b"\x89PNG"

EXAMPLES_CSS = f"""
.scroll {{ overflow-x: auto; }} .wide {{ min-width: 640px; padding-right: 10px; }}
.sheet {{ padding: 0 {800 / AXIS_WIDTH_PX:.2f}% 0 {100 * LABEL_PX / AXIS_WIDTH_PX:.2f}%; }}
.sheet img {{ display: block; width: 100%; border-radius: 3px; }}
.said {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 12px; }}
.said h4 {{ margin: 6px 0 0; font-size: 12px; font-weight: 600; }}
.said h4.before {{ color: var(--before); }} .said h4.after {{ color: var(--after); }}
pre {{ font: 12px/1.45 ui-monospace, Menlo, Consolas, monospace; max-height: 24em; overflow: auto; }}
svg.timeline {{ overflow: visible; }}
svg.timeline :is(.before, .after, .path) + text {{ fill: #fff; }}
svg.timeline rect[fill-opacity] + text {{ fill: var(--ink); }}
td.num, th.num {{ text-align: right; }} td.up {{ color: var(--truth); }} td.down {{ color: var(--heat); }}
.example {{ break-inside: avoid; border-top: 1px solid var(--rule); margin-top: 18px; padding-top: 4px; }}
details summary {{ cursor: pointer; color: var(--dim); }}
"""


def example_html(example: Example, evaluation: Evaluation, shards: Sequence[ShardSet]) -> str:
    """One held-out query: the clip on its axis, ground truth, captions, candidate paths, and both answers in full."""
    before, after = example.before, example.after
    ious = row_iou(before, evaluation.protocol), row_iou(after, evaluation.protocol)
    lanes = [_truth(before.windows), _answer("before", before.predicted, ious[0], before.answers),
             _answer("after", after.predicted, ious[1], after.answers)]
    clip, shard_set = _find(before.key, shards)
    if clip is not None:
        query = next((query for query in clip.queries if query.id == before.query_id), None)
        lanes += _caption_lanes(clip, query)
    return (f'<section class="example"><h3>{safe_text(before.query)} '
            f'<span class="dim">IoU {number(ious[0], 2)} to {number(ious[1], 2)}; chosen as {safe_text(example.why)}; '
            f"clip {safe_text(before.video)}</span></h3>"
            f"{_axis(before.key, before.duration_s, lanes, shard_set)}"
            f'<div class="said">{_said("before", before.text)}{_said("after", after.text)}</div></section>')


def group_html(why: str, step: int, rows: Sequence[dict[str, Any]], shards: Sequence[ShardSet]) -> str:
    """One training group: every rollout's answer on the axis, its reward parts, its drop, its advantage, its text."""
    first = rows[0]
    lanes = [_truth([Moment(*window) for window in first["windows"]])]
    for row in rows:
        predicted = None if row["predicted"] is None else Moment(*row["predicted"])
        lanes.append(_answer(f"{row['g']}, R = {number(row['reward'], 2)}", predicted, row["iou"],
                             [Moment(*window) for window in row["answers"]], css="path"))
    clip, shard_set = _find(str(first["key"]), shards)
    if clip is not None:
        lanes.append(Lane("captions", [Span(c.start_s, c.end_s, c.text) for c in clip.captions]))
    texts = "".join(f"<h4>rollout {row['g']}{' (guided)' if row['guided'] else ''}</h4>"
                    f"<pre>{safe_text(str(row['text']))}</pre>" for row in rows)
    return (f'<section class="example"><h3>{safe_text(str(first["query"]))} '
            f'<span class="dim">{safe_text(why)}, step {step}, {len(rows)} rollouts</span></h3>'
            f"{_axis(str(first['key']), float(first['duration_s']), lanes, shard_set)}"
            f'<div class="scroll">{_group_table(rows)}</div>'
            f"<details><summary>what the {len(rows)} rollouts said</summary>{texts}</details></section>")


def _group_table(rows: Sequence[dict[str, Any]]) -> str:
    columns = ("format", "tiou", "bonus", "reward", "drop", "advantage", "iou")
    names = {"tiou": "tIoU", "iou": "IoU", "drop": "log-prob drop"}
    head = "".join(f'<th class="num">{names.get(column, column)}</th>' for column in columns)
    body = []
    for row in rows:
        cells = "".join(f'<td class="num{_sign(row[column]) if column == "advantage" else ""}">'
                        f"{number(row[column])}</td>" for column in columns)
        answer = "none" if row["predicted"] is None else "{:.2f}s to {:.2f}s".format(*row["predicted"])
        body.append(f"<tr><td>{row['g']}</td><td>{'guided' if row['guided'] else 'free'}</td>"
                    f"<td>{answer}</td>{cells}</tr>")
    return (f'<table class="group"><thead><tr><th>rollout</th><th></th><th>answer</th>{head}</tr></thead>'
            f"<tbody>{''.join(body)}</tbody></table>")


def _sign(value: float) -> str:
    return " up" if value > 0 else " down" if value < 0 else ""


def _truth(windows: Sequence[Moment]) -> Lane:
    return Lane("ground truth", [Span(w.start_s, w.end_s, "", "truth") for w in windows])


def _answer(label: str, predicted: Moment | None, iou: float, answers: Sequence[Moment] = (), *,
            css: str | None = None) -> Lane:
    if predicted is None:
        return Lane(f"{label}, no answer", [])
    return Lane(label, [Span(window.start_s, window.end_s, f"IoU {number(iou, 2)}", css or label)
                        for window in answers or [predicted]])


def _caption_lanes(clip: ClipRecord, query: QueryRecord | None) -> list[Lane]:
    lanes = [Lane("captions", [Span(c.start_s, c.end_s, c.text) for c in clip.captions])]
    paths = query.paths.random[:SHOWN_PATHS] if query is not None else []
    for index, path in enumerate(paths):
        chosen = [clip.captions[i] for i in path]
        lanes.append(Lane(f"candidate path {index}", [Span(c.start_s, c.end_s, c.text, "path", 0.55) for c in chosen]))
    return lanes


def _axis(key: str, duration_s: float, lanes: Sequence[Lane], shard_set: ShardSet | None) -> str:
    sheet = shard_set.thumbnail(key) if shard_set is not None else None
    image = ""
    if sheet is not None:
        kind = "png" if sheet.startswith(PNG_MAGIC) else "jpeg"
        data = base64.b64encode(sheet).decode("ascii")
        image = (f'<div class="sheet"><img alt="frames of the clip in order" '
                 f'src="data:image/{kind};base64,{data}"></div>')
    return f'<div class="scroll"><div class="wide">{image}{timeline_svg(duration_s, lanes, AXIS_WIDTH_PX)}</div></div>'


def _said(name: str, text: str) -> str:
    return f'<div><h4 class="{name}">{name}</h4><pre>{safe_text(text)}</pre></div>'


def _find(key: str, shards: Sequence[ShardSet]) -> tuple[ClipRecord | None, ShardSet | None]:
    for shard_set in shards:
        if key in shard_set.keys:
            return shard_set.clip(key), shard_set
    return None, None
