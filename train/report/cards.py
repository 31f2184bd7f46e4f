"""The part of a report that shows single videos: held-out answers before and after, and groups of training rollouts.

Left out: which of them are shown (train/report/data.py decides by rule), and drawing (taro/pages)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from taro.grounding.moment import Moment
from taro.pages.cards import Card, Clips, Response, caption_lanes, find_clip, group_card, path_lanes, window_lane
from taro.pages.render import number, windows_text
from taro.pages.timeline import timeline
from taro.train.report.data import Evaluation, Example, Run, row_iou, training_groups

__all__ = ["example_card", "group_cards"]

SHOWN_PATHS = 3


def example_card(example: Example, evaluation: Evaluation, sets: Sequence[Clips]) -> Card:
    """One held-out query: ground truth, both answers, captions and candidate paths, and both responses in full."""
    before, after = example.before, example.after
    clip, sheet = find_clip(before.key, sets)
    lanes = [window_lane("ground truth", before.windows, "truth")]
    windows = [("ground truth", "truth", windows_text(before.windows))]
    for name, row in (("before", before), ("after", after)):
        said = () if row.predicted is None else row.answers or (row.predicted,)
        iou = number(row_iou(row, evaluation.protocol), 2)
        lanes.append(window_lane(name if said else f"{name}, no answer", said, name, f"IoU {iou}"))
        windows.append((name, name, f"{windows_text(said) if said else 'no answer'} (IoU {iou})"))
    lanes += caption_lanes(clip)
    query = next((query for query in clip.queries if query.id == before.query_id), None) if clip else None
    if clip is not None and query is not None:
        lanes += path_lanes(clip, "candidate path", query.paths.random[:SHOWN_PATHS])
    return Card(before.query, f"chosen as {example.why}; clip {before.video}", windows,
                timeline=timeline(before.duration_s, lanes, sheet),
                responses=[Response("before", before.text, "before"), Response("after", after.text, "after")])


def group_cards(run: Run, sets: Mapping[str, Clips]) -> list[Card]:
    """The training groups that the rule of `training_groups` chose, with every rollout."""
    found = []
    for why, step, rows in training_groups(run):
        first = rows[0]
        name = str(first["set"])  # of several sets: another one may hold the same key
        clip, sheet = find_clip(str(first["key"]), [one for known, one in sets.items() if name in ("", known)])
        found.append(group_card(
            rows, clip, sheet, title=str(first["query"]), truth=[Moment(*window) for window in first["windows"]],
            facts=f"{f'{why}, set {name}' if name else why}, step {step}, {len(rows)} rollouts",
            duration_s=float(first["duration_s"])))
    return found
