"""Sentences about a single moment of a world, and which of them are true of each cell: the CLIP model's teacher.

Some name the event that goes on (what captions say), the others what is seen: where an object is and how big. The
second kind makes frame features change where events begin and end."""

from __future__ import annotations

import numpy as np

from taro.sandbox.world import ACTIONS, COLOURS, SHAPES, World, WorldSettings

__all__ = ["QUIET", "SENTENCES", "sentence_labels"]

PLACES = ("top", "middle", "bottom"), ("left", "middle", "right")
SEEN = ("is seen", "is big", *(f"is at the {place}" for place in (*PLACES[0], "left", "right")))
PREDICATES = (*ACTIONS, *SEEN)
QUIET = 0
"""number of the sentence "nothing happens."""
SENTENCES = (
    "nothing happens.",
    *(f"the {colour} {shape} {predicate}." for colour in COLOURS for shape in SHAPES for predicate in PREDICATES))
BIG_PX = 11.5


def _first(colour: str, shape: str) -> int:
    return 1 + (list(COLOURS).index(colour) * len(SHAPES) + SHAPES.index(shape)) * len(PREDICATES)


def sentence_labels(world: World, settings: WorldSettings) -> np.ndarray:
    """bool [F, L]: which sentences are true of each cell."""
    labels = np.zeros((world.cells, len(SENTENCES)), bool)
    labels[:, QUIET] = True
    for event in world.events:
        labels[event.start : event.end, _first(*world.objects[event.thing]) + event.action] = True
        labels[event.start : event.end, QUIET] = False
    third = settings.size_px / 3
    for number, names in enumerate(world.objects):
        x, y, radius, visible = world.state[number]
        shown = visible.astype(bool) & (np.abs(x - 1.5 * third) < 1.6 * third) & (np.abs(y - 1.5 * third) < 1.6 * third)
        truths = {"is seen": shown, "is big": radius > BIG_PX * settings.size_px / 84, "is at the top": y < third,
                  "is at the bottom": y > 2 * third, "is at the middle": (y >= third) & (y <= 2 * third),
                  "is at the left": x < third, "is at the right": x > 2 * third}
        for offset, predicate in enumerate(SEEN):
            labels[:, _first(*names) + len(ACTIONS) + offset] = truths[predicate] & shown
    return labels
