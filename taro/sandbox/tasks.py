"""Questions about worlds and their answers: what the sandbox's models are trained on.

`ground` is the task of the method, with every true caption in its reasoning. The others teach perception, without
which a reward has nothing to choose from: describe the whole video, say what happens at a time, describe a segment
without times (as a captioner is asked to). Crops make models used to shorter videos.

`weak_example` makes the policy that training starts from: it knows the form, but mostly reasons without captions, and
answers with shifted or wrong windows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from taro.grounding.moment import Moment
from taro.models.features import FrameSampling, sample_frames
from taro.sandbox.world import CELL_S, World

__all__ = ["Example", "mixed_example", "response", "seconds", "segment_sentences", "shown_times_s", "weak_example"]

TASKS = {"ground": 0.45, "describe": 0.25, "at": 0.15, "segment": 0.15}
CROPPED = 0.25
"""share of grounding and describing that sees a part of the video"""
FRAMES_PER_CELL = 4
"""of the default 8 frames a second"""
SEGMENT_CELLS = (4, 20)
MIN_CROP_CELLS = 12
SHIFT_CELLS = 3
WEAK_SILENT = 0.6
WEAK_WRONG = 0.3


@dataclass(frozen=True)
class Example:
    """cells: which cells of the world are shown, an even number; seconds_per_patch: two of them; user and assistant
    texts."""

    cells: tuple[int, ...]
    seconds_per_patch: float
    user: str
    assistant: str


def seconds(cell: int) -> str:
    """Time of a cell's start as the sandbox writes it: "2.5s"."""
    return f"{cell * CELL_S:.1f}s"


def shown_times_s(cells: int) -> np.ndarray:
    """True times [T] of the frames that preprocessing shows of a clip of so many cells."""
    return sample_frames(cells * FRAMES_PER_CELL, cells * CELL_S, FrameSampling()) * (CELL_S / FRAMES_PER_CELL)


def _span(moment: Moment) -> str:
    """ "2.0s to 5.5s" """
    return f"{moment.start_s:.1f}s to {moment.end_s:.1f}s"


def _caption_lines(world: World, numbers: list[int]) -> list[str]:
    """Captions of some events, one a line, as a reasoning holds them."""
    return [f"From {_span(moment)}, {text}" for moment, text in (world.captions[n] for n in numbers)]


def response(query: str, lines: list[str], answer: Moment) -> str:
    """A whole response: reasoning with caption lines, then the answer."""
    opening = f"I need to find the specific moment {query}."
    return "\n".join(["<think>", opening, *lines, "</think>", f"<answer>{_span(answer)}</answer>"])


def mixed_example(world: World, draw: np.random.Generator) -> Example:
    """One question of the mixture that teaches perception and grounding."""
    task = str(draw.choice(list(TASKS), p=list(TASKS.values())))
    if task == "segment":
        return _segment(world, draw)
    if task == "at":
        return _at(world, draw)
    start, seen = 0, world
    if draw.random() < CROPPED:
        start, seen = _quiet_crop(world, draw)
    everything = list(range(len(seen.events)))
    if task == "describe":
        return _whole(seen, "describe the events.", "\n".join(_caption_lines(seen, everything)), start)
    number = int(draw.integers(len(seen.events)))
    query = seen.query(number)
    text = response(query, _caption_lines(seen, everything), seen.events[number].moment)
    return _whole(seen, f"when does {query} happen?", text, start)


def weak_example(world: World, draw: np.random.Generator) -> Example:
    """A grounding example with a bad answer and few captions."""
    number = int(draw.integers(len(world.events)))
    query, kept = world.query(number), []
    if draw.random() >= WEAK_SILENT:
        many = int(draw.integers(0, len(world.events) + 1))
        kept = sorted(draw.permutation(len(world.events))[:many].tolist())
    if draw.random() < WEAK_WRONG:
        number = int(draw.integers(len(world.events)))
    event = world.events[number]
    low, high = (int(x) for x in draw.integers(-SHIFT_CELLS, SHIFT_CELLS + 1, 2))
    start = min(max(event.start + low, 0), world.cells - 1)
    end = min(max(event.end + high, start + 1), world.cells)
    text = response(query, _caption_lines(world, kept), Moment(start * CELL_S, end * CELL_S))
    return _whole(world, f"when does {query} happen?", text, 0)


def _whole(world: World, user: str, assistant: str, first: int) -> Example:
    return Example(tuple(range(first, first + world.cells)), 2 * CELL_S, user, assistant)


def _quiet_crop(world: World, draw: np.random.Generator) -> tuple[int, World]:
    """A part that cuts no event and holds at least one, an even number of cells long; the whole where none is found."""
    busy = np.zeros(world.cells + 1, bool)
    for event in world.events:
        busy[event.start + 1 : event.end] = True
    for _ in range(8):
        start, end = sorted(int(x) for x in draw.integers(0, world.cells + 1, 2))
        end -= (end - start) % 2
        if end - start >= MIN_CROP_CELLS and not busy[start] and not busy[end]:
            seen = world.crop(start, end)
            if seen.events:
                return start, seen
    return 0, world


def _at(world: World, draw: np.random.Generator) -> Example:
    event = world.events[int(draw.integers(len(world.events)))]
    anywhere = draw.random() < 0.4
    cell = int(draw.integers(world.cells)) if anywhere else int(draw.integers(event.start, event.end))
    hits = [text for e, (_, text) in zip(world.events, world.captions, strict=True) if e.start <= cell < e.end]
    return _whole(world, f"what happens at {seconds(cell)}?", " ".join(hits) or "nothing happens.", 0)


def segment_sentences(world: World, start: int, end: int) -> str:
    """What a captioner should say of cells `[start, end)`: the events of which it shows at least half, and those that
    fill at least half of it."""
    sentences = []
    for event, (_, text) in zip(world.events, world.captions, strict=True):
        shown = min(event.end, end) - max(event.start, start)
        if shown > 0 and 2 * shown >= min(event.end - event.start, end - start):
            sentences.append(text)
    return " ".join(sentences) or "nothing happens."


def _segment(world: World, draw: np.random.Generator) -> Example:
    """Half the time about one event, give or take a cell, as a change-point detector cuts; else any stretch. Frames
    are chosen as preprocessing chooses them for a clip of that length."""
    if draw.random() < 0.5:
        event = world.events[int(draw.integers(len(world.events)))]
        start = max(event.start - int(draw.integers(-1, 2)), 0)
        end = min(event.end + int(draw.integers(-1, 2)), world.cells)
    else:
        length = min(int(draw.integers(*SEGMENT_CELLS)), world.cells)
        start = int(draw.integers(0, world.cells - length + 1))
        end = start + length
    end = min(max(end, start + SEGMENT_CELLS[0]), world.cells)
    start = min(start, end - SEGMENT_CELLS[0])
    count = end - start
    cells = tuple((start + (shown_times_s(count) // CELL_S).astype(int)).tolist())
    return Example(cells, count * CELL_S / (len(cells) // 2), "describe the segment.",
                   segment_sentences(world, start, end))
