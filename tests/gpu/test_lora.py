"""Adapters on a GPU: no float32 copy of the base, a replica whose gap is bfloat16's, and a run from start to export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from taro.models.adapters import Lora, Merged, adapters_off, add_adapters
from taro.models.attention import causal
from taro.models.load import load_compute
from taro.models.policy import Policy
from tests.gpu.test_training import run, world_shards
from tests.helpers_models import tiny_qwen2_5_vl

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
]

CUDA = torch.device("cuda")
WIDTH = 1024
SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 20 million weights, in bfloat16 as released models are."""
    return tiny_qwen2_5_vl(tmp_path_factory.mktemp("model") / "base", width=WIDTH, dtype=torch.bfloat16)


def logprobs(policy: Policy) -> torch.Tensor:
    ids = torch.arange(3, 67, device=CUDA)[None]
    positions = torch.arange(64, device=CUDA).expand(3, 1, 64)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        hidden = policy.language_model(ids, positions, causal)
        return policy.language_model.head(hidden).float().log_softmax(-1)


@pytest.mark.parametrize("dora", [False, True])
def test_the_base_is_never_there_in_float32(folder: Path, dora: bool) -> None:
    """Peak below 2.3 bytes a base parameter while base and adapters are loaded, the adapters' own bytes aside."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    policy = load_compute(folder, CUDA, bf16=True)
    add_adapters(policy, Lora(8, 16.0, 0.0, SEVEN, dora=dora), seed=0)
    adapters = sum(one.numel() for _, one in policy.trained())
    base = sum(one.numel() for one in policy.parameters()) - adapters
    largest = max(one.numel() for one in policy.parameters())
    peak = torch.cuda.max_memory_allocated() - before
    # One Linear's row norms (DoRA) and a tensor's check for finite numbers take a copy of one tensor at most.
    assert peak < 2.3 * base + 4 * adapters + 8 * largest, f"{peak:,} bytes for {base:,} + {adapters:,} parameters"
    assert torch.cuda.memory_allocated() - before < 2.3 * base + 4 * adapters


@pytest.mark.parametrize("dora", [False, True])
def test_the_gap_of_the_replica_is_bfloat16s(folder: Path, dora: bool) -> None:
    """Mean |merged - unmerged| log-prob: 0 at the start, then well below rollout.max_gap's default; off is the base."""
    policy = load_compute(folder, CUDA, bf16=True)
    start = logprobs(policy)
    add_adapters(policy, Lora(8, 16.0, 0.0, SEVEN, dora=dora), seed=0)
    merged = Merged(policy)
    if not dora:
        assert torch.equal(logprobs(policy), start) and torch.equal(logprobs(merged.policy), start)
    generator = torch.Generator(CUDA).manual_seed(0)
    with torch.no_grad():
        for name, one in policy.trained():
            if "lora_B" in name:
                one.normal_(std=0.002, generator=generator)
    merged.refresh()
    moved = float((logprobs(policy) - start).abs().mean())
    gap = float((logprobs(merged.policy) - logprobs(policy)).abs().mean())
    print(f"moved {moved:.4f}, gap {gap:.4f}")
    assert 0 < gap < 0.05 and moved > 2 * gap
    with adapters_off(policy):
        assert torch.equal(logprobs(policy), start)


@pytest.mark.parametrize("name", ["policy", "policy-qwen3-vl"])
def test_a_run_with_adapters(tmp_path: Path, name: str) -> None:
    """KL 0 at the first step, gradients, gaps within the bound, and both exports."""
    out = tmp_path / "run"
    lines = run(name, world_shards(tmp_path / "shards", name), out, lora={"rank": 8, "dropout": 0.05})
    steps = [line for line in lines if "loss" in line]
    assert steps[0]["kl"] == 0.0 and all(line["grad_norm"] > 0 or line["zero_variance"] == 1 for line in steps)
    assert all(line["logprob_gap"] < 0.1 and not line["skipped"] for line in steps)
    assert (out / "export" / "model.safetensors").is_file() and (out / "adapter" / "adapter_config.json").is_file()
