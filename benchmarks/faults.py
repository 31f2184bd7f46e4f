"""kill -9 at random moments of `taro preprocess` and `taro train`, again and again, and what comes out in the end.

Each job is the real command line in a process group of its own, decoding processes included; the whole group is killed
at a seeded moment, the same command is run again (`train` with --resume), and so on; after some kills the job is left
alone to end. Its files must then be those of a job that nobody disturbed: a shard set all of them, byte by byte, and
a run its export, its newest checkpoint and its rollouts byte by byte and its metrics but for wall-clock fields.

Moments are drawn in turn: a uniform time from the first sign of work on (what comes before, seconds of imports and of
loading models, touches no file), or a delay after the folder shows the beginning of a phase, since a rename
takes a millisecond of a job of seconds. Which phase a kill hit is read from the folder after it, from what the
programs write anyway: temporary names, the caption journal, rollouts without their step's line. Left out: power cuts
(kill -9 loses nothing that was written; that files are fsynced before they are renamed is a matter of reading).

    python benchmarks/faults.py --kills 50
    python benchmarks/faults.py --kills 5 --stage train --json
    python benchmarks/faults.py --kills 100 --stage train --gpus 2        # ranks on the CPU: all of them are killed
"""

from __future__ import annotations

import argparse
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from taro.core import draws

TARO = [sys.executable, "-m", "taro"]
SPEED = {"tokens_per_s", "tokens_per_s_by_phase", "memory_gib", "memory_gib_ranks", "seconds", "phases"}
VIDEOS, STEPS, KILLS_A_JOB = 16, 10, 7
POLL_S, PATIENCE_S = 0.0005, 300.0
RANKS = 1
"""of training; `--gpus` sets it"""


@dataclass(frozen=True)
class Kill:
    """One kill: the moment asked for, the phase that it hit, and the job (folder) that it was done to."""

    stage: str
    aimed: str
    hit: str
    job: int


@dataclass(frozen=True)
class Stage:
    """How a stage is run, watched and judged. `aims`: phases to aim at, with the longest delay after they begin."""

    name: str
    aims: dict[str, float]
    command: Callable[[Path], list[str]]
    phase: Callable[[Path], str]
    progress: Callable[[Path], int]
    """parts finished: slices, or steps"""
    mark: Callable[[Path], Any]
    """changes as soon as a job that was started again touches the folder; until then it imports and loads"""
    state: Callable[[Path], dict[str, Any]]
    """all that must be equal"""


# Stage 1


def preprocess_command(out: Path) -> list[str]:
    """16 slices of one clip each: captions of the tiny captioner, CLIP, features, paths."""
    world = out.parent / "world"
    settings = {"videos": world / "videos", "annotations": world / "annotations.jsonl", "out": out, "slice_clips": 1,
                "workers": 1, "paths.count": 4}
    return [*TARO, "preprocess", "sandbox", *(f"--set={key}={value}" for key, value in settings.items())]


def preprocess_phase(out: Path) -> str:
    """Where a job is, by its folder alone."""
    job = out / ".preprocess"
    if not (job / "plan.json").is_file():
        return "planning"
    tars, sidecars, temporary = slices(out)
    if tars - sidecars:
        return "renaming"  # shards have their names, some sidecars are still to come
    if temporary:
        (index,) = temporary
        asked = job / "journal" / f"captions-{index}.jsonl"
        return "writing" if asked.is_file() and asked.stat().st_size else "captioning"
    return "manifest" if sidecars and len(finished(out)) == VIDEOS else "between slices"


def slices(out: Path) -> tuple[set[str], set[str], set[str]]:
    """("KIND-INDEX" of tars, of sidecars, indices of temporary shards)."""
    files = [name for folder in (out / "paths", *(out / "features").glob("*"), *(out / "clip").glob("*"))
             if folder.is_dir() for name in os.listdir(folder)]  # noqa: PTH208  a poll, many times a second
    tars = {name[:-4] for name in files if name.endswith(".tar") and name[0] != "."}
    sidecars = {name[:-5] for name in files if name.endswith(".json") and name[0] != "."}
    return tars, sidecars, {name.split(".tar")[0][-6:] for name in files if name[0] == "." and ".tar." in name}


def preprocess_mark(out: Path) -> Any:
    """Names of temporary shards are new in every job."""
    return slices(out)[1], {path.name for path in out.glob("*/**/.*.tmp")}


def finished(out: Path) -> set[str]:
    """Indices of slices whose three shards all have a sidecar."""
    counted = Counter(name[-6:] for name in slices(out)[1])
    return {index for index, count in counted.items() if count == 3}


def preprocess_state(out: Path) -> dict[str, Any]:
    """Every file of the set, and that no question is in the journal twice."""
    files: dict[str, Any] = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*")
                             if path.is_file() and ".preprocess" not in path.parts}
    asked = [json.loads(line)["question"] for path in (out / ".preprocess/journal").iterdir()
             for line in path.read_text().splitlines()]
    return {**files, "captions paid for": len(asked), "captions": len(set(asked))}


# Stage 2


def train_command(out: Path) -> list[str]:
    """10 steps of 2 prompts x 4 rollouts, a checkpoint every 2, validation every 5."""
    settings = {"policy": "sandbox:policy", "shards": out.parent / "shards", "out": out, "length.amount": STEPS,
                "rollout.prompts": 2, "rollout.group": 4, "curriculum.amount": 3, "checkpoint.every": 2,
                "loss.kl": 0.01, "validation.split": "val", "validation.every": 5, "validation.limit": 4}
    more = ["--resume"] if (out / "config.yaml").is_file() else []
    if RANKS > 1:
        more += ["--gpus", str(RANKS), "--set", "device=cpu"]
    return [*TARO, "train", "sandbox", *more, *(f"--set={key}={value}" for key, value in settings.items())]


def train_phase(out: Path) -> str:
    """Where a run is, by its folder alone."""
    if not (out / "config.yaml").is_file():
        return "opening"
    if (out / ".tmp-export").exists() or (out / ".tmp-old-export").exists():
        return "export"
    if any(name[0] == "." for name in os.listdir(out / "checkpoints")):  # noqa: PTH208
        return "checkpoint"
    dumped, lines = len(list((out / "rollouts").glob("step-*.jsonl"))), steps_done(out)
    if dumped > lines:
        return "update"
    return "rollout" if lines < STEPS else "ending"


def steps_done(out: Path) -> int:
    """Steps that have their line."""
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b'"reward"') if path.is_file() else 0


def train_mark(out: Path) -> Any:
    """A run that goes on writes its metrics anew, then adds to them."""
    path = out / "metrics.jsonl"
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.is_file() else None


def train_state(out: Path) -> dict[str, Any]:
    """What must be equal of a run."""
    newest = f"checkpoints/step-{STEPS:06d}"
    files: dict[str, Any] = {path.relative_to(out).as_posix(): path.read_bytes()
                             for folder in ("export", "rollouts", newest) for path in (out / folder).rglob("*")}
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {**files, "metrics": [{key: row[key] for key in row if key not in SPEED} for row in rows],
            "config": (out / "config.yaml").read_text().replace(str(out), "OUT")}


STAGES = {
    "preprocess": Stage("preprocess", {"captioning": 0.15, "writing": 0.04, "renaming": 0.002, "uniform": 5.0},
                        preprocess_command, preprocess_phase, lambda out: len(finished(out)), preprocess_mark,
                        preprocess_state),
    "train": Stage("train", {"rollout": 0.5, "update": 0.15, "checkpoint": 0.03, "uniform": 10.0},
                   train_command, train_phase, steps_done, train_mark, train_state),
}


# The killing


def run_whole(stage: Stage, out: Path) -> None:
    """Runs the command to its end. Raises RuntimeError with what it said where it fails."""
    done = subprocess.run(stage.command(out), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-1000:]}")


def run_and_kill(stage: Stage, out: Path, aim: str, rng: Any) -> str | None:
    """Starts the command and kills its process group at the moment aimed at; the phase that was hit, None where the
    command ended before. Raises RuntimeError where it failed by itself."""
    delay_s = float(rng.uniform(0, stage.aims[aim]))
    more, started, mark = int(rng.integers(0, 3)), stage.progress(out), stage.mark(out)
    running = subprocess.Popen(stage.command(out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    began = time.monotonic()
    try:
        while running.poll() is None and time.monotonic() - began < PATIENCE_S:
            if stage.mark(out) != mark and (aim == "uniform" or (
                    stage.phase(out) == aim and stage.progress(out) - started >= more)):
                time.sleep(delay_s)
                break
            time.sleep(POLL_S)
    finally:
        kill_group(running)
    _, said = running.communicate()
    if running.returncode == -signal.SIGKILL:
        return "starting" if stage.mark(out) == mark else stage.phase(out)
    if running.returncode:
        raise RuntimeError(f"exit code {running.returncode}: {said[-1000:]}")
    return None


def kill_group(running: subprocess.Popen[str]) -> None:
    """kill -9 to every process of the job."""
    if running.poll() is None:
        os.killpg(running.pid, signal.SIGKILL)
    running.wait()


def torment(stage: Stage, folder: Path, expected: dict[str, Any], wanted: int, seed: int) -> Iterator[Kill | str]:
    """Jobs, each killed several times and then left to end; yields kills, and what went wrong as text."""
    aims, count, job = list(stage.aims), 0, 0
    while count < wanted:
        out, job = folder / f"{stage.name}-{job}", job + 1
        try:
            for _ in range(KILLS_A_JOB):
                rng = draws.rng("faults", seed, stage.name, count)
                hit = run_and_kill(stage, out, aims[count % len(aims)], rng)
                if hit is None:
                    break
                yield Kill(stage.name, aims[count % len(aims)], hit, job)
                count += 1
                if count == wanted:
                    break
            run_whole(stage, out)
            found = stage.state(out)
            wrong = [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]
            if wrong:
                yield f"{stage.name} job {job}: {len(wrong)} differ: {', '.join(wrong[:5])}"
        except RuntimeError as error:
            yield f"{stage.name} job {job}: {error}"
            count += 1  # a job that cannot go on must not be tried for ever
        shutil.rmtree(out, ignore_errors=True)


def prepare(folder: Path) -> None:
    """A sandbox world whose last four videos are the split val."""
    subprocess.run([*TARO, "sandbox", "make", str(folder / "world"), "--videos", str(VIDEOS), "--set",
                    "max_duration_s=17"], check=True, stdout=subprocess.DEVNULL)
    path = folder / "world" / "annotations.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    held_out = sorted({row["video"] for row in rows})[-4:]
    path.write_text("".join(json.dumps({**row, "split": "val" if row["video"] in held_out else "train"}) + "\n"
                            for row in rows))


def main() -> None:
    """Command line; see the module."""
    global RANKS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of each stage")
    parser.add_argument("--stage", choices=["both", *STAGES], default="both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gpus", type=int, default=1, help="ranks of training, on the CPU")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    RANKS = args.gpus
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    began, kills, problems = time.monotonic(), [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder)
        run_whole(STAGES["preprocess"], folder / "shards")
        for stage in [STAGES[name] for name in STAGES if args.stage in ("both", name)]:
            if stage.name == "train":
                run_whole(stage, folder / "undisturbed")
            expected = stage.state(folder / ("shards" if stage.name == "preprocess" else "undisturbed"))
            for event in torment(stage, folder, expected, args.kills, args.seed):
                (kills if isinstance(event, Kill) else problems).append(event)  # type: ignore[arg-type]
                print(f"{len(kills)} kills, {time.monotonic() - began:.0f} s: {event}", file=sys.stderr, flush=True)
    report(kills, problems, time.monotonic() - began, as_json=args.json)
    sys.exit(bool(problems))


def report(kills: list[Kill], problems: list[str], seconds: float, *, as_json: bool) -> None:
    """Prints the table, or one JSON object."""
    bad = {(problem.split()[0], int(problem.split()[2].rstrip(":"))) for problem in problems}
    recovered = Counter((kill.stage, kill.hit) for kill in kills if (kill.stage, kill.job) not in bad)
    hit = Counter((kill.stage, kill.hit) for kill in kills)
    if as_json:
        print(json.dumps({"hit": {" ".join(key): count for key, count in sorted(hit.items())}, "kills": len(kills),
                          "recovered": sum(recovered.values()), "problems": problems, "seconds": round(seconds)}))
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {seconds:.0f} s\n")
    print("| stage | phase that the kill hit | kills | recovered |\n|---|---|---|---|")
    for stage, phase in sorted(hit):
        print(f"| {stage} | {phase} | {hit[stage, phase]} | {recovered[stage, phase]} |")
    print(f"| both | all | {len(kills)} | {sum(recovered.values())} |")
    for problem in problems:
        print(f"WRONG: {problem}")


if __name__ == "__main__":
    main()
