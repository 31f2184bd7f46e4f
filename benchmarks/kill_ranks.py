"""Ranks that train and write checkpoints in the background, all killed at random moments, and what comes out.

Real processes that meet over gloo: a small optimizer takes steps on drawn gradients, with a checkpoint after two steps
of three. They are killed (kill -9), start again from the newest whole checkpoint with two ranks, or one, or three, and
so on; after some kills they are left to end. Weights and moments must then be those of one process that nobody
disturbed, bit for bit, and nothing may lie beside the checkpoints. One process imports torch and forks each rank, so a
kill costs a second. Left out: the whole of `taro train` (faults.py --gpus 2).

    python benchmarks/kill_ranks.py --kills 100
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.distributed as dist
from torch.distributed import FileStore

from taro.core.files import remove_temporary_folders
from taro.train.checkpoint import RunState, Saver, checkpoints, resume_checkpoint
from taro.train.optimizer.optimizer import Optimizer
from taro.train.ranks import ALONE, Ranks
from taro.train.settings.update import OptimizerConfig

STEPS, KILLS_A_JOB, PATIENCE_S = 12, 7, 120.0
SHAPES = {"lm.layers.0.a": (300, 200), "lm.layers.0.b": (700,), "lm.layers.1.c": (400, 300), "head": (257,)}
WORLDS = (2, 2, 2, 1, 3)


def optimizer_of(ranks: Ranks) -> Optimizer:
    """Of drawn weights."""
    generator = torch.Generator().manual_seed(0)
    named = {name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}
    return Optimizer(named.items(), OptimizerConfig(states="bfloat16"), ranks)


def train(folder: Path, ranks: Ranks) -> Optimizer:
    """From the newest whole checkpoint to the last step."""
    optimizer = optimizer_of(ranks)
    if ranks.first and folder.is_dir():
        remove_temporary_folders(folder)
    ranks.barrier()
    state = resume_checkpoint(folder, optimizer, ranks=ranks) or RunState()
    saver = Saver(folder, optimizer, ranks=ranks, keep=2)
    while state.step < STEPS:
        generator = torch.Generator().manual_seed(state.step)
        optimizer.begin()
        for slot in optimizer.slots:
            gradient = torch.randn(SHAPES[slot.name], generator=generator)
            slot.parameter.grad = gradient if ranks.first else None  # the same sum, whatever the number of ranks
        optimizer.collect()
        optimizer.step(0.01)
        state.step += 1
        saver.poll()
        if state.step % 3 or state.step == STEPS:
            saver.save(state)
    saver.finish()
    saver.close()
    return optimizer


def start(folder: Path, world: int, store: Path) -> list[int]:
    """Forks the ranks; their process numbers."""
    store.unlink(missing_ok=True)
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                dist.init_process_group("gloo", rank=rank, world_size=world, store=FileStore(str(store), world))
                train(folder, Ranks(rank, world))
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    return children


def ended(children: list[int], until: float) -> list[int]:
    """Exit codes of the children, which are killed at that time."""
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        if time.monotonic() > until:
            for child in children:
                if child not in codes:
                    os.kill(child, signal.SIGKILL)
            until = float("inf")
        for child in children:
            if child not in codes:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    codes[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)
    return [codes[child] for child in children]


def moment(folder: Path, rng: random.Random, *, aim: bool) -> float:
    """When to kill: some time from now, or soon after a checkpoint has been begun."""
    if not aim:
        return time.monotonic() + rng.uniform(0.1, 1.5)
    until = time.monotonic() + 5
    while time.monotonic() < until and not list(folder.glob(".tmp-*")):
        time.sleep(0.0002)
    return time.monotonic() + rng.uniform(0, 0.02)


def left_of(folder: Path) -> str:
    """What a kill left: a checkpoint half written, or none."""
    names = sorted(path.name.rstrip("0123456789") for path in folder.glob(".tmp-*")) if folder.is_dir() else []
    return names[0] if names else "nothing half-written"


def torment(scratch: Path, kills: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Kills by what they left, and what went wrong."""
    whole, rng = train(scratch / "whole", ALONE).pieces(), random.Random(seed)
    found, problems, job = Counter[str](), list[str](), 0
    while found.total() < kills and len(problems) < 5:
        folder, job = scratch / f"job-{job}", job + 1
        for _ in range(KILLS_A_JOB):
            world = rng.choice(WORLDS)
            children = start(folder, world, scratch / "store")
            codes = ended(children, moment(folder, rng, aim=found.total() % 2 == 0))
            if not all(code == -signal.SIGKILL for code in codes) or found.total() == kills:
                break
            found[left_of(folder)] += 1
        codes = ended(start(folder, 2, scratch / "store"), time.monotonic() + PATIENCE_S)
        other = optimizer_of(ALONE)
        if any(codes) or resume_checkpoint(folder, other) != RunState(step=STEPS):
            problems.append(f"job {job}: exit codes {codes}, {[path.name for path in folder.iterdir()]}")
        elif not all(a.tensor.equal(b.tensor) for a, b in zip(other.pieces(), whole, strict=True)):
            problems.append(f"job {job}: other numbers")
        elif len(list(folder.iterdir())) != len(checkpoints(folder)):
            problems.append(f"job {job}: more than checkpoints: {[path.name for path in folder.iterdir()]}")
    return found, problems


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # torch's renamed collectives
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kill-ranks-") as scratch:
        found, problems = torment(Path(scratch), args.kills, args.seed)
    print(json.dumps({"kills": found.total(), "left": found, "problems": problems,
                      "seconds": round(time.monotonic() - started)}))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
