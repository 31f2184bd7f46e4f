"""What a link feeds, and what the reader costs over a plain read. A server on loopback, in a process of its own.

    python benchmarks/remote.py --clip-mb 28 --clips 80 --rate 100     # steps of 16 prompts over 100 MB/s: cold, warm
    python benchmarks/remote.py --clip-mb 28 --clips 144 --read        # 4 GB: reader against plain ranged reads

Steps go through `SamplesAhead`, as in training; a step's work is a pause of --step-s seconds. `waited_s` is what the
step then waited for its samples. Plain reads are `http.client` (or an open file) over the same ranges, nothing checked
and nothing kept. Cold: an empty cache of remote sets; the server's own files are in the system's page cache."""

from __future__ import annotations

import argparse
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from taro.models.features import VideoFeatures, patch_times_s
from taro.shards.manifest import build_manifest, write_manifest, write_skipped
from taro.shards.reader import ShardSet, open_shards
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


def read_all(shard_set: ShardSet) -> float:
    """Seconds to read every sample, 16 at a time."""
    began, refs = time.monotonic(), shard_set.queries()
    for at in range(0, len(refs), PROMPTS):
        shard_set.prefetch(refs[at : at + PROMPTS])
        for ref in refs[at : at + PROMPTS]:
            shard_set.sample(ref)
    return time.monotonic() - began


def plain(shard_set: ShardSet, base: Path | str) -> float:
    """Seconds to read the same ranges of the features, unchecked."""
    kind, began = f"features/{shard_set.encoder}", time.monotonic()
    connection = http.client.HTTPConnection(str(base).rpartition("/set")[0].removeprefix("http://"))
    for key in shard_set.keys:
        index, found = shard_set._find(kind, key)
        name, member = f"{kind}/features-{index:06d}.tar", found.members[0]
        if isinstance(base, Path):
            with (base / name).open("rb") as file:
                file.seek(member.offset - 512)
                file.read(512 + member.size)
        else:
            connection.request("GET", f"/set/{name}", headers={
                "Range": f"bytes={member.offset - 512}-{member.offset + member.size - 1}"})
            connection.getresponse().read()
    connection.close()
    return time.monotonic() - began


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
        local = open_shards(root / "set")
        for what, seconds in (("plain file", plain(local, root / "set")), ("reader, folder", read_all(local)),
                              ("plain http", plain(local, url)), ("reader, http, cold", read_all(open_shards(url))),
                              ("reader, http, warm", read_all(open_shards(url)))):
            print(f"{what}: {size / seconds:.2f} GB/s ({size:.1f} GB, {seconds:.1f} s)", flush=True)
    finally:
        if server:
            server.terminate()
            server.wait(10)
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
