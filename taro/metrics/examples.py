"""Which answers are worth a look: the worst, the best and some drawn at random, by rule and never by eye.

Worst and best are by IoU under a protocol; among equals, and at random, the draw is a function of the seed, so that a
choice can be made again and the worst are not simply the first of the file. Left out: showing them
(`taro.pages.answers`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from taro.core.draws import rng
from taro.grounding.protocols import Protocol, protocol_named
from taro.metrics.answers import AnswerRow, predictions
from taro.metrics.scores import Prediction

__all__ = ["Example", "choose", "example_iou", "examples_of"]


@dataclass(frozen=True)
class Example:
    """An answer with the words around it: the query as annotated, the whole response where there is one, and the key
    of its clip where it is of a shard set."""

    prediction: Prediction
    query: str
    text: str | None = None
    key: str = ""


def examples_of(rows: Sequence[AnswerRow]) -> list[Example]:
    """Answers of a policy as examples, with the keys of their clips."""
    return [Example(one, row.query, row.text, row.key) for one, row in zip(predictions(rows), rows, strict=True)]


def choose(examples: Sequence[Example], *, protocol: str, each: int, seed: int = 0) -> dict[str, list[Example]]:
    """Up to `each` of the worst, the best and the rest at random; no query is shown twice."""
    rules = protocol_named(protocol)
    order = [examples[int(index)] for index in rng("examples", seed).permutation(len(examples))]
    ranked = sorted(order, key=lambda example: example_iou(example, rules))
    half = min(each, len(ranked) // 2)
    worst, best = ranked[:half], ranked[::-1][:half]
    shown = {id(example) for example in (*worst, *best)}
    rest = [example for example in order if id(example) not in shown]
    return {"worst": worst, "best": best, "at random": rest[:each]}


def example_iou(example: Example, rules: Protocol) -> float:
    """IoU of the answer with the ground truth, as the protocol counts both."""
    return example.prediction.iou(rules)
