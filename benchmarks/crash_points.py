"""Every job ended before each system call that creates, names, renames or removes a file, and after simulated power
cuts: the same command again must leave the files of an undisturbed job, byte for byte, and nothing beside them.

crash_shim.c is compiled with the machine's `cc` and preloaded; where there is no compiler nothing is done, and that is
said. One process imports the libraries and forks for each trial, so a trial costs the job and no start of Python. Jobs
are those of the sandbox: preprocess (2 clips, 2 slices), train (3 steps, a checkpoint and validation each), filter,
split (both ways), merge. `--signals` sends Ctrl-C and SIGTERM, once and twice, instead of ending the process.

Of power cuts see power_cut.py; `--cuts` are drawn from all different disks of a job. Left out: calls that fail
(tests/helpers_faults.py has small disks), several processes at once (faults.py kills whole groups).

    python benchmarks/crash_points.py                                # every point, 40 cuts a job: an hour on two cores
    python benchmarks/crash_points.py --jobs merge,filter --every 5 --cuts 10
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.faults import SPEED
from benchmarks.power_cut import Replay, write_disk
from taro.core import draws

SHIM = Path(__file__).with_name("crash_shim.c")
COUNT, END = 0, 1
SIGNALS = {"INT": (2, 130), "INT INT": (3, 130), "TERM": (4, 143), "TERM TERM": (5, 143), "INT TERM": (6, 130)}
"""what is sent -> (action of the shim, exit code that follows)"""
PATIENCE_S = 180.0
HEAVY = ("torch", "transformers", "safetensors.torch", "pyarrow.parquet", "av", "open_clip", "taro.cli.app",
         "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl", "taro.cli.preprocess", "taro.cli.train",
         "taro.cli.shards", "taro.preprocess.run", "taro.preprocess.captioners.transformers", "taro.train.loop",
         "taro.shards.ops.merge", "taro.shards.ops.split", "taro.shards.verify")


@dataclass(frozen=True)
class Job:
    """A command and what is compared. `words`: the command, for the folder that it works in as that is now."""

    name: str
    words: Callable[[Path], list[str]]


@dataclass
class Found:
    """Trials of one job: how many of what kind, and what went wrong."""

    job: str
    points: int = 0
    tried: Counter[str] = field(default_factory=Counter)
    recovered: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


# Jobs


def settings(**values: Any) -> list[str]:
    """`--set` for each; `__` in a name is a dot."""
    return [f"--set={key.replace('__', '.')}={value}" for key, value in values.items()]


def preprocess_words(world: Path, out: Path) -> list[str]:
    """Slices of one clip each."""
    return ["preprocess", "sandbox", *settings(videos=world / "videos", annotations=world / "annotations.jsonl",
                                               out=out, slice_clips=1, workers=1, paths__count=2)]


def train_words(shards: Path, out: Path) -> list[str]:
    """3 steps, each with a checkpoint and a validation; --resume where a run was begun."""
    more = ["--resume"] if (out / "config.yaml").is_file() else []
    return ["train", "sandbox", *more, *settings(
        shards=shards, out=out, length__amount=3, rollout__prompts=2, rollout__group=2, curriculum__amount=1,
        checkpoint__every=1, checkpoint__keep=1, rollout__max_new_tokens=24, rollout__min_free_tokens=8,
        validation__split="val", validation__every=1, validation__limit=2, validation__batch_prompts=2,
        validation__max_new_tokens=8)]


def jobs(base: Path) -> list[Job]:
    """All of them, on the sets `base/a` and `base/b`."""
    a, b = str(base / "a"), str(base / "b")
    return [
        Job("preprocess", lambda folder: preprocess_words(base / "world-a", folder / "out")),
        Job("train", lambda folder: train_words(base / "a", folder / "out")),
        Job("filter", lambda folder: ["shards", "filter", a, str(folder / "out"), "--split", "train"]),
        Job("split", lambda folder: ["shards", "split", a, str(folder / "out"), "--by", "split"]),
        Job("fractions", lambda folder: ["shards", "split", a, str(folder / "out"), "--by", "fraction", "--fractions",
                                         "x=0.5,y=0.5"]),
        Job("merge", lambda folder: ["shards", "merge", a, b, str(folder / "out")]),
    ]


def prepare(base: Path) -> None:
    """Two worlds of two videos, the last one's queries the split val, and the set of each."""
    for name, seed in (("a", "7"), ("b", "8")):
        world = base / f"world-{name}"
        run_whole(["sandbox", "make", str(world), "--videos", "2", "--seed", seed, "--set", "max_duration_s=17"])
        rows = [json.loads(line) for line in (world / "annotations.jsonl").read_text().splitlines()]
        last = max(row["video"] for row in rows)
        (world / "annotations.jsonl").write_text("".join(
            json.dumps({**row, "split": "val" if row["video"] == last else "train"}) + "\n" for row in rows))
        run_whole(preprocess_words(world, base / name))


def state(folder: Path) -> dict[str, str]:
    """Digest of everything below a folder, but for what the clock decides and for lock files, which are empty and of
    which a job makes those that it needs."""
    found = {}
    for path in (path for path in sorted(folder.rglob("*")) if not path.name.endswith(".lock")):
        name, data = path.relative_to(folder).as_posix(), b"folder"
        if path.is_file():
            data = path.read_bytes()
            if path.parent.name == "ledger" and data:
                data = json.dumps({**json.loads(data), "seconds": 0}).encode()
            elif path.name == "metrics.jsonl":
                rows = [json.loads(line) for line in data.splitlines()]
                data = json.dumps([{key: row[key] for key in row if key not in SPEED} for row in rows]).encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


# Trials


class Shim:
    """The preloaded library, called in the process that is to be counted."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        self._library.crash_arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_char_p,
                                            ctypes.c_char_p]
        self._library.crash_disarm.restype = ctypes.c_long

    def arm(self, root: Path, action: int, point: int, log: Path | None, copies: Path | None) -> None:
        """From now on calls below `root` are counted, and `action` is done at the one numbered `point`."""
        self._library.crash_arm(str(root).encode(), action, point, str(log or "").encode(), str(copies or "").encode())

    def disarm(self) -> int:
        """Ends that; how many were counted."""
        return int(self._library.crash_disarm())


@dataclass(frozen=True)
class Ended:
    """A command that ended. `code`: -1 where it was too slow."""

    code: int
    said: str


def run(words: list[str], begin: Callable[[], None] | None = None) -> Ended:
    """`taro WORDS` in a fork, in a session of its own; what is left of that is killed. `begin` is called there
    first."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            os.setsid()
            for descriptor in (1, 2):
                os.dup2(said.fileno(), descriptor)
            os._exit(_command(words, begin))
        code, until = None, time.monotonic() + PATIENCE_S
        while code is None and time.monotonic() < until:
            done, status = os.waitpid(child, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if done else None
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if code is None:
            os.waitpid(child, 0)
        said.seek(0)
        return Ended(-1 if code is None else code, said.read().decode(errors="replace"))


def _command(words: list[str], begin: Callable[[], None] | None) -> int:
    """The command, in the fork; its exit code."""
    from taro.cli.app import main

    sys.argv = ["taro", *words]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
    try:
        if begin is not None:
            begin()
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001  what a user would see as a traceback
        import traceback

        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def run_whole(words: list[str]) -> None:
    """Runs a command to its end. Raises RuntimeError with what it said where it fails."""
    ended = run(words)
    if ended.code:
        raise RuntimeError(f"taro {' '.join(words)}: exit code {ended.code}: {ended.said[-2000:]}")


class Trials:
    """All trials of a job in the folder `folder`, which is made anew for each."""

    def __init__(self, job: Job, folder: Path, shim: Shim) -> None:
        self.job, self.folder, self.shim, self.found, self.shown = job, folder, shim, Found(job.name), 0
        self._log, self._copies = folder.with_name("log"), folder.with_name("copies")
        for old in (self._log, self._copies):
            shutil.rmtree(old, ignore_errors=True)
            old.unlink(missing_ok=True)
        self._copies.mkdir()
        write_disk(folder, {})
        ended = run(job.words(folder), lambda: shim.arm(folder, COUNT, 0, self._log, self._copies))
        if ended.code:
            raise RuntimeError(f"{job.name}: exit code {ended.code}: {ended.said[-2000:]}")
        self.expected = state(folder)
        self.calls = [line.split("\t")[1] for line in self._log.read_text().splitlines()]
        self.found.points = len(self.calls)

    def crashes(self, every: int, first: int) -> Iterator[str]:
        """The process ends before each `every`-th call, from the `first` on."""
        for point in range(first, len(self.calls) + 1, every):
            self._disturb(f"end before a {self.calls[point - 1]}", point, END, {9})
            yield self._recover(f"end before a {self.calls[point - 1]}", f"call {point}")

    def signals(self, every: int) -> Iterator[str]:
        """Signals at each `every`-th call, the next kind at the next."""
        for turn, point in enumerate(range(1, len(self.calls) + 1, every)):
            what = list(SIGNALS)[turn % len(SIGNALS)]
            action, code = SIGNALS[what]
            said = self._disturb(what, point, action, {code, 0} if point > len(self.calls) - 3 else {code})
            if "Traceback" in said:
                self.found.problems.append(f"{self.job.name}, {what} at call {point}: a traceback: {said[-600:]}")
            yield self._recover(what, f"call {point}")

    def cuts(self, number: int, seed: int) -> Iterator[str]:
        """`number` of the disks that a power cut may leave, drawn from all different ones."""
        rng = draws.rng("power cuts", seed, self.job.name)
        every = Replay(self.folder, self._log, self._copies).disks(rng) if number else ()
        disks = {tuple(sorted((name, id(content)) for name, content in disk.items())): (call, what, variant, disk)
                 for call, what, variant, disk in every}  # equal contents are one object, kept by these disks
        chosen = sorted(rng.permutation(len(disks))[:number].tolist())
        for call, what, variant, disk in [list(disks.values())[index] for index in chosen]:
            write_disk(self.folder, disk)
            yield self._recover(f"power cut, {variant}", f"after call {call} ({what})")

    def _disturb(self, what: str, point: int, action: int, codes: set[int]) -> str:
        write_disk(self.folder, {})
        ended = run(self.job.words(self.folder), lambda: self.shim.arm(self.folder, action, point, None, None))
        if ended.code not in codes:
            self.found.problems.append(f"{self.job.name}, {what} at call {point}: expected exit code "
                                       f"{sorted(codes)}, got {ended.code}: {ended.said[-600:]}")
        return ended.said

    def _recover(self, what: str, where: str) -> str:
        """Runs the command again and compares; what to show of it."""
        self.found.tried[what] += 1
        ended = run(self.job.words(self.folder))
        now = state(self.folder) if not ended.code else {}
        differ = [name for name in sorted({*now, *self.expected}) if now.get(name) != self.expected.get(name)]
        if ended.code:
            self.found.problems.append(f"{self.job.name}, {what}, {where}: exit code {ended.code}: "
                                       f"{ended.said[-600:]}")
        elif differ:
            self.found.problems.append(f"{self.job.name}, {what}, {where}: {len(differ)} differ: "
                                       f"{', '.join(differ[:6])}")
        else:
            self.found.recovered[what] += 1
        return f"{self.job.name}: {what}, {where}"


# The program


def preloaded(scratch: Path) -> str | None:
    """The path of the library in this process; None where it is not there yet: then it is compiled and the program
    begins again with it. Ends where there is no compiler."""
    here = os.environ.get("TARO_CRASH_SHIM")
    if here:
        return here
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or platform.system() != "Linux":
        print("skipped: crash points need Linux and a C compiler (cc), which preloads crash_shim.c")
        sys.exit(0)
    library = scratch / "crash_shim.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(SHIM), "-ldl", "-lpthread"],
                   check=True)
    env = {**os.environ, "LD_PRELOAD": str(library), "TARO_CRASH_SHIM": str(library), "OMP_NUM_THREADS": "1",
           "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    sys.exit(subprocess.run([sys.executable, *sys.argv], env=env, check=False).returncode)


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", default="preprocess,train,filter,split,fractions,merge")
    parser.add_argument("--every", type=int, default=1, help="try every n-th point; 0: none")
    parser.add_argument("--first", type=int, default=1, help="and begin with this one")
    parser.add_argument("--signals", type=int, default=0, help="signals at every n-th point; 0: none")
    parser.add_argument("--cuts", type=int, default=40, help="power cuts of each job")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    began, found = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="crash-points-") as scratch:
        shim = Shim(str(preloaded(Path(scratch))))
        for module in HEAVY:
            importlib.import_module(module)
        base = Path(scratch).resolve()
        prepare(base)
        for job in [job for job in jobs(base) if job.name in args.jobs.split(",")]:
            trials = Trials(job, base / "trial", shim)
            found.append(trials.found)
            steps = [*([trials.crashes(args.every, args.first)] if args.every else []),
                     *([trials.signals(args.signals)] if args.signals else []), trials.cuts(args.cuts, args.seed)]
            for said in (one for step in steps for one in step):
                wrong = sum(len(one.problems) for one in found)
                print(f"{time.monotonic() - began:.0f} s, {wrong} wrong: {said}", file=sys.stderr, flush=True)
                for problem in trials.found.problems[trials.shown:]:
                    print(f"WRONG: {problem}", file=sys.stderr, flush=True)
                trials.shown = len(trials.found.problems)
    report(found, time.monotonic() - began, as_json=args.json)
    sys.exit(any(one.problems for one in found))


def report(found: list[Found], seconds: float, *, as_json: bool) -> None:
    """Prints the table, or one JSON object."""
    if as_json:
        print(json.dumps({"seconds": round(seconds), "jobs": [
            {"job": one.job, "points": one.points, "tried": one.tried, "recovered": one.recovered,
             "problems": one.problems} for one in found]}))
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {seconds:.0f} s\n")
    print("| job | calls | what happened | trials | recovered |\n|---|---|---|---|---|")
    for one in found:
        for what in sorted(one.tried):
            print(f"| {one.job} | {one.points} | {what} | {one.tried[what]} | {one.recovered[what]} |")
    tried, recovered = (sum(sum(side.values()) for side in sides) for sides in
                        ([one.tried for one in found], [one.recovered for one in found]))
    print(f"| all | {sum(one.points for one in found)} | all | {tried} | {recovered} |")
    for problem in (problem for one in found for problem in one.problems):
        print(f"WRONG: {problem}")


if __name__ == "__main__":
    main()
