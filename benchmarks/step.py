"""What a step's parts cost, taro's way beside the plain way, in one run on one machine.

Plain: the stock vision tower, every rollout as a full row of video, prompt and response, stock decoding with the
prefix's keys and values repeated per rollout. taro: batched tower, packed rows, grouped decoding. Weights are random
and of released shape (Qwen2.5-VL 7b and 3b, Qwen3-VL 8b), or tiny for a CPU. Left out: decoding of videos
(benchmarks/decode), the optimizer.

    python benchmarks/step.py --size 7b --device cuda
    python benchmarks/step.py --size tiny --device cpu --grid 16,12,16 --response 32
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.shapes import SHAPES, random_config
from taro.core.draws import uniforms
from taro.models.attention import causal
from taro.models.encoder import Encoder
from taro.models.families import FAMILIES
from taro.models.features import VideoFeatures
from taro.models.grouped import generate
from taro.models.language_model import LanguageModel
from taro.models.logprobs import score, token_logprobs
from taro.models.policy import Policy
from taro.models.prompt import Prompt
from taro.models.sampler import Decoding
from tests.helpers_models import TINY


def random_policy(size: str, device: str, dtype: torch.dtype, folder: Path) -> Policy:
    """A policy of released shape with random weights, tower included; the tokenizer is the tests' tiny one."""
    from transformers import AutoTokenizer

    config, shape = random_config(size), SHAPES[size]
    family = FAMILIES[config.model_type]
    TINY[config.model_type](folder)
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            lm, tower = family.build_lm(config), family.build_tower(config)
            head = torch.nn.Linear(shape["hidden_size"], shape["vocab_size"], bias=False)
    finally:
        torch.set_default_dtype(before)
    for module in (lm, tower, head):
        module.to(dtype).requires_grad_(module is not tower)
    encoder = Encoder(folder, config, family, tower)
    return Policy(folder, config, family, AutoTokenizer.from_pretrained(folder), LanguageModel(lm, head), encoder)


def timed(name: str, run: Callable[[], Any], results: dict[str, Any], *, device: str, repeats: int) -> None:
    """Median seconds of `repeats` runs after one to warm up, and peak memory; running out of it is recorded."""
    if device == "cuda":
        torch.cuda.empty_cache()  # what the part before cached is not this part's
    try:
        run()
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        results[name] = {"failed": "out of memory"}
    else:
        peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
        results[name] = {"seconds": statistics.median(seconds), "peak_gib": peak}
    print(f"{name:42} {results[name]}", file=sys.stderr, flush=True)


def full_rows(policy: Policy, prompt: Prompt, ids_GR: torch.Tensor, *, rows: int, checkpoint: bool) -> torch.Tensor:
    """The plain way: `rows` full rows of prompt and response at a time; mean log-prob, gradients accumulated."""
    G, R = ids_GR.shape
    total = torch.zeros((), device=policy.device)
    tail = torch.arange(prompt.next_position, prompt.next_position + R).expand(3, R)
    positions = torch.cat([prompt.positions_3P, tail], 1).to(policy.device)[:, None]
    for start in range(0, G, rows):
        ids = ids_GR[start : start + rows]
        row = torch.cat([prompt.ids_P.to(ids.device).expand(len(ids), -1), ids], 1)
        hidden = policy.language_model(row, positions.expand(3, len(ids), -1), causal, video=prompt.video,
                                       checkpoint=checkpoint)  # fmt: skip
        used = hidden[:, len(prompt.ids_P) - 1 : -1].reshape(-1, hidden.shape[-1])
        mean = token_logprobs(policy, used, ids.reshape(-1), temperature=1.0).sum() / (G * R)
        if torch.is_grad_enabled():
            mean.backward()
        total += mean.detach()
    return total


def stock_decoding(policy: Policy, prompt: Prompt, G: int, steps: int) -> None:
    """The plain way: stock layers over a cache that repeats the prefix for every rollout."""
    from transformers.cache_utils import DynamicCache

    cache, (lm, head) = DynamicCache(), policy.language_model.children()
    embeds = prompt.video.place(lm.embed_tokens(prompt.ids_P.to(policy.device))[None])
    positions = prompt.positions_3P.to(policy.device)[:, None]
    levels: dict[str, Any] = {}
    if prompt.features.deepstack_LSND:
        visual = torch.zeros(1, len(prompt.ids_P), dtype=torch.bool, device=policy.device)
        visual[0, prompt.places_M] = True
        deep = [level.flatten(0, 1) for level in prompt.features.deepstack_LSND]
        levels = {"visual_pos_masks": visual, "deepstack_visual_embeds": deep}
    lm(inputs_embeds=embeds, position_ids=positions, past_key_values=cache, use_cache=True, **levels)
    cache.batch_repeat_interleave(G)
    token = torch.ones((G, 1), dtype=torch.long, device=policy.device)
    for t in range(steps):
        at = torch.full((3, G, 1), prompt.next_position + t, device=policy.device)
        out = lm(inputs_embeds=lm.embed_tokens(token), position_ids=at, past_key_values=cache, use_cache=True)
        token = torch.softmax(head(out.last_hidden_state[:, -1]).float(), -1).multinomial(1)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All parts, by name."""
    device, dtype = args.device, torch.bfloat16 if args.device == "cuda" else torch.float32
    t, h, w = (int(part) for part in args.grid.split(","))
    with tempfile.TemporaryDirectory() as folder:
        policy = random_policy(args.size, device, dtype, Path(folder))
        results: dict[str, Any] = {}

        def part(name: str, run: Callable[[], Any]) -> None:
            timed(name, run, results, device=device, repeats=args.repeats)

        side, levels = policy.encoder.tower.patch_size, policy.family.levels(policy.config)
        pixels = torch.randn(t, h * w, 3 * 2 * side * side, device=device, dtype=dtype)
        grid = torch.tensor([[t, h, w]], device=device)
        with torch.no_grad():
            part("tower, stock", lambda: policy.encoder.tower(pixels.flatten(0, 1), grid_thw=grid))
            part("tower, taro", lambda: policy.family.encode(policy.encoder.tower, pixels, (h, w)))
        width = policy.language_model.lm.config.hidden_size
        main, *deep = ((torch.randn(t, h * w // 4, width, device=device) * 0.02).to(dtype) for _ in range(1 + levels))
        features = VideoFeatures(main, np.arange(t) * 1.0, (t, h, w), 1.0, tuple(deep))
        prompt = policy.prompt(features, "x" * args.text)
        ids = torch.randint(0, 256, (1, args.group, args.response), device=device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        with torch.no_grad():
            part(
                "score a group, full rows", lambda: full_rows(policy, prompt, ids[0], rows=args.rows, checkpoint=False)
            )
            part("score a group, packed", lambda: score(policy, [prompt], ids, mask))
        for checkpoint in (True, False):
            label = "recomputed" if checkpoint else "kept"

            def packed(checkpoint: bool = checkpoint) -> None:
                score(policy, [prompt], ids, mask, checkpoint_activations=checkpoint).mean().backward()

            def plain(checkpoint: bool = checkpoint) -> None:
                full_rows(policy, prompt, ids[0], rows=args.rows, checkpoint=checkpoint)

            part(f"forward + backward, full rows, {label}", plain)
            policy.language_model.zero_grad()
            part(f"forward + backward, packed, {label}", packed)
            policy.language_model.zero_grad()
        draws = np.stack([[uniforms(args.decode, "bench", 0, g) for g in range(args.group)]])
        with torch.no_grad():
            part(
                f"decode {args.decode} tokens, stock cache",
                lambda: stock_decoding(policy, prompt, args.group, args.decode),
            )
        decoding = Decoding(args.decode)
        part(
            f"decode {args.decode} tokens, grouped",
            lambda: generate(policy, [prompt], G=args.group, decoding=decoding, uniforms_BGR=draws),
        )
    return results


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--grid", default="30,20,24", help="temporal patches, rows, columns before merging")
    parser.add_argument("--text", type=int, default=330, help="prompt tokens beside the video")
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--response", type=int, default=256)
    parser.add_argument("--decode", type=int, default=32)
    parser.add_argument("--rows", type=int, default=4, help="full rows at a time, the plain way's micro-batch")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    results = measure(args)
    name = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    print(json.dumps({"device": name, "size": args.size, "parts": results}, indent=1))


if __name__ == "__main__":
    main()
