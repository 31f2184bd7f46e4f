"""Answers to look at, as one page: the worst, the best and some drawn at random, each on the time axis of its video.

Numbers do not say why. Worst and best are by IoU under the page's protocol; among equals, and at random, the draw is a
function of the seed, so that a page can be made again and the worst are not simply the first of the file. Static and
self-contained; every text of a stranger is escaped in taro/pages/timeline.py's way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from taro.core.draws import rng
from taro.core.errors import ConfigError
from taro.core.files import write_atomically
from taro.grounding.protocols import Protocol, protocol_named
from taro.metrics.scores import Prediction
from taro.pages.timeline import Lane, Span, page, safe_text, timeline_svg

__all__ = ["Example", "choose", "examples_page", "write_page"]

MAX_TEXT = 4000
CSS = "section { border-top: 1px solid var(--rule); margin-top: 18px; } summary { cursor: pointer; color: var(--dim); }"


@dataclass(frozen=True)
class Example:
    """An answer with the words around it: the query as annotated, and the whole response where there is one."""

    prediction: Prediction
    query: str
    text: str | None = None


def choose(examples: Sequence[Example], *, protocol: str, each: int, seed: int = 0) -> dict[str, list[Example]]:
    """Up to `each` of the worst, the best and the rest at random; no query is shown twice."""
    rules = protocol_named(protocol)
    order = [examples[int(index)] for index in rng("examples", seed).permutation(len(examples))]
    ranked = sorted(order, key=lambda example: _iou(example, rules))
    half = min(each, len(ranked) // 2)
    worst, best = ranked[:half], ranked[::-1][:half]
    shown = {id(example) for example in (*worst, *best)}
    rest = [example for example in order if id(example) not in shown]
    return {"worst": worst, "best": best, "at random": rest[:each]}


def examples_page(
    examples: Sequence[Example], *, table: str, protocol: str = "taro", each: int = 10, seed: int = 0
) -> str:
    """The page; `table` is the plain text of the scores, shown above."""
    rules = protocol_named(protocol)
    parts = [f"<h1>Answers under {safe_text(protocol)}</h1><pre>{safe_text(table)}</pre>"]
    for name, chosen in choose(examples, protocol=protocol, each=each, seed=seed).items():
        if chosen:
            parts.append(f"<h2>{name}: {len(chosen)} of {len(examples)}</h2>")
            parts += [_section(example, rules) for example in chosen]
    return page(f"Answers under {protocol}", "\n".join(parts), CSS)


def write_page(path: Path, text: str) -> None:
    """Writes a page, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}; name another file") from None


def _iou(example: Example, rules: Protocol) -> float:
    prediction = example.prediction
    return rules.iou(prediction.predicted, prediction.truths(rules), prediction.answers)


def _section(example: Example, rules: Protocol) -> str:
    prediction = example.prediction
    first = 1 if rules.truth == "first" else len(prediction.windows)
    lanes = [Lane("truth", [Span(w.start_s, w.end_s, "", "truth") for w in prediction.windows[:first]])]
    if prediction.windows[first:]:
        lanes.append(Lane("not counted", [Span(w.start_s, w.end_s, "", "before") for w in prediction.windows[first:]]))
    answer = "no answer" if prediction.missing else "no moment in the response"
    if prediction.predicted is not None:
        said = (prediction.answers if rules.several else ()) or (prediction.predicted,)
        lanes.append(Lane("answer", [Span(w.start_s, w.end_s, "", "after") for w in said]))
        answer = ", ".join(f"{w.start_s:.2f}s to {w.end_s:.2f}s" for w in said)
    ends = [w.end_s for w in (*prediction.windows, *prediction.answers)]
    ends += [prediction.predicted.end_s] if prediction.predicted else []
    axis_s = prediction.duration_s or max(ends, default=1.0)
    told = f"{prediction.query_id}, {prediction.video}: IoU {_iou(example, rules):.2f}, {answer}"
    response = "" if example.text is None else (
        f"<details><summary>response</summary><pre>{safe_text(example.text[:MAX_TEXT])}</pre></details>")  # fmt: skip
    return (f"<section><h3>{safe_text(example.query[:MAX_TEXT])}</h3><p class=\"dim\">{safe_text(told)}</p>"
            f"{timeline_svg(axis_s, lanes)}{response}</section>")  # fmt: skip
