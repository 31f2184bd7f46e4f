"""A synthetic world: coloured shapes on a dark ground that enter, leave, blink, grow, move and shake.

A world is a function of its seed. State is held for half a second (a cell), and every event begins and ends on a cell's
border, so any sampling near 2 fps sees the same content. No clock is on screen: when something happens can be told
only from the order of the frames. A repeated event is named by an ordinal, which no single frame shows.

Left out on purpose: depth, cameras, sound. numpy alone.

Legend: K objects, F cells of half a second."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from taro.core.config import Config
from taro.core.draws import rng
from taro.grounding.moment import Moment

__all__ = ["ACTIONS", "CELL_S", "COLOURS", "ORDINALS", "SHAPES", "Event", "World", "WorldSettings", "duration_cells",
           "make_world"]

CELL_S = 0.5
"""seconds that a state is held"""
COLOURS = {
    "red": (230, 38, 38), "green": (38, 191, 51), "blue": (51, 77, 242), "yellow": (242, 217, 38),
    "purple": (166, 51, 204), "cyan": (38, 217, 217),
}
SHAPES = ("circle", "square", "triangle", "cross")
ACTIONS = ("enters", "leaves", "blinks", "grows", "moves", "shakes")
ORDINALS = ("first", "second", "third")
ENTERS, LEAVES, BLINKS, GROWS, MOVES, SHAKES = range(6)
EVENT_CELLS = (4, 11)
"""an event lasts 4 to 10 cells (a blink an odd number, 5 to 11: it ends hidden)"""
GROWTH = 1.65
HOMES = 3
"""objects start in different cells of a 3 x 3 grid"""


class WorldSettings(Config):
    """What worlds look like. The defaults are those that the shipped models were trained on."""

    size_px: int = Field(84, ge=56, le=1024, multiple_of=28)
    """side of the square frame"""
    fps: int = Field(8, ge=2, le=60, multiple_of=2)
    """frames a second of the mp4; several frames show each cell"""
    min_duration_s: int = Field(16, ge=8, le=600)
    max_duration_s: int = Field(32, ge=8, le=600)
    min_events: int = Field(2, ge=1, le=12)
    max_events: int = Field(6, ge=1, le=12)
    """fewer happen where they do not fit"""
    repeat: float = Field(0.6, ge=0, le=1)
    """probability that an event is repeated on purpose; others may be by chance, none at 0"""
    max_distractors: int = Field(2, ge=0, le=4)
    """up to so many further objects to which nothing happens"""
    overlap: float = Field(0.0, ge=0, le=1)
    """probability that an event begins while the one before it, of another object, still goes on"""
    noise: float = Field(0.0, ge=0, le=0.5)
    """standard deviation of pixel noise in the mp4, of 1"""

    @model_validator(mode="after")
    def _ordered(self) -> WorldSettings:
        if self.max_duration_s < self.min_duration_s or self.max_events < self.min_events:
            raise ValueError("max_duration_s and max_events must not be below min_duration_s and min_events")
        return self


@dataclass(frozen=True, slots=True, order=True)
class Event:
    """Cells `[start, end)` in which `action` happens to object number `thing`."""

    start: int
    end: int
    thing: int
    action: int

    @property
    def moment(self) -> Moment:
        """The event in seconds."""
        return Moment(self.start * CELL_S, self.end * CELL_S)


@dataclass(frozen=True)
class World:
    """One video's truth.

    objects: (colour, shape) names; events: in order of time; state: float32 [K, 4, F]: centre x, centre y, radius
    (pixels) and visibility (0 or 1) in each cell."""

    seed: int
    cells: int
    objects: tuple[tuple[str, str], ...]
    events: tuple[Event, ...]
    state: np.ndarray

    @property
    def duration_s(self) -> float:
        """Length of the video."""
        return self.cells * CELL_S

    def noun(self, thing: int) -> str:
        """ "the red square" """
        return "the {} {}".format(*self.objects[thing])

    def phrase(self, event: Event) -> str:
        """ "the red square blinks" """
        return f"{self.noun(event.thing)} {ACTIONS[event.action]}"

    @cached_property
    def captions(self) -> tuple[tuple[Moment, str], ...]:
        """True dense captions: (when, "the red square blinks.")."""
        return tuple((event.moment, f"{self.phrase(event)}.") for event in self.events)

    def query(self, number: int) -> str:
        """Names event `number` among the world's events: with an ordinal where the same thing happens again."""
        event = self.events[number]
        same = [e for e in self.events if (e.thing, e.action) == (event.thing, event.action)]
        ordinal = f" for the {ORDINALS[same.index(event)]} time" if len(same) > 1 else ""
        return self.phrase(event) + ordinal

    def crop(self, start: int, end: int) -> World:
        """Cells `[start, end)` as a world of its own: events that reach over an end are cut to it."""
        inside = [replace(e, start=max(e.start, start) - start, end=min(e.end, end) - start) for e in self.events
                  if e.start < end and e.end > start]
        return replace(self, cells=end - start, events=tuple(inside), state=self.state[:, :, start:end])

    def as_json(self) -> dict[str, Any]:
        """Objects and events, for people and programs that want the whole truth."""
        return {"seed": self.seed, "objects": [" ".join(names) for names in self.objects],
                "events": [{"start_s": m.start_s, "end_s": m.end_s, "text": text.rstrip(".")}
                           for m, text in self.captions]}


def duration_cells(seed: int, settings: WorldSettings) -> int:
    """Length in cells of the world of `seed`, without making it."""
    seconds = rng("sandbox duration", seed).integers(settings.min_duration_s, settings.max_duration_s + 1)
    return int(seconds / CELL_S)


def make_world(seed: int, settings: WorldSettings | None = None) -> World:
    """The world of a seed."""
    settings = settings or WorldSettings()
    draw = rng("sandbox world", seed)
    cells = duration_cells(seed, settings)
    actors = int(draw.integers(2, 5))
    things = actors + int(draw.integers(0, settings.max_distractors + 1))
    pairs = draw.permutation(len(COLOURS) * len(SHAPES))[:things]
    names = tuple(COLOURS)
    objects = tuple((names[pair // len(SHAPES)], SHAPES[pair % len(SHAPES)]) for pair in pairs.tolist())
    events = _schedule(draw, _acts(draw, actors, settings), cells, settings)
    return World(seed, cells, objects, events, _states(draw, things, events, cells, settings.size_px))


def _acts(draw: np.random.Generator, actors: int, settings: WorldSettings) -> list[tuple[int, int]]:
    """(thing, action) in order: an object enters first of all and leaves last, once; nothing happens four times."""
    count = int(draw.integers(settings.min_events, settings.max_events + 1))
    acts: list[tuple[int, int]] = []
    if draw.random() < settings.repeat:
        times = 2 if draw.random() < 0.75 or count < 3 else 3
        acts += [(int(draw.integers(actors)), int(draw.integers(BLINKS, SHAKES + 1)))] * min(times, count)
    while len(acts) < count:
        act = (int(draw.integers(actors)), int(draw.integers(len(ACTIONS))))
        if acts.count(act) < (1 if act[1] in (ENTERS, LEAVES) or not settings.repeat else len(ORDINALS)):
            acts.append(act)
    acts = [acts[i] for i in draw.permutation(count)]
    for thing in range(actors):
        places = [i for i, act in enumerate(acts) if act[0] == thing]
        ordered = sorted((acts[i] for i in places), key=lambda act: {ENTERS: -1, LEAVES: 1}.get(act[1], 0))
        for place, act in zip(places, ordered, strict=True):
            acts[place] = act
    return acts


def _schedule(draw: np.random.Generator, acts: list[tuple[int, int]], cells: int,
              settings: WorldSettings) -> tuple[Event, ...]:
    """Gives acts their times: at least one quiet cell before each, or (overlap) a start inside the one before."""
    lengths = [int(draw.integers(*EVENT_CELLS)) | (action == BLINKS) for _, action in acts]
    while len(acts) > 1 and sum(lengths) + 2 * len(lengths) > cells:
        lengths.pop()
        acts.pop()
    slack = cells - sum(lengths) - len(lengths)
    shares = np.diff(np.concatenate([[0.0], np.sort(draw.random(len(lengths) + 1))]))
    gaps = np.floor(shares / shares.sum() * slack).astype(int).tolist()
    events: list[Event] = []
    now = 0
    for (thing, action), length, gap in zip(acts, lengths, gaps, strict=False):
        start = now + gap + 1
        if events and draw.random() < settings.overlap and events[-1].thing != thing:
            last = events[-1]
            free = max((e.end + 1 for e in events if e.thing == thing), default=1)
            start = max(free, int(draw.integers(last.start + 1, last.end)))
        events.append(Event(start, start + length, thing, action))
        now = max(now, start + length)
    return tuple(sorted(events))


def _states(draw: np.random.Generator, things: int, events: tuple[Event, ...], cells: int, size_px: int) -> np.ndarray:
    unit = size_px / 84
    state = np.zeros((things, 4, cells), np.float32)
    homes = draw.permutation(HOMES * HOMES)[:things]
    centres = np.stack([homes % HOMES + 0.5, homes // HOMES + 0.5], 1) * size_px / HOMES
    centres += draw.uniform(-4, 4, centres.shape) * unit
    state[:, :2] = centres[:, :, None]
    state[:, 2] = draw.uniform(7.5, 10.5, (things, 1)) * unit
    state[:, 3] = 1
    for event in events:
        _act(draw, state[event.thing], event, size_px)
    return state


def _act(draw: np.random.Generator, own: np.ndarray, event: Event, size_px: int) -> None:
    """Writes an event into its object's state [4, F], from the event's start to the end of the video."""
    a, b, unit = event.start, event.end, size_px / 84
    here = own[:2, a].copy()[:, None]
    progress = np.arange(1, b - a + 1) / (b - a)
    if event.action in (ENTERS, LEAVES):
        edge = float(draw.choice([-14 * unit, size_px + 14 * unit]))
        away = here.copy()
        away[int(draw.integers(2))] = edge
        path = 0.35 + 0.65 * progress if event.action == ENTERS else 1 - 0.8 * progress
        own[:2, a:b] = away + (here - away) * path
        own[3, :a] = own[3, :a] if event.action == LEAVES else 0
        own[3, b:] = 0 if event.action == LEAVES else own[3, b:]
    elif event.action == BLINKS:
        own[3, a:b:2] = 0
    elif event.action == GROWS:
        own[2, a:b] *= GROWTH
    elif event.action == MOVES:
        there = _far_place(draw, here[:, 0], 5.0 * unit * (b - a), size_px)[:, None]
        own[:2, a:b] = here + (there - here) * progress
        own[:2, b:] = there
    else:
        angle = draw.uniform(0, np.pi)
        swing = 5.0 * unit * np.where(np.arange(b - a) % 2 == 0, 1, -1)
        own[:2, a:b] += np.array([[np.cos(angle)], [np.sin(angle)]]) * swing


def _far_place(draw: np.random.Generator, here: np.ndarray, distance_px: float, size_px: int) -> np.ndarray:
    edge = size_px / 7
    places = draw.uniform(edge, size_px - edge, (30, 2))
    far = np.hypot(*(places - here).T) > distance_px
    if far.any():
        return np.asarray(places[int(far.argmax())])
    return np.where(here < size_px / 2, size_px - edge, edge)
