"""Peak memory of opening what a preprocess job opens of a policy and a captioner, before and after `Encoder`.

Before: every model is a whole policy, tower included, and each is loaded for itself. After: the policy's tower alone,
and a captioner from the same folder uses that tower. Each case is a process of its own over a folder of released shape
with random weights (written first: 7b takes 17 GB of disk). On a GPU the peak of torch's allocations is measured,
elsewhere that of the resident set. Needs torch and transformers, no decoder and no CLIP.

    python benchmarks/encoder_memory.py --size 7b --device cuda
    python benchmarks/encoder_memory.py --size tiny
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.step import SHAPES, random_config
from taro.models.encoder import load_encoder
from taro.models.families import FAMILIES
from taro.models.features import FrameSampling
from taro.models.load import load_policy
from tests.helpers_models import tiny_tokenizer

SHARD_BYTES = 4 * 2**30


def write_folder(size: str, folder: Path) -> Path:
    """A model folder of a released shape: random bf16 weights in files of 4 GiB, the tests' tokenizer, a processor."""
    config, tokenizer = random_config(size), tiny_tokenizer()
    family = FAMILIES[config.model_type]
    config.video_token_id = tokenizer.convert_tokens_to_ids(family.video_token)
    tokenizer.save_pretrained(folder)
    config.save_pretrained(folder)
    vision = config.vision_config
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size}))
    with torch.device("meta"):
        text = config.text_config
        parts = {"model.language_model.": family.build_lm(config), "model.visual.": family.build_tower(config),
                 "lm_head.": torch.nn.Linear(text.hidden_size, text.vocab_size, bias=False)}
    noise = torch.randn(2**20, dtype=torch.float32).to(torch.bfloat16) * 0.02  # tiled: 8e9 draws would take minutes
    waiting: dict[str, torch.Tensor] = {}
    files: dict[str, str] = {}

    def flush() -> None:
        from safetensors.torch import save_file

        name = f"model-{len(set(files.values())):05d}.safetensors"
        save_file(waiting, folder / name, metadata={"format": "pt"})
        files.update(dict.fromkeys(waiting, name))
        waiting.clear()

    for prefix, module in parts.items():
        for name, tensor in module.state_dict().items():
            tiles = -(-tensor.numel() // len(noise))
            waiting[prefix + name] = noise.repeat(tiles)[: tensor.numel()].reshape(tensor.shape).clone()
            if sum(x.nbytes for x in waiting.values()) > SHARD_BYTES:
                flush()
    flush()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


def whole(folder: Path, **where: Any) -> list[Any]:
    """Before, captions from elsewhere."""
    return [load_policy(folder, tower=True, **where)]


def whole_twice(folder: Path, **where: Any) -> list[Any]:
    """Before, a captioner of the same folder or another of its size."""
    return [load_policy(folder, tower=True, **where) for _ in range(2)]


def tower(folder: Path, **where: Any) -> list[Any]:
    """After, captions from elsewhere."""
    return [load_encoder(folder, **where)]


def tower_shared(folder: Path, **where: Any) -> list[Any]:
    """After, a captioner of the same folder."""
    encoder = load_encoder(folder, **where)
    return [encoder, load_policy(folder, tower=encoder, **where)]


def tower_and_captioner(folder: Path, **where: Any) -> list[Any]:
    """After, a captioner of another folder of the same size."""
    return [load_encoder(folder, **where), load_policy(folder, tower=True, **where)]


CASES: dict[str, Callable[..., list[Any]]] = {
    "policy alone, before": whole, "policy alone, after": tower, "policy and captioner, before": whole_twice,
    "policy and captioner of one folder, after": tower_shared,
    "policy and captioner of two folders, after": tower_and_captioner,
}


def resident_bytes() -> int:
    """The most that this process has held; Linux counts it in KiB."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(case: str, folder: Path, device: str) -> dict[str, float]:
    """GiB after opening, and at most while opening and encoding one clip of 16 frames."""
    models = CASES[case](folder, device=device, dtype=torch.bfloat16)
    held = torch.cuda.memory_allocated() if device == "cuda" else resident_bytes()
    frames = np.zeros((16, 280, 336, 3), dtype=np.uint8)
    models[0].encode(frames, np.arange(16) / 2, FrameSampling(), duration_s=8.0)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resident_bytes()
    return {"opened_gib": round(held / 2**30, 3), "peak_gib": round(peak / 2**30, 3)}


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--case", choices=CASES, help="one case, of a folder that is there")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(args.case, args.folder, args.device)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_folder(args.size, Path(folder))
        results = {}
        for case in CASES:
            line = [sys.executable, __file__, "--case", case, "--folder", folder, "--device", args.device]
            done = subprocess.run(line, check=True, capture_output=True, text=True)
            results[case] = json.loads(done.stdout.splitlines()[-1])
            print(f"{case:45} {results[case]}", file=sys.stderr, flush=True)
    name = torch.cuda.get_device_name() if args.device == "cuda" else "cpu (resident set)"
    print(json.dumps({"device": name, "size": args.size, "cases": results}, indent=1))


if __name__ == "__main__":
    main()
