"""What holds on a GPU in bf16, where real runs happen. Deselected without one; run with `pytest -m gpu tests/gpu`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from taro.core.draws import uniforms
from taro.models.attention import causal
from taro.models.decoder.prefix import PREFIX, plain
from taro.models.decoding import DECODERS, generate
from taro.models.features import FrameSampling
from taro.models.load import load_policy
from taro.models.logprobs import score, token_logprobs
from taro.models.sampler import Decoding
from taro.shards.tensors import pack_features, unpack_features
from tests.helpers_models import TINY

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
]

PACKED_TOLERANCE = 0.05
"""largest |difference| of a log-prob in bf16 between a packed row and a full row: other shapes, other roundings"""


@pytest.fixture(scope="module", params=sorted(TINY))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY[request.param](tmp_path_factory.mktemp("tiny"), dtype=torch.bfloat16, width=128)


@pytest.mark.parametrize(("height", "width"), [(120, 150), (84, 84), (224, 140)])
def test_cached_features_are_bit_equal_to_the_stock_tower_in_bf16(folder: Path, height: int, width: int) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    policy = load_policy(folder, tower=True, device="cuda", dtype=torch.bfloat16)
    frames = np.random.default_rng(0).integers(0, 256, (16, height, width, 3), dtype=np.uint8)
    features = policy.encode(frames, np.arange(16) / 2, FrameSampling(), duration_s=8.0)
    cached = unpack_features(pack_features(features))
    stock = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").cuda()
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)
    made = AutoProcessor.from_pretrained(folder).video_processor(
        videos=[video], do_sample_frames=False, return_tensors="pt"
    )
    with torch.no_grad():
        pixels = made["pixel_values_videos"].cuda().to(torch.bfloat16)
        plain = stock.model.visual(pixels, grid_thw=made["video_grid_thw"].cuda())
    levels = (plain.pooler_output, *getattr(plain, "deepstack_features", ()))
    assert len(levels) == 1 + len(cached.deepstack_LSND)
    for ours, theirs in zip((cached.main_SND, *cached.deepstack_LSND), levels, strict=True):
        assert torch.equal(ours.flatten(0, 1).cpu(), theirs.cpu())


@pytest.mark.parametrize("decoder", sorted(DECODERS))
def test_packed_rows_equal_full_rows_in_bf16(folder: Path, decoder: str) -> None:
    policy = load_policy(folder, tower=True, device="cuda", dtype=torch.bfloat16)
    policy.decoder = decoder
    frames = np.random.default_rng(1).integers(0, 256, (16, 84, 84, 3), dtype=np.uint8)
    features = policy.encode(frames, np.arange(16) / 2, FrameSampling(), duration_s=8.0)
    prompt = policy.prompt(features, "when does it happen?")
    draws = np.stack([[uniforms(64, "gpu", g) for g in range(8)]])
    rollouts = generate(policy, [prompt], G=8, decoding=Decoding(64), uniforms_BGR=draws)
    with torch.no_grad():
        packed = score(policy, [prompt], rollouts.ids_BGR, rollouts.mask_BGR)
        for g in range(8):
            valid = rollouts.mask_BGR[0, g]
            ids = rollouts.ids_BGR[0, g][valid]
            tail = torch.arange(prompt.next_position, prompt.next_position + len(ids)).expand(3, len(ids))
            positions = torch.cat([prompt.positions_3P, tail], 1).cuda()[:, None]
            row = torch.cat([prompt.ids_P.to(ids.device), ids])[None]
            hidden = policy.language_model(row, positions, causal, video=prompt.video)
            hidden = hidden[0, len(prompt.ids_P) - 1 : -1]
            plain = token_logprobs(policy, hidden, ids, temperature=1.0)
            gap = (packed[0, g][valid] - plain).abs().max()
            assert float(gap) < PACKED_TOLERANCE, f"rollout {g}: largest gap {float(gap):.3f}"
    decoded = (packed - rollouts.logprobs_BGR)[rollouts.mask_BGR].abs()
    assert float(decoded.max()) < 2 * PACKED_TOLERANCE and float(decoded.mean()) < 0.01


@pytest.mark.parametrize("decoder", sorted(DECODERS))
def test_draws_and_tokens_are_those_of_the_cpu_in_fp32(folder: Path, decoder: str) -> None:
    results = []
    for device in ("cpu", "cuda"):
        policy = load_policy(folder, tower=True, device=device, dtype=torch.float32)
        policy.decoder = decoder if device == "cuda" else "grouped"
        frames = np.random.default_rng(2).integers(0, 256, (8, 84, 84, 3), dtype=np.uint8)
        features = policy.encode(frames, np.arange(8) / 2, FrameSampling(), duration_s=4.0)
        draws = np.stack([[uniforms(12, "gpu", g) for g in range(8)]])
        made = generate(policy, [policy.prompt(features, "when?")], G=8, decoding=Decoding(12), uniforms_BGR=draws)
        results.append(made.ids_BGR.cpu())
    same = (results[0] == results[1]).all(-1).float().mean()
    assert float(same) >= 0.75, f"{float(same):.0%} of the rollouts are token for token the CPU's"


@pytest.mark.parametrize(("decoder", "at_once"), [("grouped", None), ("fused", None), ("fused", 2)])
def test_graphs_decode_as_the_packed_row_scores_while_prompts_leave(folder: Path, decoder: str,
                                                                    at_once: int | None) -> None:
    """fp32: a token's graph against plain packed rows; short prompts leave early, so graphs are captured again."""
    policy = load_policy(folder, tower=True, device="cuda", dtype=torch.float32)
    policy.decoder = decoder
    prompts = []
    for seed, (T, side) in enumerate(((8, 84), (4, 56), (16, 112))):
        frames = np.random.default_rng(seed).integers(0, 256, (T, side, side, 3), dtype=np.uint8)
        features = policy.encode(frames, np.arange(T) / 2, FrameSampling(), duration_s=T / 2)
        prompts.append(policy.prompt(features, "when" + "?" * seed))
    end = policy.eos_ids[0]
    forced = [[[65, 66]] * 4, [[65, 66, 67]] * 4, [[]] * 4]
    draws = np.stack([[uniforms(96, "graph", b, g) for g in range(4)] for b in range(3)])
    with torch.no_grad():  # make the end token likely, so that rollouts end at different times
        policy.language_model.head.weight[end] = policy.language_model.head.weight.mean(0) * 4
    made = generate(policy, prompts, G=4, decoding=Decoding(96), forced=forced, uniforms_BGR=draws, at_once=at_once)
    lengths = made.mask_BGR.sum(-1)
    assert int(lengths.min()) < int(lengths.max())
    scored = score(policy, prompts, made.ids_BGR, made.mask_BGR)
    torch.testing.assert_close(scored, made.logprobs_BGR, atol=1e-3, rtol=0)
    alone = generate(policy, prompts[:1], G=4, decoding=Decoding(96), forced=forced[:1], uniforms_BGR=draws[:1])
    assert float((alone.ids_BGR[0] == made.ids_BGR[0]).float().mean()) > 0.9


@pytest.mark.parametrize("name", ["flash_whole", "flash_blocks"])
@pytest.mark.parametrize("P", [40, 512, 1300])
def test_each_attention_to_a_prefix_is_the_plain_one(name: str, P: int) -> None:
    generator = torch.Generator("cuda").manual_seed(P)
    B, K, M, d = 5, 2, 56, 128
    q, k, v = (torch.randn(B, K, n, d, device="cuda", dtype=torch.bfloat16, generator=generator) for n in (M, P, P))
    lengths = torch.full((B,), P, device="cuda")
    if name == "flash_blocks":
        lengths = torch.tensor([P, 1, P // 2, P - 1, P // 3], device="cuda")
    mixed, sums = PREFIX[name](q, k, v, lengths)
    wanted, wanted_sums = plain(q.float(), k.float(), v.float(), lengths)
    torch.testing.assert_close(mixed.float(), wanted, atol=0.02, rtol=0.02)
    torch.testing.assert_close(sums.float(), wanted_sums, atol=0.02, rtol=0.002)
