"""A pass that reuses the keys and values of another equals the plain pass over whole rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from taro.models.load import load_policy
from taro.models.logprobs import score
from taro.models.reused import KeptPrefixes, shared_tokens
from tests.helpers_models import TINY
from tests.models.helpers import sampled


@pytest.fixture(scope="module", params=sorted(TINY))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = TINY[request.param](tmp_path_factory.mktemp("policy"))
    return made


@pytest.mark.parametrize("recompute", [False, True])
def test_a_disrupted_pass_behind_kept_keys_equals_the_whole_pass(folder: Path, recompute: bool) -> None:
    policy = load_policy(folder, tower=True, trainable=True)
    prompts, rollouts = sampled(policy)
    disrupted, first = [], []
    for b, prompt in enumerate(prompts):
        order = np.arange(prompt.features.grid_thw[0])
        order[2 - b], order[1 - b] = 1 - b, 2 - b
        disrupted.append(prompt.with_features(prompt.features.permuted(order)))
        first.append(int(prompt.places_M[(1 - b) * prompt.features.main_SND.shape[1]]))
    shared = [shared_tokens(a, b) for a, b in zip(prompts, disrupted, strict=True)]
    assert shared == first and shared[0] > shared[1] > 0
    assert shared_tokens(prompts[0], prompts[0]) == len(prompts[0].ids_P)
    kept = KeptPrefixes(shared)
    old = score(policy, prompts, rollouts.ids_BGR, rollouts.mask_BGR, packer=kept.keep,
                checkpoint_activations=recompute)  # fmt: skip
    with torch.no_grad():
        plain = score(policy, prompts, rollouts.ids_BGR, rollouts.mask_BGR)
        wanted = score(policy, disrupted, rollouts.ids_BGR, rollouts.mask_BGR)
        found = score(policy, disrupted, rollouts.ids_BGR, rollouts.mask_BGR, packer=kept.reuse)
    assert torch.allclose(old.detach(), plain, atol=1e-6) and not torch.allclose(wanted, plain, atol=1e-4)
    assert torch.allclose(found, wanted, atol=1e-5), (found - wanted).abs().max()
    old.sum().backward()  # layers that are computed again keep nothing
    assert all(not prefix._kept for prefix in kept._prefixes)
    gradients = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
    for p in policy.parameters():
        p.grad = None
    score(policy, prompts, rollouts.ids_BGR, rollouts.mask_BGR).sum().backward()
    for one, two in zip(gradients, [p.grad for p in policy.parameters() if p.grad is not None], strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-6)
