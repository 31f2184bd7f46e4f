"""A folder of sandbox videos with annotations: `annotations.jsonl`, `videos/*.mp4`, `world.json`.

Equal seeds and settings give equal bytes, whatever the number of processes. Seeds say what a world is for: below one
million the shipped models were trained on it; two million and up is for training that users do; three million and up
for evaluation. world.json is written last: a folder without it is not finished. It says what the folder was made with:
other arguments are refused there, so that no annotations are replaced that somebody may be using."""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from taro.core.draws import rng
from taro.core.errors import ConfigError
from taro.core.files import make_folders, write_atomically
from taro.sandbox.video import encode_video
from taro.sandbox.world import World, WorldSettings, make_world

__all__ = ["TEST_SEED", "TRAIN_SEED", "VERSION", "make_sandbox"]

TRAIN_SEED = 2_000_000
TEST_SEED = 3_000_000
VERSION = 1
"""of the world: raised when the same seed gives another video"""


def make_sandbox(out: str | Path, *, videos: int, seed: int = 0, split: str = "train",
                 settings: WorldSettings | None = None, queries_per_video: int = 3, workers: int = 1,
                 progress: Callable[[int, int], None] | None = None) -> Path:
    """Makes a sandbox folder and returns it.

    Args:
        videos: how many; number n is the world of seed TRAIN_SEED + 100,000 * seed + n (TEST_SEED for any split but
            "train"), so that no split shares a world with another or with the shipped models' training.
        queries_per_video: at most so many of its events are asked for.
        progress: called with (videos done, videos).

    Raises ConfigError where the folder holds a sandbox of other arguments, or annotations of anybody else."""
    most = 9 if split == "train" else 8
    if not 1 <= videos <= 100_000 or not 0 <= seed <= most or queries_per_video < 1:
        raise ConfigError(
            f"expected 1 to 100,000 videos, a seed from 0 to {most} (each has 100,000 worlds of its own) and at "
            f"least 1 query a video, got videos={videos}, seed={seed}, queries_per_video={queries_per_video}")
    settings, out = settings or WorldSettings(), Path(out)
    try:
        make_folders(out / "videos")
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"{out}: expected a folder to write, got a path with a file in it; name another") from None
    first = (TRAIN_SEED if split == "train" else TEST_SEED) + 100_000 * seed
    facts = {"version": VERSION, "first_seed": first, "videos": videos, "split": split, "seed": seed,
             "queries_per_video": queries_per_video, "settings": settings.model_dump()}
    jobs = [(first + number, settings, out, split, queries_per_video) for number in range(videos)]
    _check_folder(out, facts, jobs)
    rows: list[dict[str, Any]] = []
    for done, part in enumerate(_each(jobs, workers), start=1):
        rows += part
        if progress is not None:
            progress(done, videos)
    write_atomically(out / "annotations.jsonl", _lines(rows).encode())
    write_atomically(out / "world.json", (json.dumps({**facts, "queries": len(rows)}, indent=2) + "\n").encode())
    return out


def _check_folder(out: Path, facts: dict[str, Any], jobs: list[Any]) -> None:
    """Refuses a folder whose annotations are not those that these arguments give."""
    path, changed = out / "annotations.jsonl", []
    if not path.exists():
        return
    try:
        before = json.loads((out / "world.json").read_text(encoding="utf-8"))
        changed = [f"{key} {json.dumps(before[key])} there, {json.dumps(value)} now" for key, value in facts.items()
                   if before.get(key, value) != value]
    except (OSError, ValueError, AttributeError):  # no finished sandbox; an interrupted one of these arguments is fine
        rows = [row for seed, world, _, split, most in jobs
                for row in _rows(make_world(seed, world), f"world-{seed}.mp4", split, most)]
        if path.read_bytes() != _lines(rows).encode():
            changed = ["annotations.jsonl is none of a sandbox"]
    if changed:
        raise ConfigError(f"{out}: holds other annotations already ({'; '.join(changed)[:500]}); name another folder, "
                          "or remove this one")


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _each(jobs: list[Any], workers: int) -> Iterator[list[dict[str, Any]]]:
    if workers <= 1:
        yield from map(_make, jobs)
        return
    ignored = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for this process, which ends the others
    with multiprocessing.get_context("spawn").Pool(workers, signal.signal, ignored) as pool:
        yield from pool.imap(_make, jobs, chunksize=4)


def _make(job: tuple[int, WorldSettings, Path, str, int]) -> list[dict[str, Any]]:
    seed, settings, out, split, queries = job
    world = make_world(seed, settings)
    name = f"world-{seed}.mp4"
    write_atomically(out / "videos" / name, encode_video(world, settings))
    return _rows(world, name, split, queries)


def _rows(world: World, video: str, split: str, queries: int) -> list[dict[str, Any]]:
    """Annotations of one video: some of its events as queries, all of them as captions."""
    order = rng("sandbox queries", world.seed).permutation(len(world.events))[:queries]
    captions = [{"start_s": when.start_s, "end_s": when.end_s, "text": text} for when, text in world.captions]
    return [{"qid": f"{world.seed}-{number}", "video": video, "query": world.query(number),
             "windows": [[world.events[number].moment.start_s, world.events[number].moment.end_s]],
             "duration": world.duration_s, "split": split, "captions": captions, "events": world.as_json()["events"]}
            for number in sorted(order.tolist())]
