"""How fast this machine was: seconds of each phase in runs that ended here, in one small file in the user's cache.

A step takes, on the GPU that has most prompts: a pass for each scoring and an update over the tokens of its packed
rows, and a pass of decoding for each token of a batch's longest response. A plan takes the newest entry of its kind
(number of parameters, adapters or not) on this GPU; without one, what docs/log.md has of one H100, and says so.
Left out: how speed changes with lengths and batches, and what ranks say to each other; it is for planning a day."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from taro.core.files import make_folders, write_atomically
from taro.core.json import read_json
from taro.train.plan.memory import Job

__all__ = ["H100", "Speed", "mean_response", "measured_speed", "metrics_lines", "passes", "seconds_of_step",
           "speed_file", "speed_of", "write_speed"]

LINES = 50
"""steps of a run, its last ones, over which a response's length is a mean"""
MAX_BYTES = 64 << 20
KEPT = 64
"""entries of the file"""
LONGEST = 2.0
"""longest response of a batch, in mean responses, at most rollout.max_new_tokens: until it ends the batch is decoded"""


@dataclass(frozen=True)
class Speed:
    """Seconds: decode_s of one token of a batch of prompts, score_s of one pass over one token of a row, update_s of
    one forward and backward of it. steps: over which they were measured; 0: a figure of docs/log.md."""

    gpu: str
    parameters: int
    adapters: bool
    decode_s: float
    score_s: float
    update_s: float
    steps: int = 0


H100 = (
    Speed("one H100", 3_085_938_688, False, 16e-3, 29.5e-6, 129e-6),
    Speed("one H100", 7_615_616_512, False, 14.8e-3, 39.5e-6, 151.6e-6),
    Speed("one H100", 8_190_735_360, False, 20.2e-3, 55.1e-6, 214e-6),
)
"""docs/log.md: a step of 2026-11-26 (3B), parts of a step of 2026-11-24 (7B) and 2026-11-25 (8B), a token or a row's
token each; at 7B and 8B one prompt was decoded at once"""


def speed_file() -> Path:
    """Where a machine's figures are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "taro" / "speed.json"


def passes(kl: float, *, one_pass: bool = False) -> int:
    """Scoring passes of a step: the disrupted videos, the policy unless its update is that pass (`Job.one_pass`), and
    the reference where there is one."""
    return 2 - one_pass + (kl > 0)


def seconds_of_step(job: Job, speed: Speed, *, prompt: float, response: float, kl: float, redraws: int = 0) -> float:
    """Of a step whose prompts and responses have these mean lengths in tokens. redraws: rounds in which all groups are
    drawn and scored again, but for the reference, which scores once."""
    row = prompt + job.G * response
    update = job.prompts * row * speed.update_s
    if job.sft:
        return update
    batches = -(-job.prompts // job.batch)
    decoding = batches * min(LONGEST * response, job.R) * speed.decode_s
    scored = job.prompts * row * speed.score_s
    return (1 + redraws) * (decoding + passes(0, one_pass=job.one_pass) * scored) + (kl > 0) * scored + update


def measured_speed(lines: Sequence[dict[str, Any]], job: Job, *, gpu: str, prompt: float, kl: float) -> Speed | None:
    """The figures of a run, from its steps' lines of metrics.jsonl, the first two left out as they warm up; None where
    fewer than three are left, and of a run that draws nothing or draws groups again: its phases are other work."""
    seen = [line for line in lines if isinstance(line.get("phases"), dict) and _is_number(line.get("length"))
            and _is_number(line.get("length_max"))][2:]
    if len(seen) < 3 or job.sft or job.redraws:
        return None
    batches = -(-job.prompts // job.batch)
    tokens = [job.prompts * (prompt + job.G * float(line["length"])) for line in seen]
    decoded = [batches * float(line["length_max"]) for line in seen]

    def each(phase: str, over: list[float]) -> float:
        return sum(float(line["phases"].get(phase, 0.0)) for line in seen) / max(sum(over), 1.0)

    return Speed(gpu, job.shape.parameters, job.adapters is not None, each("rollouts", decoded),
                 each("scores", tokens) / passes(kl, one_pass=job.one_pass), each("update", tokens), len(seen))


def write_speed(speed: Speed, path: Path) -> None:
    """Puts an entry before the others."""
    make_folders(path.parent)
    entries = [asdict(speed), *(asdict(one) for one in _read(path))][:KEPT]
    write_atomically(path, (json.dumps({"entries": entries}, indent=1) + "\n").encode())


def _read(path: Path) -> list[Speed]:
    """The entries that can be read, the newest first: a cache that is damaged is none."""
    try:
        found: Any = read_json(path).get("entries")
        return [Speed(**one) for one in found if _whole(one)] if isinstance(found, list) else []
    except Exception:  # noqa: BLE001  whatever is wrong with it, it is only a cache
        return []


def _whole(one: Any) -> bool:
    kinds = {"gpu": str, "parameters": int, "adapters": bool, "decode_s": float, "score_s": float, "update_s": float,
             "steps": int}
    return isinstance(one, dict) and one.keys() == kinds.keys() and all(
        isinstance(one[name], kind) for name, kind in kinds.items())


def speed_of(job: Job, gpu: str, path: Path) -> Speed:
    """This GPU's newest figures for a model of this shape and kind of training; else those of an H100 for the model
    nearest in size, in proportion to its parameters."""
    for one in _read(path):
        if (one.gpu, one.parameters, one.adapters) == (gpu, job.shape.parameters, job.adapters is not None):
            return one
    nearest = min(H100, key=lambda one: abs(one.parameters - job.shape.parameters))
    times = job.shape.parameters / nearest.parameters
    return Speed(nearest.gpu, job.shape.parameters, job.adapters is not None, nearest.decode_s * times,
                 nearest.score_s * times, nearest.update_s * times)


def mean_response(folder: Path) -> float | None:
    """Mean tokens of a response in the last steps of the run in a folder; None where it holds none."""
    lengths = [float(line["length"]) for line in metrics_lines(folder) if _is_number(line.get("length"))][-LINES:]
    return sum(lengths) / len(lengths) if lengths else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9


def metrics_lines(folder: Path) -> list[dict[str, Any]]:
    """The steps' lines of metrics.jsonl of a run folder that can be read."""
    path, found = folder / "metrics.jsonl", list[dict[str, Any]]()
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        return found
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        found += [line] if isinstance(line, dict) else []
    return found
