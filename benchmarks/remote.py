"""What a link feeds, and what the reader costs over a plain read. A server on loopback, in a process of its own.

    python benchmarks/remote.py --clip-mb 28 --clips 80 --rate 100     # steps of 16 prompts over 100 MB/s: cold, warm
    python benchmarks/remote.py --clip-mb 28 --clips 144 --read        # 4 GB: reader against plain ranged reads

Steps go through `SamplesAhead`, as in training; a step's work is a pause of --step-s seconds. `waited_s` is what the
step then waited for its samples. Plain reads are `http.client` (or an open file) over the same ranges, nothing checked
and nothing kept; each is paired with a pass of the reader, since a machine that others use changes while it is
measured. Cold: an empty cache of remote sets (the server's own files are in the system's page cache), or files that
were dropped from the page cache. First: by a process that has not read the files; again: by one that has, so that it
need not compute their digests again."""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from taro.models.features import VideoFeatures, patch_times_s
from taro.shards.manifest import build_manifest, write_manifest, write_skipped
from taro.shards.reader import ShardSet, open_shards
from taro.shards.store import QUIET_S, Wanted
from taro.shards.together import read_samples
from taro.shards.writer import SliceWriter
from taro.train.ahead import SamplesAhead
from taro.train.config import ShardSource
from taro.train.data import TrainingData, select
from tests.shards.helpers_http import serving
from tests.shards.helpers_sets import FINGERPRINT, record

WIDTH, PATCHES, PROMPTS, PER_SLICE = 3584, 8, 16, 24


def make_set(root: Path, clips: int, clip_bytes: int) -> None:
    """Clips of random bfloat16 features, so many bytes each."""
    tokens = clip_bytes // (2 * WIDTH * PATCHES)
    times_S = patch_times_s(np.array([0.1 + 0.5 * index for index in range(2 * PATCHES)]))
    records = sorted((record(number, queries=1, patches=PATCHES) for number in range(clips)), key=lambda one: one.key)
    kinds = ["paths", f"features/{FINGERPRINT.name}"]
    for at in range(0, clips, PER_SLICE):
        with SliceWriter(root, at // PER_SLICE, kinds=kinds) as writer:
            for one in records[at : at + PER_SLICE]:
                main = torch.randn(PATCHES, tokens, WIDTH, dtype=torch.bfloat16)
                made = VideoFeatures(main, times_S, (PATCHES, 2, 2 * tokens), 1.0, ())
                writer.add_clip(one, None, {FINGERPRINT.name: made}, {}, {})
            writer.commit()
    write_skipped(root, [])
    write_manifest(root, build_manifest(root, inputs=clips, skipped=0, captions=3 * clips, encoders=[FINGERPRINT]))


def feed(url: str, step_s: float, steps: int) -> list[float]:
    """Seconds that each step waited for its samples."""
    one = select(ShardSource(path=url, name="set"), open_shards(url))
    data = TrainingData([one], prompts=PROMPTS)
    ahead, waited = SamplesAhead(data, steps), []
    for step in range(steps):
        began = time.monotonic()
        ahead.take(step)
        waited.append(time.monotonic() - began)
        time.sleep(step_s)
    ahead.close()
    return waited


def read_all(shard_set: ShardSet) -> None:
    """Every sample, 16 at a time; none is kept."""
    refs = shard_set.queries()
    for at in range(0, len(refs), PROMPTS):
        for _ in read_samples(shard_set, refs[at : at + PROMPTS]):
            pass


def plain(shard_set: ShardSet, base: Path | str, *, digests: bool = False) -> None:
    """The same ranges of the features, unchecked; `digests`: with the least that a check costs, sha256 of each, in as
    many threads as there are cores."""
    connection = http.client.HTTPConnection(str(base).rpartition("/set")[0].removeprefix("http://"))

    def read(place: Wanted) -> bytes:
        assert place.stop is not None
        if isinstance(base, Path):
            with (base / place.name).open("rb") as file:
                file.seek(place.start)
                return file.read(place.stop - place.start)
        connection.request("GET", f"/set/{place.name}", headers={"Range": f"bytes={place.start}-{place.stop - 1}"})
        return connection.getresponse().read()

    places = [shard_set.features_place(key) for key in shard_set.keys]
    if not digests:
        for place in places:
            read(place)
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda place: hashlib.sha256(read(place)).digest(), places):
            pass
    connection.close()


def drop(folder: Path) -> None:
    """Drops the files of a folder from the page cache, as far as the kernel does so."""
    for path in folder.rglob("*.tar"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def clear() -> None:
    """Empties the cache of remote sets."""
    shutil.rmtree(os.environ["TARO_CACHE"], ignore_errors=True)


def compare(root: Path, url: str, pairs: int, gigabytes: float, only: str) -> None:
    """Each reader and its plain read in turn, `pairs` times: medians of GB/s, of their ratio, and the least CPU seconds
    a GB of this process."""
    local, folder = open_shards(root / "set"), root / "set"
    again, away = open_shards(folder), open_shards(url)

    def nothing() -> None:
        """Before a pass."""

    rows: list[tuple[str, Callable[[], None], Callable[[], None], Callable[[], None]]] = [
        ("disk, cold", lambda: drop(folder), lambda: plain(local, folder), lambda: read_all(open_shards(folder))),
        ("disk, warm, first", nothing, lambda: plain(local, folder), lambda: read_all(open_shards(folder))),
        ("disk, warm, sha256 alone", nothing, lambda: plain(local, folder),
         lambda: plain(local, folder, digests=True)),
        ("disk, warm, again", nothing, lambda: plain(local, folder), lambda: read_all(again)),
        ("http, cold cache", clear, lambda: plain(local, url), lambda: read_all(open_shards(url))),
        ("http, warm cache, first", nothing, lambda: plain(local, url), lambda: read_all(open_shards(url))),
        ("http, warm cache, again", nothing, lambda: plain(local, url), lambda: read_all(away))]
    print(f"{gigabytes:.1f} GB, {os.cpu_count()} cores, medians of {pairs} pairs\n{'':26}{'plain GB/s':>12}"
          f"{'reader':>9}{'ratio':>8}{'CPU s/GB plain':>17}{'reader':>9}", flush=True)
    for name, before, *both in (row for row in rows if only in row[0]):
        if name.endswith("again"):
            time.sleep(QUIET_S + 1)  # files that changed just now are never remembered
            both[1]()
        taken: list[list[tuple[float, float]]] = [[], []]
        for _ in range(pairs):
            for what, read in enumerate(both):
                before()
                began, spent = time.monotonic(), time.process_time()
                read()
                taken[what].append((time.monotonic() - began, time.process_time() - spent))
        seconds = [[one[0] for one in of_one] for of_one in taken]
        ratio = statistics.median(a / b for a, b in zip(*seconds, strict=True))
        speeds = [gigabytes / statistics.median(of_one) for of_one in seconds]
        cpu = [min(one[1] for one in of_one) / gigabytes for of_one in taken]
        print(f"{name:26}{speeds[0]:12.2f}{speeds[1]:9.2f}{ratio:8.0%}{cpu[0]:17.2f}{cpu[1]:9.2f}", flush=True)


def served(root: Path, rate_mb: float | None) -> tuple[Any, str]:
    """A server process of a folder, and its URL."""
    server = subprocess.Popen([sys.executable, __file__, "--serve", str(root), "--rate", str(rate_mb or 0)],
                              stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    return server, server.stdout.readline().strip()


def main() -> None:
    """Runs what the options name."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clip-mb", type=float, default=28)
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--rate", type=float, default=0, help="MB/s of the link; 0: as fast as it goes")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--step-s", type=float, default=2)
    parser.add_argument("--read", action="store_true")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", default="", help="of --read, those whose name has this in it")
    parser.add_argument("--serve", type=Path)
    options = parser.parse_args()
    if options.serve:
        with serving(options.serve, rate=options.rate * 1e6 or None) as web:
            print(web.url, flush=True)
            time.sleep(10**6)
    root = Path(tempfile.mkdtemp(prefix="remote-"))
    os.environ["TARO_CACHE"], server = str(root / "cache"), None
    try:
        make_set(root / "set", options.clips, int(options.clip_mb * 1e6))
        server, url = served(root, options.rate)
        url, size = f"{url}/set", options.clips * options.clip_mb / 1e3
        if not options.read:
            for what in ("cold", "warm"):
                waited = feed(url, options.step_s, options.steps)
                print(f"{what}: {options.clip_mb:g} MB a clip, {options.clip_mb * PROMPTS:g} MB a step of "
                      f"{options.step_s:g} s, {options.rate:g} MB/s: waited_s "
                      f"{', '.join(f'{one:.2f}' for one in waited)}", flush=True)
            return
        compare(root, url, options.pairs, size, options.rows)
    finally:
        if server:
            server.terminate()
            server.wait(10)
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
