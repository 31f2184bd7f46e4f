"""What a decoding step costs beside what its bytes need: the decoder of taro.models.decoder, today's default
(taro.models.grouped), and the least that a step could be made of, in one run on one machine.

128 sequences over 16 prompts of 3,930 tokens, random weights of released shape, dtypes of training (bfloat16 matrices,
float32 norms and residuals). The floor is the time to read weights, prefixes and 256 own tokens once at --bandwidth.
`bare`: one compiled layer, flash attention over prompts of one length, all rows at one place, tokens by one float32
sum: what a step costs that can do nothing else. Each way of prefix attention of the decoder is measured; a way that
fails is recorded. `whole`: all of `generate`, prompts read and graphs captured, with the gap between its log-probs and
scoring's.

    python benchmarks/decoding.py --device cuda                  # 3b, 7b, qwen3-8b: within 8 minutes on an H100
    python benchmarks/decoding.py --device cuda --size 7b --profile
    python benchmarks/decoding.py                                # tiny, on the CPU
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import linear, silu

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.shapes import SHAPES
from benchmarks.step import random_policy
from taro.core.draws import uniforms
from taro.models import grouped
from taro.models.decoder import generate as decoder
from taro.models.decoder.body import Caches, layer_of, next_token_of, normed
from taro.models.decoder.generate import How
from taro.models.decoder.prefix import PREFIX, PrefixAttention, flash_whole, merge, plain
from taro.models.decoder.rows import Drawn, Rows
from taro.models.decoder.steps import Steps, compile_seconds
from taro.models.decoder.weights import Layer
from taro.models.features import VideoFeatures
from taro.models.logprobs import score
from taro.models.policy import Policy
from taro.models.prompt import Prompt
from taro.models.sampler import Decoding, Rollouts

REPLAYS = 40


def prompts_of(policy: Policy, args: argparse.Namespace) -> list[Prompt]:
    """Prompts of one length over random features."""
    t, h, w = (int(part) for part in args.grid.split(","))
    width, levels = policy.language_model.lm.config.hidden_size, policy.family.levels(policy.config)
    dtype = policy.language_model.head.weight.dtype
    main, *deep = ((torch.randn(t, h * w // 4, width, device=args.device) * 0.02).to(dtype) for _ in range(1 + levels))
    features = VideoFeatures(main, np.arange(t) * 1.0, (t, h, w), 1.0, tuple(deep))
    bare = len(policy.prompt(features, "").ids_P)
    return [policy.prompt(features, "x" * max(args.tokens - bare, 1)) for _ in range(args.prompts)]


def floor_ms(rows: Rows, bandwidth: float) -> float:
    """Milliseconds to read weights, prefixes and own tokens once."""
    weights = sum(one.nbytes for layer in rows.layers for part in layer
                  for one in (part if isinstance(part, tuple) else (part,)))
    caches = sum(cache.nbytes for kind in (rows.prefix_k, rows.prefix_v, rows.own_k, rows.own_v) for cache in kind)
    return (weights + rows.head_VD.nbytes + caches) / bandwidth * 1e3


def step_ms(rows: Rows, step: Callable[[], None], *, place: int) -> float:
    """Milliseconds of a step, by a CUDA graph where there is a GPU; rows begin at `place`."""
    cuda = rows.policy.device.type == "cuda"

    def begin() -> None:
        rows.at_N.fill_(place)
        rows.done_N.fill_(False)

    begin()
    if cuda:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        step = graph.replay
    for _ in range(3):
        step()
    begin()
    synchronize(cuda)
    started = time.perf_counter()
    for _ in range(REPLAYS):
        step()
    synchronize(cuda)
    return (time.perf_counter() - started) / REPLAYS * 1e3


def synchronize(cuda: bool) -> None:
    """Waits for the GPU."""
    if cuda:
        torch.cuda.synchronize()


def bare_step(rows: Rows, prefix: PrefixAttention, place: int) -> Callable[[], None]:
    """See the module."""
    H, K, d, eps, head_eps, _ = rows.shape
    B, G, R = len(rows.lengths_B), rows.drawn.G, rows.drawn.R
    N, Q, model = B * G, H // K, rows.policy.language_model
    at, token_N = torch.full((1,), place, device=rows.at_N.device), torch.zeros_like(rows.at_N)
    draw_N1, slots = torch.rand(N, 1, device=at.device), torch.arange(R, device=at.device)

    def layer(x_ND: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, w: Layer, caches: Caches) -> torch.Tensor:
        dtype = w.out.dtype
        qkv = linear(normed(x_ND, w.norm, eps).to(dtype), w.qkv[0], w.qkv_bias[0] if w.qkv_bias else None)
        q, k, v = qkv.view(N, H + 2 * K, d).split([H, K, K], 1)
        if w.head_norms:
            q, k = normed(q, w.head_norms[0], head_eps), normed(k, w.head_norms[1], head_eps)
        q, k = ((one * cos + torch.cat([-one[..., d // 2 :], one[..., : d // 2]], -1) * sin).to(dtype)
                for one in (q, k))
        caches.own_k.index_copy_(2, at, k.unsqueeze(2))
        caches.own_v.index_copy_(2, at, v.unsqueeze(2))
        cells = q.view(B, G, K, Q, d).permute(0, 2, 1, 3, 4).reshape(B, K, G * Q, d)
        mixed, sums = prefix(cells, caches.prefix_k, caches.prefix_v, rows.lengths_B)
        mixed = mixed.view(B, K, G, Q, d).permute(0, 2, 1, 3, 4).reshape(N, K, Q, d)
        sums = sums.view(B, K, G, Q).permute(0, 2, 1, 3).reshape(N, K, Q)
        scores = (q.view(N, K, Q, d) @ caches.own_k.transpose(-1, -2)).float() * d**-0.5
        scores = torch.where(slots > at, float("-inf"), scores)
        own_sums = torch.logsumexp(scores, -1)
        own = (scores - own_sums[..., None]).exp().to(dtype) @ caches.own_v
        x_ND = x_ND + linear(merge(mixed, sums, own, own_sums).reshape(N, H * d), w.out)
        gate, up = linear(normed(x_ND, w.mlp_norm, eps).to(dtype), w.gate_up[0]).chunk(2, -1)
        return x_ND + linear(silu(gate) * up, w.down)

    body = torch.compile(layer, dynamic=False) if at.device.type == "cuda" else layer

    def step() -> None:
        x_ND = model.lm.embed_tokens.weight[token_N].to(model.lm.norm.weight.dtype)
        cos, sin = model.lm.rotary_emb(x_ND[:1, None], (rows.next_N[:1] + at)[None, :, None].expand(3, -1, 1))
        for n, weights in enumerate(rows.layers):
            caches = Caches(rows.prefix_k[n], rows.prefix_v[n], rows.own_k[n], rows.own_v[n])
            x_ND = body(x_ND, cos[0], sin[0], weights, caches)
        x_ND = normed(x_ND, model.lm.norm.weight, model.lm.norm.variance_epsilon)
        probs = torch.log_softmax(linear(x_ND.to(rows.dtype), rows.head_VD).float(), -1)
        sums = probs.exp().cumsum(-1)
        token_N.copy_((sums < draw_N1 * sums[:, -1:]).sum(-1).clamp(max=len(rows.head_VD) - 1))
        at.add_(1).clamp_(max=R - 1)

    return step


def measure(policy: Policy, args: argparse.Namespace) -> dict[str, Any]:
    """All figures of one model."""
    prompts, cuda = prompts_of(policy, args), args.device == "cuda"
    draws = np.stack([[uniforms(args.response, "decoding", a, g) for g in range(args.group)]
                      for a in range(len(prompts))])
    found = steps(policy, prompts, draws, args)
    how = How(compiled=cuda, prefix=args.prefix if cuda else "plain")
    ways: dict[str, Callable[..., Rollouts]] = {
        "today": lambda *data, **knobs: grouped.generate(*data, **knobs),
        "decoder": lambda *data, **knobs: decoder.generate(*data, **knobs, how=how)}
    return {**found, "whole": {name: whole(way, policy, prompts, draws, args) for name, way in ways.items()}}


def steps(policy: Policy, prompts: list[Prompt], draws: np.ndarray, args: argparse.Namespace) -> dict[str, Any]:
    """Of a step: its floor, and each way's milliseconds, their ratio, seconds to begin and to compile."""
    (A, G, R), cuda = draws.shape, args.device == "cuda"
    decoding, P = Decoding(R), len(prompts[0].ids_P)
    rows = Rows(policy, Drawn(policy, A, G, R, draws), [[]] * (A * G), decoding, slots=A, P=P, prefix=plain)
    with torch.no_grad(), torch.autocast(args.device, torch.bfloat16, enabled=cuda):
        for number, prompt in enumerate(prompts):
            rows.admit(number, number, prompt)
    found: dict[str, Any] = {"prompt_tokens": P, "floor_ms": floor_ms(rows, args.bandwidth), "step_ms": {},
                             "over_floor": {}, "begun_s": {}, "compile_s": {}}
    place = max(R - REPLAYS - 8, 0)

    def part(name: str, step: Callable[[], Callable[[], None]]) -> None:
        before, started = compile_seconds(), time.perf_counter()
        try:
            with torch.no_grad(), torch.autocast(args.device, enabled=False):
                ms = step_ms(rows, step(), place=place)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            found["step_ms"][name] = f"{type(error).__name__}: {error!s:.200}"
        else:
            found["step_ms"][name] = round(ms, 3)
            found["over_floor"][name] = round(ms / found["floor_ms"], 2)
            found["begun_s"][name] = round(time.perf_counter() - started, 1)
            found["compile_s"][name] = round(compile_seconds() - before, 1)
        print(f"  {name:34} {found['step_ms'][name]}", file=sys.stderr, flush=True)

    def of_decoder(prefix: str, *, compiled: bool) -> Callable[[], None]:
        rows.prefix = PREFIX[prefix]
        rows.body, rows.next_token = layer_of(rows.shape, rows.prefix), next_token_of(decoding)
        Steps(rows, compiled=compiled, graphs=False)

        def step() -> None:
            rows.choose()
            rows.forward(reach=R)

        return step

    part("bare", lambda: bare_step(rows, flash_whole if cuda else plain, place))
    for prefix in PREFIX if cuda else ["plain"]:
        part(f"decoder, prefix {prefix}", partial(of_decoder, prefix, compiled=cuda))
    part("decoder, not compiled", partial(of_decoder, "flash_whole" if cuda else "plain", compiled=False))
    if args.profile and cuda:
        found["kernels_ms"] = profile(of_decoder(args.prefix, compiled=True), rows, place)
    return found


def whole(generate: Callable[..., Rollouts], policy: Policy, prompts: list[Prompt], draws: np.ndarray,
          args: argparse.Namespace) -> dict[str, float | str]:
    """Seconds of `generate` for all tokens and for one, the difference a token, and the gap to scoring."""
    cuda, seconds = args.device == "cuda", {}
    autocast = torch.autocast(args.device, torch.bfloat16, enabled=cuda)
    try:
        for R in (1, draws.shape[2]):
            if cuda:
                torch.cuda.empty_cache()
            synchronize(cuda)
            started = time.perf_counter()
            with autocast:
                drawn = generate(policy, prompts, G=draws.shape[1], decoding=Decoding(R), uniforms_BGR=draws[..., :R])
            synchronize(cuda)
            seconds[R] = time.perf_counter() - started
        with torch.no_grad(), autocast:
            scored = score(policy, prompts[:1], drawn.ids_BGR[:1], drawn.mask_BGR[:1])
    except (RuntimeError, TypeError, NotImplementedError) as error:
        return {"failed": f"{type(error).__name__}: {error!s:.200}"}
    gap = (scored - drawn.logprobs_BGR[:1])[drawn.mask_BGR[:1]].abs()
    R = draws.shape[2]
    return {"seconds": round(seconds[R], 2), "a_token_ms": round((seconds[R] - seconds[1]) / (R - 1) * 1e3, 2),
            "gap_mean": float(f"{float(gap.mean()):.2g}"), "gap_largest": float(f"{float(gap.max()):.2g}")}


def profile(step: Callable[[], None], rows: Rows, place: int) -> dict[str, float]:
    """Milliseconds of a step's kernels, the longest first."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    rows.at_N.fill_(place)
    with torch.no_grad(), torch.autocast("cuda", enabled=False):
        step()
        with profiler(activities=[ProfilerActivity.CUDA]) as trace:
            step()
            torch.cuda.synchronize()
    longest = sorted(trace.key_averages(), key=lambda one: -one.device_time_total)[:16]
    return {f"{one.count} x {one.key[:90]}": round(one.device_time_total / 1e3, 3) for one in longest}


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=SHAPES, action="append", help="again for another; 3b, 7b, qwen3-8b, or tiny")
    parser.add_argument("--prompts", type=int, help="16, or 3")
    parser.add_argument("--group", type=int, help="8, or 2")
    parser.add_argument("--tokens", type=int, help="of a prompt: 3930, or 120")
    parser.add_argument("--response", type=int, help="256, or 56")
    parser.add_argument("--grid", help="temporal patches, rows, columns before merging: 30,20,24 or 4,8,8")
    parser.add_argument("--prefix", choices=PREFIX, default="flash_blocks", help="of `whole`")
    parser.add_argument("--bandwidth", type=float, default=3.0e12, help="bytes a second that the floor is at")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    cuda = args.device == "cuda"
    for name, real, tiny in (("size", ["3b", "7b", "qwen3-8b"], ["tiny", "qwen3-tiny"]), ("prompts", 16, 3),
                             ("group", 8, 2), ("tokens", 3930, 120), ("response", 256, 56),
                             ("grid", "30,20,24", "4,8,8")):
        if getattr(args, name) is None:
            setattr(args, name, real if cuda else tiny)
    for size in args.size:
        print(size, file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            policy = random_policy(size, args.device, torch.bfloat16 if cuda else torch.float32, Path(folder))
            policy.encoder = None
            policy.language_model.requires_grad_(False)
            for name, module in policy.language_model.named_modules():
                if name.endswith("norm"):
                    module.float()
            found = measure(policy, args)
        print(json.dumps({"device": torch.cuda.get_device_name() if cuda else "cpu", "torch": torch.__version__,
                          "size": size, "sequences": args.prompts * args.group, **found}), flush=True)
        del policy
        if cuda:
            torch._dynamo.reset()
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
