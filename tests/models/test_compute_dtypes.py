"""Weights kept in bfloat16 compute what float32 weights under autocast do, bit for bit, gradients included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from taro.models.families import FAMILIES
from taro.models.load import load_compute, load_policy
from taro.models.logprobs import score
from tests.helpers_models import TINY
from tests.models.helpers import sampled

CPU = torch.device("cpu")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_short_weights_score_and_learn_as_float32_ones_under_autocast(tmp_path: Path, name: str, tied: bool) -> None:
    folder = TINY[name](tmp_path / "policy", tied=tied, dtype=torch.bfloat16)  # as released weights are
    prompts, rollouts = sampled(load_policy(folder, tower=True))
    found = {}
    for kind, policy in (("float32", load_policy(folder, trainable=True)),
                         ("short", load_compute(folder, CPU, bf16=True, trainable=True))):  # fmt: skip
        with torch.autocast("cpu", torch.bfloat16):
            logprobs = score(policy, prompts, rollouts.ids_BGR, rollouts.mask_BGR, temperature=0.7)
        logprobs.sum().backward()
        found[kind] = logprobs.detach(), {n: p.grad for n, p in policy.named_parameters()}
        kinds = {n: p.dtype for n, p in policy.named_parameters()}
        if kind == "short":
            assert all((dtype == torch.float32) == ("norm" in n) for n, dtype in kinds.items())
    assert torch.equal(found["float32"][0], found["short"][0])
    for n, gradient in found["float32"][1].items():
        ours = found["short"][1][n]
        assert ours is not None and gradient is not None
        rounded = torch.nn.functional.cosine_similarity(gradient.flatten(), ours.float().flatten(), dim=0)
        assert float(rounded) > 0.9999, n
        if "norm" in n or "layers" in n:  # the embeddings' own are rounded once more
            torch.testing.assert_close(ours.float(), gradient, rtol=2**-7, atol=1e-6)
