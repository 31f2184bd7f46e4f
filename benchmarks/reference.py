"""What a reference in the host's memory and offloaded layer inputs cost: seconds, GPU memory, and whether numbers stay.

The start policy scores B groups, whole on the GPU and streamed from the host; then one group goes forward and backward
with its layer inputs kept and offloaded. Weights are random and of released shape, written to a folder first. Left out:
the sharded reference, which needs several GPUs.

    python benchmarks/reference.py --size 7b --device cuda --folder /dev/shm
    python benchmarks/reference.py --size tiny --device cpu --grid 8,12,16 --response 16 --groups 3
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.shapes import SHAPES, write_model
from taro.models.features import VideoFeatures
from taro.models.load import load_compute
from taro.models.logprobs import score
from taro.models.offload import Offload, Recompute
from taro.models.policy import Policy
from taro.models.prompt import Prompt
from taro.models.streamed import HostStore, StreamedPolicy

GIB = 2**30


def held() -> float:
    """GiB of tensors on the GPU."""
    return torch.cuda.memory_allocated() / GIB if torch.cuda.is_available() else 0.0


def measured(name: str, device: torch.device, run: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Prints seconds of a second run, and GPU memory before it and at its peak; returns its result on the CPU."""
    run()
    before = held()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    result = run().cpu()
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else 0.0
    print(f"{name:36} {seconds:8.2f} s   held {before:6.2f} GiB   peak {peak:6.2f} GiB   peak - held "
          f"{peak - before:6.2f} GiB", flush=True)
    return result


def group(policy: Policy, args: argparse.Namespace, device: torch.device) -> tuple[Prompt, torch.Tensor]:
    """A prompt over random features, and ids [1, G, R] of its responses."""
    t, h, w = (int(part) for part in args.grid.split(","))
    width, levels = policy.language_model.lm.config.hidden_size, policy.family.levels(policy.config)
    main, *deep = ((torch.randn(t, h * w // 4, width, device=device) * 0.02).to(torch.bfloat16)
                   for _ in range(1 + levels))
    features = VideoFeatures(main, np.arange(t) * 1.0, (t, h, w), 1.0, tuple(deep))
    ids = torch.randint(0, 256, (1, args.group, args.response), device=device)
    return policy.prompt(features, "x" * args.text), ids


def scoring(folder: Path, args: argparse.Namespace, device: torch.device) -> None:
    """Whole and streamed, one after the other."""
    found, bf16 = [], device.type == "cuda"
    for name in ("gpu", "host"):
        started = time.perf_counter()
        streamed = StreamedPolicy(folder, device, HostStore(device), bf16=bf16) if name == "host" else None
        policy = streamed.policy if streamed else load_compute(folder, device, bf16=bf16)
        print(f"{'load, ' + name:36} {time.perf_counter() - started:8.2f} s", flush=True)
        torch.manual_seed(0)
        prompt, ids = group(policy, args, device)
        prompts, ids_BGR = [prompt] * args.groups, ids.expand(args.groups, -1, -1)
        mask_BGR = torch.ones_like(ids_BGR, dtype=torch.bool)

        def run(policy: Policy = policy, streamed: StreamedPolicy | None = streamed,
                given: tuple[Any, ...] = (prompts, ids_BGR, mask_BGR)) -> torch.Tensor:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                return streamed.score(*given) if streamed else score(policy, *given)

        found.append(measured(f"score {args.groups} groups, {name}", device, run))
        del policy, streamed, run, prompt, prompts
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print("log-probs equal:", bool(torch.equal(*found)), flush=True)


def updating(folder: Path, args: argparse.Namespace, device: torch.device) -> None:
    """Forward and backward, layer inputs kept and offloaded."""
    bf16 = device.type == "cuda"
    policy = load_compute(folder, device, bf16=bf16)
    policy.language_model.requires_grad_(True)
    torch.manual_seed(0)
    prompt, ids = group(policy, args, device)
    layer = policy.language_model.lm.layers[0].self_attn.q_proj
    found = []
    ways: tuple[tuple[str, Recompute], ...] = (("kept", True), ("offloaded", Offload(device)))
    for name, recompute in ways:

        def run(recompute: Recompute = recompute) -> torch.Tensor:
            policy.language_model.zero_grad(set_to_none=False)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logprobs = score(policy, [prompt], ids, torch.ones_like(ids, dtype=torch.bool),
                                 checkpoint_activations=recompute)
            logprobs.mean().backward()
            gradient: torch.Tensor = layer.weight.grad.clone()
            return gradient

        found.append(measured(f"forward + backward, inputs {name}", device, run))
    print(f"tokens of the row: {len(prompt.ids_P) + args.group * args.response}")
    print("gradients of the first layer equal:", bool(torch.equal(*found)))


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", default=None, help="where the weights are written for the run, such as /dev/shm")
    parser.add_argument("--grid", default="30,20,24", help="temporal patches, rows, columns before merging")
    parser.add_argument("--text", type=int, default=330, help="prompt tokens beside the video")
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--response", type=int, default=256)
    args = parser.parse_args()
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        started = time.perf_counter()
        write_model(Path(folder) / "model", args.size)
        print(f"{'write the model':36} {time.perf_counter() - started:8.2f} s", flush=True)
        scoring(Path(folder) / "model", args, device)
        updating(Path(folder) / "model", args, device)


if __name__ == "__main__":
    main()
