"""`data.reading: stream` beside a plain read of the same files, cold and warm: MB/s, and what an epoch reads.

Writes a set of clips with features of a 7B model's size, then reads it: the shards alone from end to end (plain), the
same with sha256 over what was read (digests: what any checked reader costs), the stream, and the indexed reader in its
own order. Readers take every step of an epoch and do nothing with the samples. Cold: the pages of the files are dropped
from the machine's memory before each pass (posix_fadvise), as far as the kernel does so. Of several passes the fastest
counts, as other jobs only slow them down; CPU seconds a GB (of all threads, warm) depend on those least.
Left out: remote stores.

    python benchmarks/streaming.py --gigabytes 4 --folder /a/disk
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from taro.models.features import VideoFeatures
from taro.shards.manifest import build_manifest, write_manifest
from taro.shards.reader import open_shards
from taro.shards.writer import SliceWriter
from taro.train.config import ShardSource
from taro.train.data import TrainingData, select
from tests.shards.helpers_sets import FINGERPRINT, record

PATCHES, TOKENS, WIDTH = 32, 108, 3584
"""of a clip: 24.8 MB in bfloat16"""
PROMPTS, BUFFER, SLICE = 16, 128, 32


def write(root: Path, clips: int) -> None:
    """A set of `clips` clips with two queries each, in slices of 32; features are random bits."""
    fingerprint = FINGERPRINT.model_copy(update={"dtype": "bfloat16"})
    generator = np.random.default_rng(0)
    for index, start in enumerate(range(0, clips, SLICE)):
        with SliceWriter(root, index, kinds=["paths", f"features/{fingerprint.name}"]) as writer:
            for one in sorted((record(number, patches=PATCHES) for number in range(start, min(start + SLICE, clips))),
                              key=lambda one: one.key):
                bits = generator.integers(0, 0x3F80, size=(PATCHES, TOKENS, WIDTH), dtype=np.int16)
                times_S = np.array(one.times_s).reshape(-1, 2).mean(1)
                writer.add_clip(one, None, {fingerprint.name: VideoFeatures(
                    torch.from_numpy(bits).view(torch.bfloat16), times_S, (PATCHES, 18, 24), 1.0)}, {})
            writer.commit()
    write_manifest(root, build_manifest(root, inputs=2 * clips, skipped=0, captions=3 * clips, name="benchmark",
                                        encoders=[fingerprint]))


def shards(root: Path) -> list[Path]:
    """The tars of the set."""
    return sorted(root.rglob("*.tar"))


def forget(root: Path) -> None:
    """Drops the shards from the page cache."""
    for path in shards(root):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def plain(root: Path, *, digests: bool = False) -> None:
    """Every shard from end to end, 16 MiB at a time."""
    room = bytearray(2**24)
    for path in shards(root):
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(room):
                if digests:
                    digest.update(memoryview(room)[:count])


def epoch(root: Path, *, buffer: int | None) -> Callable[[], None]:
    """What takes all samples of an epoch; the set is open before."""
    source = ShardSource(path=str(root), name="set")
    data = TrainingData([select(source, open_shards(root))], prompts=PROMPTS, buffer=buffer)

    def read() -> None:
        for step in range(data.steps_per_epoch):
            data.samples(step, steps=data.steps_per_epoch)
        data.close()

    return read


def main() -> int:
    """Prints one table."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--gigabytes", type=float, default=1.0)
    words.add_argument("--folder", type=Path, default=None, help="where the set is written, and removed")
    words.add_argument("--passes", type=int, default=3)
    asked = words.parse_args()
    root = Path(tempfile.mkdtemp(prefix="taro-streaming-", dir=asked.folder))
    try:
        write(root, max(PROMPTS, round(asked.gigabytes * 1e9 / (PATCHES * TOKENS * WIDTH * 2))))
        size = sum(path.stat().st_size for path in shards(root))
        print(f"{size / 1e9:.2f} GB in {len(shards(root))} shards, torch threads {torch.get_num_threads()}, "
              f"{os.cpu_count()} cores, best of {asked.passes}")
        print(f"{'MB/s':24}{'cold':>8}{'warm':>8}{'CPU s/GB':>12}")
        readers: dict[str, Callable[[], None]] = {
            "plain": lambda: plain(root), "plain with digests": lambda: plain(root, digests=True),
            "stream": epoch(root, buffer=BUFFER), "indexed": epoch(root, buffer=None)}
        for name, read in readers.items():
            cold, warm, cpu = list[float](), list[float](), list[float]()
            for number in range(2 * asked.passes):
                if number % 2 == 0:
                    forget(root)
                began, spent = time.monotonic(), time.process_time()
                read()
                (cold, warm)[number % 2].append(time.monotonic() - began)
                cpu += [time.process_time() - spent] if number % 2 else []
            print(f"{name:24}{size / 1e6 / min(cold):8.0f}{size / 1e6 / min(warm):8.0f}{min(cpu) * 1e9 / size:12.2f}",
                  flush=True)
    finally:
        shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
