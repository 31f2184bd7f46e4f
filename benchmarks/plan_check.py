"""What `taro train --plan` says of a GPU's memory, beside what torch held in the phases of real steps.

Makes a model of released shape with random weights, a shard set of random features (no video is read), opens the run
that a recipe and `--set` describe, and trains a few steps. A random model ends no response, so all of them reach
rollout.max_new_tokens, which is what a plan assumes. Prints one table: planned and measured peaks of each phase, in GiB
of torch's allocations. Left out: validation, checkpoints, export.

    python benchmarks/plan_check.py --size 3b --recipe taro-3b --set rollout.prompts=4
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.shapes import SHAPES, write_model
from taro.core.config import load_config
from taro.core.draws import rng
from taro.grounding.records import CandidatePaths, ClipRecord, ClipSpan, DenseCaption, QueryRecord, VideoFacts
from taro.models.features import FrameSampling, VideoFeatures, patch_times_s
from taro.models.fingerprint import encoder_fingerprint
from taro.shards.manifest import build_manifest, write_manifest
from taro.shards.writer import SliceWriter
from taro.train.config import TrainConfig
from taro.train.open import Run, open_run
from taro.train.phases import Phases
from taro.train.plan.lengths import lengths_of
from taro.train.plan.make import make_plan
from taro.train.plan.shapes import shape_of_folder
from taro.train.plan.show import plan_lines
from taro.train.step import train_step

GIB = 2**30


def clip_record(number: int, grid: tuple[int, int, int]) -> ClipRecord:
    """A clip of one query, one patch a two seconds, with captions to guide by."""
    length_s = 2.0 * grid[0]
    captions = [DenseCaption(start_s=s, end_s=s + length_s / 4, text="a person walks to the door and opens it")
                for s in np.arange(4) * length_s / 4]
    return ClipRecord(
        key=f"clip-{number:03d}", clip=ClipSpan(start_s=0.0, end_s=length_s), captions=captions,
        times_s=[float(at) for at in range(2 * grid[0])],
        video=VideoFacts(path_hint=f"{number}.mp4", sha256=hashlib.sha256(bytes([number])).hexdigest(),
                         duration_s=length_s, frames=int(8 * length_s), fps=8.0, width=336, height=280, decoder="pyav",
                         frames_sha256="0" * 64),
        queries=[QueryRecord(id=f"q{number}", text="a person opens the door", split="train",
                             windows_s=[(2.0, length_s / 2)],
                             paths=CandidatePaths(random=[[0], [0, 1], [1, 2], [2, 3]] * 2, overlap=[[0], [1]]))])


def write_shards(root: Path, model: Path, *, clips: int, grid: tuple[int, int, int]) -> Path:
    """A shard set of random features that this model's tower might have made."""
    shape, encoder = shape_of_folder(model), encoder_fingerprint(model, FrameSampling(), "bfloat16")
    S, N = grid[0], grid[1] * grid[2] // 4
    with SliceWriter(root, 0, kinds=("paths", f"features/{encoder.name}")) as writer:
        for number in range(clips):
            record, generator = clip_record(number, grid), rng("plan check", number)
            main, *deep = (torch.from_numpy(generator.standard_normal((S, N, shape.D), dtype=np.float32) * 0.02)
                           .to(torch.bfloat16) for _ in range(1 + shape.levels))
            features = VideoFeatures(main, patch_times_s(np.array(record.times_s)), grid, 2.0, tuple(deep))
            writer.add_clip(record, None, {encoder.name: features}, {})
        writer.commit()
    write_manifest(root, build_manifest(root, inputs=clips, skipped=0, captions=4 * clips, name="plan-check",
                                        encoders=[encoder]))
    return root


class MeasuredPhases(Phases):
    """Phases that note the most that torch held in each: (allocated, reserved)."""

    def __init__(self) -> None:
        super().__init__()
        self.peaks: dict[str, tuple[int, int]] = {}

    def note(self, name: str) -> None:
        """Notes the peak since the last note under a name, and begins anew."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            now = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            before = self.peaks.get(name, (0, 0))
            self.peaks[name] = max(before[0], now[0]), max(before[1], now[1])
            torch.cuda.reset_peak_memory_stats()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """As `Phases`, noting the peak."""
        self.note("before")
        with super().__call__(name):
            yield
        self.note("step" if name == "update" else name)


def watch_optimizer(run: Run, phases: MeasuredPhases) -> None:
    """Parts the update's peak from the optimizer's own."""
    inner: Any = run.optimizer.step

    def step(*args: Any, **knobs: Any) -> Any:
        phases.note("update")
        return inner(*args, **knobs)

    run.optimizer.step = step  # type: ignore[method-assign]


def measure(config: TrainConfig, steps: int, phases: MeasuredPhases) -> dict[str, Any]:
    """Trains and returns what was measured, in GiB: a peak a phase, and what stays between steps."""
    run = open_run(config, resume=False)
    with contextlib.closing(run):
        run.phases = phases
        watch_optimizer(run, phases)
        opened = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
        lines = [train_step(run) for _ in range(steps)]
    found: dict[str, Any] = {"phases": {name: [round(one / GIB, 3) for one in peaks]
                                        for name, peaks in phases.peaks.items()},
                             "length_max": max(line["length_max"] for line in lines),
                             "seconds": [round(line["seconds"], 2) for line in lines],
                             "seconds_by_phase": {name: round(s, 2) for name, s in lines[-1]["phases"].items()}}
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        found |= {"opened": round(opened / GIB, 3), "between_steps": round(torch.cuda.memory_allocated() / GIB, 3),
                  "device_used": round((total - free) / GIB, 3), "device_total": round(total / GIB, 3),
                  "reserved_now": round(torch.cuda.memory_reserved() / GIB, 3)}
    return found


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, default="tiny")
    parser.add_argument("--recipe", default="taro-7b", help="a recipe that ships, or a .yaml file")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--grid", default="30,20,24", help="temporal patches, rows, columns before merging")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--model", type=Path, help="a folder to write the model into, or one that has it already")
    args = parser.parse_args()
    t, h, w = (int(part) for part in args.grid.split(","))
    with tempfile.TemporaryDirectory() as scratch:
        model = args.model or Path(scratch) / "model"
        if not (model / "config.json").is_file():
            write_model(model, args.size)
        shards = write_shards(Path(scratch) / "shards", model, clips=args.clips, grid=(t, h, w))
        config = load_config(TrainConfig, args.recipe, [
            f"policy={model}", f"shards={shards}", f"out={scratch}/run",
            f"length={{unit: steps, amount: {args.steps}}}",
            "curriculum={unit: steps, amount: 1}", *args.overrides], package="taro.train.recipes")
        print_table(args, config, model)


def print_table(args: argparse.Namespace, config: TrainConfig, model: Path) -> None:
    """Measures, then prints the plan's table, both peaks of each phase, and everything as JSON."""
    from taro.models.asking import asking_of
    from taro.shards.reader import open_shards
    from taro.train.data import TrainingData, select

    shape = shape_of_folder(model)
    data = TrainingData([select(source, open_shards(source.path)) for source in config.sources],
                        prompts=config.rollout.prompts)
    lengths = lengths_of(data, asking_of(model, template=config.template), shape.levels, model)
    cuda = torch.cuda.is_available()
    plan = make_plan(config, shape, lengths, bf16=config.dtype == "bfloat16" or (config.dtype == "auto" and cuda))
    print("\n".join(plan_lines(plan)), flush=True)
    phases, failed = MeasuredPhases(), ""
    try:
        found = measure(config, args.steps, phases)
    except torch.cuda.OutOfMemoryError as error:
        failed = str(error).partition("\n")[0]
        found = {"phases": {name: [round(one / GIB, 3) for one in peaks] for name, peaks in phases.peaks.items()}}
    print(f"{'phase':10}{'planned':>10}{'measured':>10}{'reserved':>10}{'planned / measured':>20}")
    for name in plan.phases:
        allocated, reserved = found["phases"].get(name, (0.0, 0.0))
        ratio = f"{plan.allocated(name) / GIB / allocated:20.3f}" if allocated else ""
        print(f"{name:10}{plan.allocated(name) / GIB:10.2f}{allocated:10.2f}{reserved:10.2f}{ratio}")
    print(json.dumps({"device": torch.cuda.get_device_name() if cuda else "cpu", "size": args.size,
                      "recipe": args.recipe, "set": args.overrides, "P": plan.job.P, "T": plan.job.T,
                      "planned": {name: round(plan.allocated(name) / GIB, 3) for name in plan.phases},
                      "always": {name: round(size / GIB, 3) for name, size in plan.always.items()},
                      "failed": failed, "measured": found}))


if __name__ == "__main__":
    main()
