"""Ranks that train and write checkpoints in the background, all killed at random moments, and what comes out.

Real processes that meet over gloo: a small optimizer takes steps on drawn gradients, with a checkpoint after two steps
of three. They are killed (kill -9), start again from the newest whole checkpoint with two ranks, or one, or three, and
so on; after some kills they are left to end. Weights and moments must then be those of one process that nobody
disturbed, bit for bit, and nothing may lie beside the checkpoints. One process imports torch and forks each rank, so a
kill costs a second. A job that is not at its end after 120 s writes where each of its threads is, twice, and gets four
times as long again: what ends then was slow, what does not hangs, and its stacks are printed.
Left out: the whole of `taro train` (faults.py --gpus 2).

    python benchmarks/kill_ranks.py --kills 100
"""

from __future__ import annotations

import argparse
import faulthandler
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

STEPS, KILLS_A_JOB = 12, 7
PATIENCE_S, MORE, APART_S = 120.0, 4, 10.0
"""until a job's stacks are written; how many times as long it gets besides; between the two writings"""
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
                faulthandler.register(signal.SIGUSR1, stacks_of(folder, rank).open("w"))
                dist.init_process_group("gloo", rank=rank, world_size=world, store=FileStore(str(store), world))
                train(folder, Ranks(rank, world))
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    return children


def stacks_of(folder: Path, rank: int) -> Path:
    """Where a rank writes the stacks of its threads."""
    return folder.with_name(f"{folder.name}-stacks-{rank}")


def reaped(codes: dict[int, int | None], until: float) -> bool:
    """Waits for the children, whose exit codes are filled in; whether all have ended by that time."""
    while None in codes.values():
        if time.monotonic() > until:
            return False
        for child in [child for child, code in codes.items() if code is None]:
            done, status = os.waitpid(child, os.WNOHANG)
            codes[child] = os.waitstatus_to_exitcode(status) if done else None
        time.sleep(0.0005)
    return True


def finished(codes: dict[int, int | None], until: float) -> list[int | None]:
    """Exit codes of the children, which are killed at that time."""
    if not reaped(codes, until):
        signal_left(codes, signal.SIGKILL)
        reaped(codes, float("inf"))
    return list(codes.values())


def ended_or_explained(children: list[int], folder: Path) -> tuple[list[int | None], str]:
    """Exit codes of the children; where they took longer than PATIENCE_S, CPU seconds and stacks of those left then."""
    codes: dict[int, int | None] = dict.fromkeys(children)
    if reaped(codes, time.monotonic() + PATIENCE_S):
        return list(codes.values()), ""
    found = []
    for _ in range(2):
        found.append(f"CPU seconds {[cpu_s(child) for child in children]}")
        signal_left(codes, signal.SIGUSR1)
        reaped(codes, time.monotonic() + APART_S)
    found += [f"rank {rank}:\n{stacks_of(folder, rank).read_text()}" for rank in range(len(children))]
    return finished(codes, time.monotonic() + MORE * PATIENCE_S), "\n".join(found)


def signal_left(codes: dict[int, int | None], number: int) -> None:
    """Sends a signal to those that have not ended."""
    for child, code in codes.items():
        if code is None:
            os.kill(child, number)


def cpu_s(child: int) -> float:
    """That a child has used; 0 of one that has ended."""
    try:
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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


def torment(scratch: Path, kills: int, seed: int) -> tuple[Counter[str], list[str], list[str]]:
    """Kills by what they left, what went wrong, and the stacks of jobs that took long."""
    whole, rng = train(scratch / "whole", ALONE).pieces(), random.Random(seed)
    found, problems, slow, job = Counter[str](), list[str](), list[str](), 0
    while found.total() < kills and len(problems) < 5:
        folder, job = scratch / f"job-{job}", job + 1
        for _ in range(KILLS_A_JOB):
            world = rng.choice(WORLDS)
            children = start(folder, world, scratch / "store")
            codes = finished(dict.fromkeys(children), moment(folder, rng, aim=found.total() % 2 == 0))
            if not all(code == -signal.SIGKILL for code in codes) or found.total() == kills:
                break
            found[left_of(folder)] += 1
        codes, stacks = ended_or_explained(start(folder, 2, scratch / "store"), folder)
        slow += [f"job {job}, exit codes {codes}:\n{stacks}"] if stacks else []
        other = optimizer_of(ALONE)
        if any(codes) or resume_checkpoint(folder, other) != RunState(step=STEPS):
            problems.append(f"job {job}: exit codes {codes}, {[path.name for path in folder.iterdir()]}")
        elif not all(a.tensor.equal(b.tensor) for a, b in zip(other.pieces(), whole, strict=True)):
            problems.append(f"job {job}: other numbers")
        elif len(list(folder.iterdir())) != len(checkpoints(folder)):
            problems.append(f"job {job}: more than checkpoints: {[path.name for path in folder.iterdir()]}")
    return found, problems, slow


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
        found, problems, slow = torment(Path(scratch), args.kills, args.seed)
    print(*slow, sep="\n", file=sys.stderr)
    print(json.dumps({"kills": found.total(), "left": found, "problems": problems, "took_long": len(slow),
                      "seconds": round(time.monotonic() - started)}))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
