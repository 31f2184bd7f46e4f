"""Answers to look at, as one page: the worst, the best and some drawn at random, each on the time axis of its video.

Numbers do not say why. Which answers are shown is decided by rule (`taro.metrics.examples`). Where the clips are at
hand, their contact sheets and captions stand over the answers."""

from __future__ import annotations

from collections.abc import Sequence

from taro.grounding.protocols import Protocol, protocol_named
from taro.metrics.examples import Example, choose, example_iou
from taro.metrics.ranked import RankedScores
from taro.metrics.scores import METRICS, Scores
from taro.pages import cards
from taro.pages.render import number, render, windows_text
from taro.pages.timeline import timeline

__all__ = ["METRIC_NAMES", "answers_page"]

METRIC_NAMES = {key: "mIoU" if key == "miou" else key.upper() for key in METRICS}
"""metrics as pages write them"""


def answers_page(examples: Sequence[Example], *, scores: Scores | RankedScores, table: str | None = None,
                 protocol: str = "taro", each: int = 10, seed: int = 0, sets: Sequence[cards.Clips] = ()) -> str:
    """The page, `each` answers of each kind.

    Args: scores: of all answers; table: them as plain text, None: their own table; sets: where the clips of the
    examples' keys are."""
    rules = protocol_named(protocol)
    groups = [(name, [_card(example, rules, sets) for example in chosen])
              for name, chosen in choose(examples, protocol=protocol, each=each, seed=seed).items() if chosen]
    top = scores.top if isinstance(scores, RankedScores) else scores
    return render("answers.html", title=f"Answers under {protocol}", table=scores.table() if table is None else table,
                  tiles=[(METRIC_NAMES[key], top.metrics[key], top.intervals[key]) for key in METRICS],
                  agreement=cards.AGREEMENT_NOTE if sets else "", groups=groups, total=len(examples))


def _card(example: Example, rules: Protocol, sets: Sequence[cards.Clips]) -> cards.Card:
    one = example.prediction
    first = 1 if rules.truth == "first" else len(one.windows)
    windows = [("ground truth", "truth", one.windows[:first])]
    windows += [("not counted", "before", one.windows[first:])] if one.windows[first:] else []
    said = () if one.predicted is None else (one.answers if rules.several else ()) or (one.predicted,)
    windows += [("answer", "after", said)] if said else []
    iou = number(example_iou(example, rules), 2)
    lanes = [cards.window_lane(label, shown, css_class, f"IoU {iou}" if label == "answer" else "")
             for label, css_class, shown in windows]
    texts = [(label, css_class, windows_text(shown)) for label, css_class, shown in windows]
    if not said:
        texts.append(("answer", "after", "no answer" if one.missing else "no moment in the response"))
    clip, sheet = cards.find_clip(example.key, sets)
    axis_s = one.duration_s or max((w.end_s for w in (*one.windows, *said)), default=1.0)
    said_in_full = [cards.Response("", (example.text or "")[: cards.MAX_TEXT])]
    facts = f"IoU {iou}, {one.query_id}, {one.video if clip is None else clip.key}"
    return cards.Card(example.query[: cards.MAX_TEXT], facts, texts,
                      timeline=timeline(axis_s, [*lanes, *cards.caption_lanes(clip)], sheet),
                      folds=[] if example.text is None else [cards.Fold("response", responses=said_in_full)])
