"""Two ways to spread a trained model over GPUs, on one model with random weights and one batch.

ours: every rank holds the whole bfloat16 weights and a share of the float32 weights, gradients and moments
(`taro.train.optimizer`), so it can decode at any time. fsdp2: torch's fully_shard, layer by layer, float32 shards that
are gathered in bfloat16 for every forward and backward pass; whoever decodes needs the whole weights besides.
Printed of each: seconds of a step (micro-batches, then the update), peak GPU memory, the losses. Losses are near, not
equal: the two round differently. Left out: decoding, launching.

    torchrun --nproc_per_node 2 benchmarks/sharding.py --size 3b --tokens 4096
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from benchmarks.shapes import random_config
from taro.models.attention import causal
from taro.models.families import family_of
from taro.models.language_model import LanguageModel
from taro.train.config import OptimizerConfig
from taro.train.optimizer.optimizer import Optimizer
from taro.train.ranks import Ranks

LR, SEED = 1e-5, 0
Update = Callable[[], None]


def model(size: str, device: torch.device) -> LanguageModel:
    """A language model with random weights, the same on every rank: bfloat16 numbers, as released ones, in float32."""
    config = random_config(size)
    text = config.text_config
    torch.manual_seed(SEED)
    with device:
        lm: Any = family_of(config, Path(size)).build_lm(config)
        head = torch.nn.Linear(text.hidden_size, text.vocab_size, bias=False)
    if config.tie_word_embeddings:
        head.weight = lm.embed_tokens.weight
    built = LanguageModel(lm, head).train()
    for one in built.parameters():
        one.data = one.data.bfloat16().float()
    return built.requires_grad_(True)


def ours(built: LanguageModel, ranks: Ranks, states: str) -> tuple[Update, Update]:
    """What ends a micro-batch, and the update."""
    for module in built.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            module.to(torch.bfloat16)
    optimizer = Optimizer(built.named_parameters(), OptimizerConfig.model_validate({"states": states}), ranks)

    def update() -> None:
        optimizer.step(LR, optimizer.clipped(optimizer.norm()))
        optimizer.begin()

    return optimizer.collect, update


def fsdp2(built: LanguageModel, device: torch.device) -> tuple[Update, Update]:
    """As `ours`; FSDP2 takes its gradients in backward."""
    precision = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    lm: Any = built.lm
    for layer in lm.layers:
        fully_shard(layer, mp_policy=precision)
    fully_shard(built, mp_policy=precision)
    optimizer = torch.optim.AdamW(built.parameters(), lr=LR, fused=device.type == "cuda")

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(built.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return lambda: None, update


def step(built: LanguageModel, batch: list[torch.Tensor], collect: Update, update: Update) -> float:
    """Forward and backward of every row, then the update; returns the mean loss of this rank."""
    total = 0.0
    for ids_T in batch:
        positions = torch.arange(len(ids_T), device=ids_T.device).expand(3, 1, -1)
        with torch.autocast(ids_T.device.type, torch.bfloat16):
            hidden_TD = built(ids_T[None], positions, causal, checkpoint=True)[0, -256:]  # of a row its response
            weight = cast("torch.Tensor", built.head.weight)  # gathered by now, under FSDP2
            logits = torch.nn.functional.linear(hidden_TD[:-1], weight.to(torch.bfloat16)).float()
            loss = torch.nn.functional.cross_entropy(logits, ids_T[-255:])
        (loss / len(batch)).backward()
        total += float(loss.detach()) / len(batch)
        collect()
    update()
    return total


def measure(way: str, given: argparse.Namespace, ranks: Ranks, device: torch.device) -> dict[str, Any]:
    """A line of the table."""
    built = model(given.size, device)
    collect, update = fsdp2(built, device) if way == "fsdp2" else ours(built, ranks, way)
    generator = torch.Generator().manual_seed(ranks.rank)
    vocabulary = random_config(given.size).text_config.vocab_size
    batch = [torch.randint(vocabulary, (given.tokens,), generator=generator).to(device) for _ in range(given.micro)]
    losses, seconds = [], []
    for number in range(given.steps):
        if device.type == "cuda":
            torch.cuda.synchronize()
            if number == 1:
                torch.cuda.reset_peak_memory_stats()
        started = time.monotonic()
        losses.append(round(step(built, batch, collect, update), 4))
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - started)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    return {"way": way, "step_s": round(min(seconds[1:]), 3), "peak_gib": round(peak, 2), "losses": losses}


def main() -> None:
    """Every way in turn; rank 0 prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="3b")
    parser.add_argument("--tokens", type=int, default=4096, help="of a row")
    parser.add_argument("--micro", type=int, default=4, help="rows of a rank in a step")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))
    device = torch.device("cuda", ranks.local) if given.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    for way in ("fsdp2", "float32", "bfloat16", "8bit"):
        line = measure(way, given, ranks, device)
        if ranks.first:
            print(json.dumps({"size": given.size, "ranks": ranks.world, **line}), flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
