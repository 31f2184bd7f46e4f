"""Training data of the sandbox's models: mp4s written and read back by many processes, then held by the GPU.

Frames are stored flat, cell after cell, so an example is a list of row numbers. What travels between processes is
small: pixels go through memory that the processes share.

Legend: M videos, V examples of a video, T cells shown (padded), R text tokens (padded)."""

from __future__ import annotations

import io
import mmap
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from taro.core.draws import rng
from taro.models.features import patch_times_s
from taro.sandbox.labels import sentence_labels
from taro.sandbox.tasks import Example, mixed_example, shown_times_s, weak_example
from taro.sandbox.tokens import build_tokenizer, stamp
from taro.sandbox.video import decode_cells, encode_video
from taro.sandbox.world import CELL_S, World, WorldSettings, duration_cells, make_world

__all__ = ["MAX_CELLS", "MAX_TEXT", "Examples", "Plan", "Videos", "make_videos"]

MAX_CELLS = 64
MAX_TEXT = 128
CHUNK = 16
"""videos a process makes at a time"""


@dataclass(frozen=True)
class Examples:
    """cells_NT: rows of the frames, padded with the first; patches_N; seconds_N: seconds per patch; stamps_NS: the
    token of each patch's timestamp (Qwen3-VL); ids_NR: tokens from <|vision_end|> on; prompt_N and total_N: how many
    belong to the prompt, to both."""

    cells_NT: torch.Tensor
    patches_N: torch.Tensor
    seconds_N: torch.Tensor
    stamps_NS: torch.Tensor
    ids_NR: torch.Tensor
    prompt_N: torch.Tensor
    total_N: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids_NR)

    def select(self, index: torch.Tensor) -> Examples:
        """Some of them."""
        return Examples(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def to(self, device: torch.device) -> Examples:
        """On another device, token ids as int64."""
        moved = {name: getattr(self, name).to(device) for name in self.__dataclass_fields__}
        return Examples(**{name: x if x.is_floating_point() else x.long() for name, x in moved.items()})


@dataclass(frozen=True)
class Videos:
    """frames_FHWC: uint8, all cells of all videos; mixed, weak: examples; labels_FL: which sentences are true of a
    cell, for the first videos."""

    frames_FHWC: torch.Tensor
    mixed: Examples
    weak: Examples
    labels_FL: torch.Tensor


@dataclass(frozen=True)
class Plan:
    """How many videos from which seed on; how many examples of each kind a video; for how many there are labels."""

    videos: int
    first_seed: int
    mixed: int = 8
    weak: int = 1
    labelled: int = 6000
    processes: int = 1


def make_videos(plan: Plan, settings: WorldSettings, say: Callable[[str], None]) -> Videos:
    """Makes the videos; call it before the first use of CUDA, since it forks."""
    seeds = [plan.first_seed + number for number in range(plan.videos)]
    starts = np.concatenate([[0], np.cumsum([duration_cells(seed, settings) for seed in seeds])])
    shape = (int(starts[-1]), settings.size_px, settings.size_px, 3)
    frames = np.frombuffer(mmap.mmap(-1, int(np.prod(shape))), np.uint8).reshape(shape)
    jobs = [(seeds[low : low + CHUNK], starts[:-1][low : low + CHUNK].tolist(), max(0, min(plan.labelled - low, CHUNK)))
            for low in range(0, plan.videos, CHUNK)]
    parts, began = [], time.monotonic()
    for number, part in enumerate(_run(jobs, (frames, plan, settings), plan.processes)):
        parts.append(part)
        if number % max(1, len(jobs) // 8) == 0:
            say(f"videos: {min((number + 1) * CHUNK, plan.videos)}/{plan.videos} in {time.monotonic() - began:.0f} s")
    labels = [part[2] for part in parts if len(part[2])]
    return Videos(torch.from_numpy(frames), _stack([part[0] for part in parts]), _stack([part[1] for part in parts]),
                  torch.from_numpy(np.concatenate(labels)) if labels else torch.zeros(0, 0))


def _run(jobs: list[Any], shared: tuple[Any, ...], processes: int) -> Iterator[Any]:
    if processes <= 1:
        _attach(*shared)
        yield from map(_chunk, jobs)
        return
    with multiprocessing.get_context("fork").Pool(processes, _attach, shared) as pool:
        yield from pool.imap(_chunk, jobs)


_SHARED: dict[str, Any] = {}
"""of a worker process: the frames' memory and what to make, handed over by the fork"""


def _attach(frames: np.ndarray, plan: Plan, settings: WorldSettings) -> None:
    torch.set_num_threads(1)
    _SHARED.update(frames=frames, plan=plan, settings=settings, tokenizer=build_tokenizer(stamped=True))


def _chunk(job: tuple[list[int], list[int], int]) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    seeds, starts, labelled = job
    plan, settings, frames = _SHARED["plan"], _SHARED["settings"], _SHARED["frames"]
    mixed, weak, labels = [], [], []
    for number, (seed, start) in enumerate(zip(seeds, starts, strict=True)):
        world = make_world(seed, settings)
        cells = decode_cells(io.BytesIO(encode_video(world, settings)))
        assert len(cells) == world.cells, f"world {seed}: {len(cells)} frames decoded, {world.cells} cells"
        frames[start : start + world.cells] = cells
        mixed += [_row(example, start) for example in _examples(mixed_example, world, plan.mixed)]
        weak += [_row(example, start) for example in _examples(weak_example, world, plan.weak)]
        if number < labelled:
            labels.append(sentence_labels(world, settings))
    return _columns(mixed), _columns(weak), np.concatenate(labels) if labels else np.zeros((0, 0), bool)


def _examples(make: Callable[[World, np.random.Generator], Example], world: World, count: int) -> Iterator[Example]:
    for number in range(count):
        yield make(world, rng("sandbox example", make.__name__, world.seed, number))


Row = tuple[np.ndarray, int, float, np.ndarray, np.ndarray, int, int]


def _row(example: Example, start: int) -> Row:
    tokenizer = _SHARED["tokenizer"]
    asked = f"<|vision_end|>{example.user}<|im_end|>\n<|im_start|>assistant\n"
    prompt = tokenizer(asked, add_special_tokens=False)["input_ids"]
    answer = tokenizer(example.assistant + "<|im_end|>", add_special_tokens=False)["input_ids"]
    total = len(prompt) + len(answer)
    assert total <= MAX_TEXT and len(example.cells) <= MAX_CELLS, f"{total} tokens, {len(example.cells)} cells"
    ids = np.zeros(MAX_TEXT, np.int16)
    ids[:total] = prompt + answer
    cells = np.full(MAX_CELLS, start, np.int32)
    cells[: len(example.cells)] = start + np.array(example.cells)
    patches = len(example.cells) // 2
    times = patch_times_s(shown_times_s(round(patches * example.seconds_per_patch / CELL_S)))
    stamps = np.zeros(MAX_CELLS // 2, np.int16)
    stamps[:patches] = tokenizer.convert_tokens_to_ids([stamp(time) for time in times.tolist()])
    return cells, patches, example.seconds_per_patch, stamps, ids, len(prompt), total


def _columns(rows: list[Row]) -> list[np.ndarray]:
    return [np.array([row[n] for row in rows], dtype=kind) for n, kind in
            enumerate((np.int32, np.int32, np.float64, np.int16, np.int16, np.int32, np.int32))]


def _stack(parts: list[list[np.ndarray]]) -> Examples:
    return Examples(*(torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)))
