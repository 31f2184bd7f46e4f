"""What a checkpoint costs: how long training waits, how long it is written, against a plain writer in the same run.

The trained tensors have a released model's shapes and random values; on a GPU they are bfloat16 with float32 copies, as
in training. The plain writer writes as many bytes to the same disk in blocks of 8 MiB and forces them there, without a
hash; it runs before and after, and what the system keeps of files in memory is dropped before resuming. Left out: how
much slower steps are while a checkpoint is written.

    python benchmarks/checkpoint.py --size 3b --folder /a/disk          # a GPU, 37 GB of host memory and of disk
    python benchmarks/checkpoint.py --size small
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.shapes import SHAPES, TIED
from taro.train.checkpoint import RunState, Saver, load_checkpoint
from taro.train.checkpoint.blocks import BLOCK_BYTES
from taro.train.checkpoint.staging import staged_bytes
from taro.train.optimizer.optimizer import Optimizer
from taro.train.settings.update import OptimizerConfig

SMALL = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8,
         "num_key_value_heads": 2, "vocab_size": 32768}


def shapes(size: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every trained tensor of a language model."""
    one = SHAPES.get(size, SMALL)
    D, F, V = one["hidden_size"], one["intermediate_size"], one["vocab_size"]
    width = one.get("head_dim", D // one["num_attention_heads"])
    heads, shared = width * one["num_attention_heads"], width * one["num_key_value_heads"]
    yield "lm.embed_tokens.weight", (V, D)
    for layer in range(one["num_hidden_layers"]):
        for name, shape in (("q", (heads, D)), ("k", (shared, D)), ("v", (shared, D)), ("o", (D, heads)),
                            ("gate", (F, D)), ("up", (F, D)), ("down", (D, F)), ("norm1", (D,)), ("norm2", (D,))):
            yield f"lm.layers.{layer}.{name}.weight", shape
    yield "lm.norm.weight", (D,)
    if size not in TIED:
        yield "head.weight", (V, D)


def timed(work: Callable[[], object]) -> float:
    """Seconds, the GPU's work included."""
    settle()
    started = time.monotonic()
    work()
    settle()
    return time.monotonic() - started


def settle() -> None:
    """Waits for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def plain_write(path: Path, size_bytes: int) -> float:
    """Seconds of a writer that only writes."""
    block = memoryview(os.urandom(BLOCK_BYTES))

    def write() -> None:
        with path.open("wb") as file:
            for start in range(0, size_bytes, BLOCK_BYTES):
                file.write(block[: size_bytes - start])
            file.flush()
            os.fsync(file.fileno())

    seconds = timed(write)
    path.unlink()
    return seconds


def forget(folder: Path) -> None:
    """Asks the system to keep nothing of the files in memory."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file, contextlib.suppress(OSError):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def peak_gb() -> float:
    """Most memory that this process has held."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith("VmHWM")) * 1024 / 1e9


def measure(size: str, states: str, folder: Path) -> list[tuple[str, str]]:
    """Rows of the table."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    named = [(name, torch.nn.Parameter(torch.randn(shape, device=device, dtype=dtype)))
             for name, shape in shapes(size)]
    optimizer = Optimizer(named, OptimizerConfig.model_validate({"states": states}))
    pieces = optimizer.pieces()
    for piece in pieces:
        piece.tensor.copy_(torch.randint(0, 100, piece.tensor.shape, device=device))
    size_bytes, before = staged_bytes(pieces), peak_gb()
    sums = [float(piece.tensor.double().sum()) for piece in pieces]
    savers: list[Saver] = []
    take = timed(lambda: savers.append(Saver(folder, optimizer, keep=1)))
    saver = savers[0]
    ready = timed(lambda: saver._staging is None or saver._staging.ready())
    plain = [plain_write(folder / "plain", size_bytes)]
    waits, writes = [], []
    for step in (1, 2):
        started = time.monotonic()
        waits.append(timed(partial(saver.save, RunState(step=step))))
        saver.finish()
        writes.append(time.monotonic() - started)
    plain.append(plain_write(folder / "plain", size_bytes))
    peak, staged = peak_gb(), saver._staging is not None
    saver.close()
    forget(folder)
    for piece in pieces:
        piece.tensor.zero_()
    resume = timed(lambda: load_checkpoint(folder / "step-000002", optimizer))
    assert sums == [float(piece.tensor.double().sum()) for piece in optimizer.pieces()], "not what was saved"
    gb = size_bytes / 1e9
    waiting = timed(lambda: _synchronous(folder, optimizer))
    return [("bytes written", f"{gb:.2f} GB"), ("staged in host memory", str(staged)),
            ("host memory taken in the background", f"{take + ready:.1f} s"),
            ("training waits, 1st and 2nd", " ".join(f"{one:.2f} s" for one in waits)),
            ("written and named after, 1st and 2nd", " ".join(f"{one:.1f} s" for one in writes)),
            ("rate, 1st and 2nd", " ".join(f"{gb / one:.2f} GB/s" for one in writes)),
            ("plain writer, before and after", " ".join(f"{gb / one:.2f} GB/s" for one in plain)),
            ("of the plain writer's rate", f"{sum(plain) / sum(writes):.0%}"),
            ("peak of host memory beyond the model's", f"{peak - before:.2f} GB"),
            ("training waits with background=false", f"{waiting:.1f} s"),
            ("resume, files dropped from memory", f"{resume:.1f} s")]


def _synchronous(folder: Path, optimizer: Optimizer) -> None:
    with contextlib.closing(Saver(folder, optimizer, keep=1, background=False)) as saver:
        saver.save(RunState(step=3))


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", choices=["small", *SHAPES])
    parser.add_argument("--states", default="float32", choices=["float32", "bfloat16", "8bit"])
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to be measured")
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=args.folder))
    try:
        rows = measure(args.size, args.states, scratch)
    finally:
        shutil.rmtree(scratch)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    print(f"{gpu}, {os.cpu_count()} cores, torch {torch.__version__}; {args.size}, optimizer.states={args.states}\n")
    print("| what | measured |\n|---|---|")
    for what, value in rows:
        print(f"| {what} | {value} |")


if __name__ == "__main__":
    main()
