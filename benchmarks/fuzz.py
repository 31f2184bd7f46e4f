"""Untrusted input, fuzzed by hand: every parser of taro is fed changed files and must answer or raise a TaroError.

A failure is: another exception, a hang (past the deadline), a crash of the process, or memory past the bound. Each
input is a function of (seed, target, number), so a failure is replayed by its number; its files are also written to
`--out`. Targets run in forked children: what kills one is counted, and the next number goes on in a new one. Address
space is limited while an input runs, and its peak of resident memory is measured.

    python benchmarks/fuzz.py --inputs 2000 --seed 0 --what all --out fuzz-failures
    python benchmarks/fuzz.py --what tensors --seed 0 --replay 1234

Left out: coverage guidance; the changes in fuzz_mutations.py know the formats instead.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import mmap
import os
import random
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.fuzz_targets import Target  # noqa: E402
from taro.core import draws  # noqa: E402  found once the root is on the path
from taro.core.errors import TaroError  # noqa: E402

DEADLINE_S = 20.0
PEAK_BYTES = 512 * 2**20
ROOM_BYTES = 3 * 2**30

@dataclass
class Tally:
    """Outcomes of a target's inputs."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    peak_bytes: int = 0
    slowest_s: float = 0.0
    seconds: float = 0.0


class Hang(BaseException):
    """An input that took longer than the deadline."""


def generator(seed: int, target: str, number: int) -> random.Random:
    """Draws of one input."""
    return random.Random(int(draws.rng("fuzz", seed, target, number).integers(2**62)))


def memory(key: str) -> int:
    """VmHWM or VmRSS of this process in bytes."""
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))


def forget_peak() -> None:
    """Makes VmHWM start again from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def one(target: Target, seed: int, number: int, folder: Path) -> dict[str, Any]:
    """Runs one input; what happened, as {"kind": "accepted" | "refused" | "failed", ...}."""
    files = target.make(generator(seed, target.name, number))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    before, began = memory("VmRSS"), time.monotonic()
    forget_peak()
    signal.setitimer(signal.ITIMER_REAL, DEADLINE_S)
    found: dict[str, Any] = {"kind": "accepted"}
    try:
        target.run(files, folder)
    except TaroError as error:
        text = str(error)
        found = {"kind": "refused"}
        if not 0 < len(text) < 20_000:
            found = failure(error, f"a message of {len(text)} characters")
    except BaseException as error:  # whatever else comes is what we look for
        if isinstance(error, KeyboardInterrupt):
            raise
        found = failure(error)
    signal.setitimer(signal.ITIMER_REAL, 0)
    found |= {"seconds": time.monotonic() - began, "peak": max(memory("VmHWM") - before, 0)}
    if found["kind"] != "failed" and found["peak"] > PEAK_BYTES:
        found |= {"kind": "failed", "signature": "memory", "message": f"{found['peak']:,} bytes"}
    return found


def failure(error: BaseException, message: str | None = None) -> dict[str, Any]:
    """An exception as a failure, named by its type and the deepest line of taro that it passed."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if str(ROOT) in frame.filename
              and "/.venv/" not in frame.filename and "fuzz" not in frame.filename]  # fmt: skip
    at = f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno}" if frames else "?"
    return {"kind": "failed", "signature": f"{type(error).__name__} at {at}", "message": message or str(error)[:300],
            "trace": "".join(traceback.format_exception(error))[-6000:]}  # fmt: skip


def child(target: Target, seed: int, start: int, stop: int, board: mmap.mmap, out: int, folder: Path) -> None:
    """Runs inputs `start`..`stop`; the number at work stands on the board, results go down the pipe `out`."""
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + ROOM_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, _late)
    faulthandler.register(signal.SIGUSR1, file=(folder.parent / "trace.txt").open("w"))
    warnings.simplefilter("ignore")
    with os.fdopen(out, "w") as pipe:
        for number in range(start, stop):
            board[:8] = struct.pack("q", number)
            pipe.write(json.dumps({"number": number, **one(target, seed, number, folder)}) + "\n")
            pipe.flush()


def _late(*_: Any) -> None:
    raise Hang(f"more than {DEADLINE_S} s")


def run_target(target: Target, seed: int, inputs: int, out: Path) -> Tally:
    """All inputs of a target, in as many children as it takes."""
    tally, began, start = Tally(), time.monotonic(), 0
    board = mmap.mmap(-1, 8)
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="taro-fuzz-", dir=base) as scratch:
        while start < inputs:
            board[:8] = struct.pack("q", start)
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(reading)
                try:
                    child(target, seed, start, inputs, board, writing, Path(scratch) / "input")
                finally:
                    os._exit(0)
            os.close(writing)
            with os.fdopen(reading) as pipe:
                for line in _lines(pipe, pid):
                    count(tally, target, seed, json.loads(line), out)
            _, status = os.waitpid(pid, 0)
            start = struct.unpack("q", board[:8])[0] + 1
            if tally.inputs < start:
                trace = (Path(scratch) / "trace.txt").read_text()
                died = {"number": start - 1, "kind": "failed", "signature": "died", "seconds": 0.0,
                        "message": f"status {status}", "trace": trace, "peak": 0}  # fmt: skip
                count(tally, target, seed, died, out)
    tally.seconds = time.monotonic() - began
    return tally


def _lines(pipe: Any, pid: int) -> Iterator[str]:
    """Lines of a child as they come; one that is silent for too long says where it is and is killed."""
    while True:
        if not select.select([pipe], [], [], 2 * DEADLINE_S)[0]:
            os.kill(pid, signal.SIGUSR1)
            time.sleep(1.0)
            os.kill(pid, signal.SIGKILL)
        line = pipe.readline()
        if not line:
            return
        yield line


def count(tally: Tally, target: Target, seed: int, found: dict[str, Any], out: Path) -> None:
    """Adds one result; the first input of each kind of failure is written out."""
    tally.inputs += 1
    tally.accepted += found["kind"] == "accepted"
    tally.refused += found["kind"] == "refused"
    tally.peak_bytes = max(tally.peak_bytes, found["peak"])
    tally.slowest_s = max(tally.slowest_s, found["seconds"])
    if found["kind"] != "failed":
        return
    if all(other["signature"] != found["signature"] for other in tally.failures):
        folder = out / f"{target.name}-{seed}-{found['number']}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "failure.txt").write_text(f"{found['signature']}\n{found['message']}\n{found.get('trace', '')}",
                                            errors="replace")  # fmt: skip
        for name, data in target.make(generator(seed, target.name, found["number"])).items():
            (folder / name.replace("/", "__")).write_bytes(data)
    tally.failures.append(found)


def table(tallies: dict[str, Tally]) -> str:
    """A row a target, a line a kind of failure."""
    lines = [f"{'target':<18}{'inputs':>9}{'accepted':>10}{'refused':>9}{'failed':>8}{'peak MB':>9}{'slowest s':>11}"
             f"{'seconds':>9}"]  # fmt: skip
    for name, one_of in {**tallies, "all": total(tallies)}.items():
        lines.append(f"{name:<18}{one_of.inputs:>9,}{one_of.accepted:>10,}{one_of.refused:>9,}"
                     f"{len(one_of.failures):>8,}{one_of.peak_bytes / 1e6:>9.0f}{one_of.slowest_s:>11.2f}"
                     f"{one_of.seconds:>9.0f}")  # fmt: skip
    for name, one_of in tallies.items():
        for signature, times in Counter(found["signature"] for found in one_of.failures).most_common():
            first = next(found for found in one_of.failures if found["signature"] == signature)
            lines.append(f"{name}: {times} x {signature}: first at {first['number']}: {first['message'][:200]!r}")
    return "\n".join(lines)


def total(tallies: dict[str, Tally]) -> Tally:
    """The sum over all targets."""
    every = list(tallies.values())
    return Tally(sum(t.inputs for t in every), sum(t.accepted for t in every), sum(t.refused for t in every),
                 [found for t in every for found in t.failures], max(t.peak_bytes for t in every),
                 max(t.slowest_s for t in every), sum(t.seconds for t in every))  # fmt: skip


def main() -> None:
    """The command line."""
    from benchmarks.fuzz_answers import answer_targets
    from benchmarks.fuzz_models import model_targets
    from benchmarks.fuzz_others import other_targets
    from benchmarks.fuzz_runs import run_targets
    from benchmarks.fuzz_shards import shard_targets
    from benchmarks.fuzz_tables import table_targets

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1000, help="inputs of a target of share 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--what", default="all", help="targets, comma-separated, or all")
    parser.add_argument("--replay", type=int, help="run this one input of --what here, with its traceback")
    parser.add_argument("--out", type=Path, default=Path("fuzz-failures"), help="failures are written here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="taro-fuzz-seeds-") as seeds:
        makers = (shard_targets, other_targets, table_targets, answer_targets, model_targets, run_targets)
        targets = (makes(Path(seeds)) for makes in makers)
        known = {target.name: target for several in targets for target in several}
        names = list(known) if args.what == "all" else args.what.split(",")
        if unknown := sorted({*names} - {*known}):
            parser.error(f"--what {', '.join(unknown)}: expected all, or some of {', '.join(known)}")
        if args.replay is not None:
            with tempfile.TemporaryDirectory() as folder:
                files = known[names[0]].make(generator(args.seed, names[0], args.replay))
                print(known[names[0]].run(files, Path(folder)))
            return
        tallies = {}
        for name in names:
            inputs = max(1, round(args.inputs * known[name].share))
            tallies[name] = run_target(known[name], args.seed, inputs, args.out)
            print(table({name: tallies[name]}).splitlines()[1], flush=True)
        print(table(tallies))
        sys.exit(bool(total(tallies).failures))


if __name__ == "__main__":
    main()
