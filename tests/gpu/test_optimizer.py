"""bfloat16 compute weights with float32 ones in the optimizer, beside float32 weights under autocast; and what each
setting of `optimizer.states` holds and takes at a billion parameters (printed: run with -s)."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from taro.models.load import load_compute, load_policy
from taro.models.logprobs import score
from taro.models.policy import Policy
from taro.models.prompt import Prompt
from taro.models.sampler import Rollouts
from taro.train.config import OptimizerConfig
from taro.train.optimizer.optimizer import Optimizer
from taro.train.optimizer.rounding import element_bits, name_key
from tests.helpers_models import TINY
from tests.models.helpers import sampled

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
]

LR = 1e-3
BILLION = {"layers.0.big": (128, 1 << 20), "layers.1.big": (896, 1 << 20), "layers.1.norm": (4096,)}
"""shapes whose elements are 2**30 and a norm"""


def logprobs(policy: Policy, prompts: list[Prompt], rollouts: Rollouts) -> torch.Tensor:
    """Of two groups of responses, with a graph."""
    with torch.autocast("cuda", torch.bfloat16):
        return score(policy, prompts, rollouts.ids_BGR, rollouts.mask_BGR)


def test_random_bits_are_those_of_the_cpu() -> None:
    for key, start in ((name_key("x"), 0), (2**63 - 1, 2**31 - 5)):
        mine, theirs = (element_bits(key, start, start + 100_000, torch.device(one)) for one in ("cpu", "cuda"))
        assert torch.equal(mine, theirs.cpu())


@pytest.mark.parametrize("name", sorted(TINY))
@pytest.mark.parametrize("tied", [True, False])
def test_bfloat16_weights_compute_what_autocast_over_float32_does(name: str, tied: bool, tmp_path: Path) -> None:
    """Files in bfloat16, as released ones are. Before an update bit for bit; after one, weights and log-probs are near
    (the embeddings' gradient is rounded once more)."""
    folder = TINY[name](tmp_path / "model", dtype=torch.bfloat16, tied=tied)
    prompts, rollouts = sampled(load_policy(folder, tower=True))
    device = torch.device("cuda")
    short = load_compute(folder, device, bf16=True, trainable=True)
    full = load_policy(folder, device=device, trainable=True)
    assert {one.dtype for one in short.parameters()} == {torch.bfloat16, torch.float32}
    config = OptimizerConfig(lr=LR, weight_decay=0.0)
    optimizer = Optimizer(short.named_parameters(), config)
    stock = torch.optim.AdamW(full.parameters(), lr=LR, betas=config.betas, eps=config.eps, weight_decay=0.0)
    first, wanted = logprobs(short, prompts, rollouts), logprobs(full, prompts, rollouts)
    assert torch.equal(first, wanted)
    first.mean().neg().backward()
    wanted.mean().neg().backward()
    norm = float(torch.nn.utils.clip_grad_norm_(full.parameters(), 1e9))
    assert optimizer.norm() == pytest.approx(norm, rel=0.01)
    optimizer.step(LR)
    stock.step()
    masters = {slot.name: slot.weight.view(slot.parameter.shape) for slot in optimizer.slots}
    apart = [(masters[name] - one).abs().mean() for name, one in full.named_parameters()]
    assert float(torch.stack(apart).detach().max()) < 0.2 * LR, "of a step of LR an element"
    with torch.no_grad():
        assert float((logprobs(short, prompts, rollouts) - logprobs(full, prompts, rollouts)).abs().mean()) < 0.05
    moved = (logprobs(full, prompts, rollouts).detach() - wanted.detach()).abs().mean()
    assert float(moved) > 0.05, "the step was no step"


@pytest.mark.parametrize(("states", "held"), [("float32", 18), ("bfloat16", 14), ("8bit", 6)])
def test_bytes_and_seconds_of_a_billion_parameters(states: str, held: int) -> None:
    """What is held for good as the setting says; a step's temporary tensors are of a chunk, never of the model."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    named = {name: torch.nn.Parameter(torch.full(shape, 0.02, dtype=torch.float32 if "norm" in name
                                                 else torch.bfloat16, device="cuda"))
             for name, shape in BILLION.items()}  # fmt: skip
    count = sum(one.numel() for one in named.values())
    optimizer = Optimizer(named.items(), OptimizerConfig.model_validate({"states": states}))

    def backward() -> None:
        sum((one.sum() for one in named.values()), torch.zeros((), device="cuda")).backward()
        optimizer.collect()

    seconds = []
    for _ in range(3):
        backward()
        norm = optimizer.norm()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        now, started = torch.cuda.memory_allocated(), time.monotonic()
        optimizer.step(1e-6, optimizer.clipped(norm))
        torch.cuda.synchronize()
        seconds.append(time.monotonic() - started)
        peak = torch.cuda.max_memory_allocated() - now
        optimizer.begin()
    backward()
    allocated = (torch.cuda.memory_allocated() - before) / count
    print(json.dumps({"states": states, "bytes": round(allocated, 3), "named": round(optimizer.bytes_per_parameter, 3),
                      "step_s": round(min(seconds), 4), "temporary_gib": round(peak / 2**30, 2)}))
    assert allocated == pytest.approx(held, abs=0.1)
    assert optimizer.bytes_per_parameter == pytest.approx(held, abs=0.1)
    assert peak < 3 * 2**30
