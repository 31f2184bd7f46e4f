"""`taro shards push` and `pull`, killed (kill -9) at random moments, over folders, S3 and HTTP, and what is left.

The ways: push to a folder, push to S3 (moto's server), pull from a folder, from HTTP, from S3; servers on loopback. A
transfer runs in a process of its own and is killed at a drawn moment between its first breath and what an undisturbed
one takes. Then must hold: where manifest.json lies, every file that it names lies there with its bytes; every file that
lies there under the name of a set's file is whole (an emptied sidecar aside); and the next run ends with the set, byte
for byte, and nothing beside it. Left out: cut connections and stores that misbehave (tests/shards/remote).

    python benchmarks/kill_transfers.py --kills 50
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from taro.shards.format import MANIFEST, Manifest, clip_key
from taro.shards.manifest import build_manifest, read_manifest, write_manifest, write_skipped
from taro.shards.remote.objects import ObjectBucket
from taro.shards.store import safe_name
from taro.shards.store_local import LocalStore
from taro.shards.transfer.plan import manifest_files
from taro.shards.verify import verify
from taro.shards.writer import SliceWriter
from tests.shards.helpers_http import serving
from tests.shards.helpers_sets import record
from tests.shards.remote.helpers_remote import moto_s3

ROOT = Path(__file__).resolve().parent.parent
WAYS = ("push folder", "push s3", "pull folder", "pull http", "pull s3")
TRANSFERS = """
import os, sys, traceback
from taro.shards.transfer.pull import pull
from taro.shards.transfer.push import Choices, push
for line in sys.stdin:
    way, source, place = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if way.startswith("push"):
                push(source, place, Choices(i_may_share=True, jobs=4))
            else:
                pull(source, place, jobs=4)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""a process without threads that has imported everything, and forks a process for each transfer"""


class Transfers:
    """Starts transfers, each in a process of its own, and kills them."""

    def __init__(self) -> None:
        self._forks = subprocess.Popen([sys.executable, "-c", TRANSFERS], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})

    def run(self, way: str, source: str, place: str, *, kill_after_s: float | None = None) -> tuple[int, float]:
        """(exit code, seconds) of one transfer."""
        assert self._forks.stdin is not None and self._forks.stdout is not None
        self._forks.stdin.write(f"{way}\t{source}\t{place}\n")
        self._forks.stdin.flush()
        child, began_s = int(self._forks.stdout.readline()), time.monotonic()
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            with contextlib.suppress(ProcessLookupError):  # it was quicker
                os.kill(child, signal.SIGKILL)
        return int(self._forks.stdout.readline()), time.monotonic() - began_s

    def finish(self, way: str, source: str, place: str) -> float:
        """Seconds that a transfer takes that nobody kills."""
        code, took_s = self.run(way, source, place)
        assert code == 0, f"{way}: failed"
        return took_s

    def end(self) -> None:
        """Ends the process that forks."""
        with self._forks:  # closes its pipes and waits
            self._forks.terminate()


def make_set(root: Path, *, slices: int, sheet_bytes: int) -> None:
    """A set of one clip a slice, its bytes those of its contact sheets."""
    draw = random.Random(0)
    for index in range(slices):
        with SliceWriter(root, index, kinds=["paths"]) as writer:
            clip = record(index + 1)
            assert clip.key == clip_key(f"v{index + 1}.mp4", None)
            writer.add_clip(clip, b"\xff\xd8\xff" + draw.randbytes(sheet_bytes), {}, {})
            writer.commit()
    write_skipped(root, [])
    write_manifest(root, build_manifest(root, inputs=2 * slices, skipped=0, captions=3 * slices, name="killed"))


def held(place: str) -> dict[str, bytes]:
    """Every file at a place."""
    if "://" in place:
        bucket = ObjectBucket(place)
        return {one.name: b"".join(bucket.chunks(one.name, 0, one.size)) for one in bucket.list()}
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in Path(place).rglob("*") if path.is_file()}


def check(place: str, whole: dict[str, bytes], manifest: Manifest) -> str:
    """What a kill left; AssertionError where it is a half set under a final name, or a half file."""
    files = held(place) if "://" in place or Path(place).is_dir() else {}
    for name, data in files.items():
        assert not safe_name(name) or data == whole[name] or (name.endswith(".json") and data == b"{}"), f"half: {name}"
    if MANIFEST in files:
        assert all(files.get(one.name) == whole[one.name] for one in manifest_files(manifest)), "a half set"
        return "whole"
    return "begun" if any(safe_name(name) for name in files) else "nothing"


@contextlib.contextmanager
def places(root: Path) -> Iterator[tuple[dict[str, str], Transfers]]:
    """Where each way of pulling comes from, and "push s3": the bucket to push to; and what transfers."""
    with moto_s3() as bucket, serving(root) as web:
        transfers = Transfers()
        try:
            transfers.finish("push", str(root), f"{bucket}/whole")
            yield {"pull folder": str(root), "pull http": web.url, "pull s3": f"{bucket}/whole",
                   "push s3": bucket}, transfers
        finally:
            transfers.end()


def campaign(kills: int, folder: Path, *, seed: int = 0, ways: tuple[str, ...] = WAYS, slices: int = 24,
             sheet_bytes: int = 2_000_000) -> Counter[str]:
    """Kills transfers, way after way, each twice, and counts what they left; AssertionError where anything is wrong."""
    root = folder / "set"
    make_set(root, slices=slices, sheet_bytes=sheet_bytes)
    whole, manifest, draw, left = held(str(root)), read_manifest(LocalStore(root)), random.Random(seed), Counter[str]()
    with places(root) as (known, transfers):
        takes_s = {way: transfers.finish(way, *ends(way, known, root, "first")) for way in ways}
        for number in range(kills):
            way = ways[number % len(ways)]
            source, place = ends(way, known, root, f"to-{number}")
            for again in ("", ", again"):
                code, _ = transfers.run(way, source, place, kill_after_s=draw.uniform(0, takes_s[way]))
                assert code in {0, -signal.SIGKILL}, f"{way}{again}: ended with {code}"
                left[f"{way}{again}: {check(place, whole, manifest)}"] += 1
            transfers.finish(way, source, place)
            assert held(place) == whole, f"{way}: the next run did not end with the set"
            if "://" not in place:
                assert verify(place).ok
    return left


def ends(way: str, known: dict[str, str], root: Path, name: str) -> tuple[str, str]:
    """From where to where a way goes; `name`: of a new place."""
    to = str(root.with_name(f"{name}-{way.replace(' ', '-')}"))
    if way.startswith("pull"):
        return known[way], to
    return str(root), f"{known[way]}/{name}" if way == "push s3" else to


def main() -> None:
    """Runs the campaign and prints what the kills left."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=50, help="transfers that are killed, each twice")
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        left = campaign(asked.kills, Path(folder), seed=asked.seed)
    for what, count in sorted(left.items()):
        print(f"{count:4}  {what}")
    print(f"{asked.kills} of {asked.kills} killed transfers recovered; {sum(left.values())} kills, no half set")


if __name__ == "__main__":
    main()
