"""The golden jobs: one preprocess job and one training run a family, and what is recorded of them.

Everything goes through the command line, so the record outlives every move inside. Stage 1 renders a sandbox world,
captions it, aligns it with CLIP, encodes it for Qwen2.5-VL with frame variants, and adds the features of Qwen3-VL.
Stage 2 trains each family for 20 steps of 2 prompts x 3 rollouts (8 guided, KL and the bonus on, validation, a
checkpoint every 4), stopped after step 12 and resumed in between.

    python -m tests.golden --record       # writes golden.json anew, after a change of arithmetic that was meant
    python -m tests.golden                # compares, as the test does
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_name("golden.json")
FAMILIES = {"qwen2_5_vl": "sandbox:policy", "qwen3_vl": "sandbox:policy-qwen3-vl"}
STEPS, STOP = 20, 12
NOT_RECORDED = {"tokens_per_s", "memory_gib", "seconds", "phases", "tokens_per_s_by_phase"}
"""of a line of metrics.jsonl: what depends on the clock or the machine"""

PINNED = {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2",
          "ONEDNN_MAX_CPU_ISA": "AVX2", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
"""environment of a golden run: one thread, and the kernels of AVX2, which every x86-64 server has"""

PREPROCESS = ("videos=world/videos", "annotations=world/annotations.jsonl", "out=shards", "slice_clips=3",
              "variants.count=2", "variants.dt_s=1.0", "workers=1", "caption.batch=4", "sampling.max_frames=24")
TRAIN = ("shards=shards", "rollout.prompts=2", "rollout.group=3", "rollout.max_new_tokens=56", "loss.kl=0.01",
         "curriculum.amount=8", "validation.split=val", "validation.every=10", "validation.limit=3",
         "validation.max_new_tokens=48", "rollout.min_free_tokens=24", "checkpoint.every=4",
         "optimizer.micro_prompts=1", "reward.dt_s=1.0")


def versions() -> dict[str, str]:
    """What a byte may depend on besides our code."""
    names = ("torch", "transformers", "tokenizers", "numpy", "av", "pillow", "open_clip_torch")
    found = {name: importlib.metadata.version(name) for name in names}
    return {**found, "machine": platform.machine(), "processor": processor()}


def processor() -> str:
    """The processor's name as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def run_jobs(folder: Path) -> dict[str, Any]:
    """Runs every golden job in `folder` and returns what is recorded of them. The environment must be `PINNED`."""
    assert all(os.environ.get(name) == value for name, value in PINNED.items()), "run python -m tests.golden"
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    taro("sandbox", "make", "world", "--videos", "5", "--seed", "7")
    rows = Path("world/annotations.jsonl").read_text().splitlines()
    Path("world/annotations.jsonl").write_text("".join(  # the last clip's queries are the validation split
        json.dumps({**row, "split": "val" if row["video"] == json.loads(rows[-1])["video"] else "train"}) + "\n"
        for row in map(json.loads, rows)))
    taro("preprocess", "sandbox", *sets(PREPROCESS))
    taro("preprocess", "sandbox", *sets(PREPROCESS), "--only", "features", "--policy", FAMILIES["qwen3_vl"])
    return {"versions": versions(), "shards": shard_digests(Path("shards")),
            "runs": {family: train(family, policy) for family, policy in FAMILIES.items()}}


def train(family: str, policy: str) -> dict[str, Any]:
    """A run of `STEPS` steps that was stopped after `STOP` and resumed."""
    line = ("train", "sandbox", *sets(TRAIN), "--set", f"policy={policy}", "--set", f"out={family}", "--json")
    taro(*line, "--set", f"length.amount={STOP}")
    taro(*line, "--set", f"length.amount={STEPS}", "--resume")
    run = Path(family)
    rows = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    return {"metrics": [{key: value for key, value in row.items() if key not in NOT_RECORDED} for row in rows],
            "rollouts": {path.name: sha256(path) for path in sorted((run / "rollouts").iterdir())},
            "weights": tensor_digests(run / "export" / "model.safetensors"),
            "moments": moment_digests(run / f"checkpoints/step-{STEPS:06d}/rank-00000-of-00001.safetensors")}


def sets(settings: tuple[str, ...]) -> list[str]:
    """`--set` before each."""
    return [word for setting in settings for word in ("--set", setting)]


def taro(*line: str) -> None:
    """One command of the command line, in this process."""
    from taro.cli.app import main

    try:
        main(list(line))
    except SystemExit as stop:
        if stop.code not in (0, None):
            raise RuntimeError(f"taro {' '.join(line)}: exit {stop.code}") from None


def shard_digests(root: Path) -> dict[str, str]:
    """sha256 of every shard and sidecar; the manifest, which names versions, is left out."""
    found = [path for path in sorted(root.glob("[!.]*/**/*")) if path.suffix in {".tar", ".json"}]
    return {path.relative_to(root).as_posix(): sha256(path) for path in found}


def tensor_digests(file: Path) -> dict[str, str]:
    """First 16 hex digits of the sha256 of every tensor."""
    import torch
    from safetensors.torch import load_file

    return {name: hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
            for name, tensor in sorted(load_file(file).items())}


def moment_digests(file: Path) -> dict[str, str]:
    """As `tensor_digests`, of the optimizer's moments in a rank's file of a checkpoint."""
    return {name: digest for name, digest in tensor_digests(file).items() if not name.endswith(".weight")}


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differences(found: Any, recorded: Any, where: str = "") -> list[str]:
    """Every leaf that is not equal, by its place."""
    if isinstance(found, dict) and isinstance(recorded, dict):
        return [line for key in sorted({*found, *recorded})
                for line in differences(found.get(key), recorded.get(key), f"{where}/{key}")]
    if isinstance(found, list) and isinstance(recorded, list) and len(found) == len(recorded):
        return [line for i, (a, b) in enumerate(zip(found, recorded, strict=True))
                for line in differences(a, b, f"{where}/{i}")]
    return [] if found == recorded else [f"{where}: {found!r}, recorded {recorded!r}"]
