"""On a GPU: a reference in the host's memory and offloaded layer inputs give the plain way's bits, in less memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from taro.models.load import load_compute, load_policy
from taro.models.logprobs import score
from taro.models.offload import Offload
from taro.models.packing import one_group_a_row
from taro.models.policy import Policy
from taro.models.prompt import Prompt
from taro.models.sampler import Rollouts
from taro.models.streamed import HostStore, StreamedPolicy
from tests.helpers_models import TINY
from tests.models.helpers import sampled

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
]

CUDA = torch.device("cuda")


@pytest.fixture(scope="module", params=sorted(TINY))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY[request.param](tmp_path_factory.mktemp("tiny"), dtype=torch.bfloat16, tied=False, width=512)


@pytest.fixture(scope="module")
def given(folder: Path) -> tuple[list[Prompt], Rollouts]:
    return sampled(load_policy(folder, tower=True))


def bytes_of(policy: Policy) -> list[int]:
    """Of each layer."""
    return [sum(p.nbytes for p in layer.parameters()) for layer in policy.language_model.lm.layers]


@pytest.mark.parametrize("bf16", [False, True])
def test_a_reference_on_the_host_scores_as_one_on_the_gpu(
        folder: Path, given: tuple[list[Prompt], Rollouts], bf16: bool) -> None:
    prompts, rollouts = given
    whole = load_compute(folder, CUDA, bf16=bf16)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        plain = score(whole, prompts, rollouts.ids_BGR, rollouts.mask_BGR)
    layer = max(bytes_of(whole))
    del whole
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    streamed = StreamedPolicy(folder, CUDA, HostStore(CUDA), bf16=bf16)
    for _ in range(3):
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            found = streamed.score(prompts, rollouts.ids_BGR, rollouts.mask_BGR)
        assert torch.equal(found, plain)
    held = torch.cuda.memory_allocated() - before
    assert held < layer, f"{held} bytes stay on the GPU between passes; a layer has {layer}"
    seen = [torch.cuda.memory_allocated() - before for _ in streamed._each_layer()]
    assert max(seen) < 3 * layer and len(seen) == len(streamed.policy.language_model.lm.layers)


def test_offloaded_layer_inputs_give_the_same_gradients_and_leave_the_gpu(
        folder: Path, given: tuple[list[Prompt], Rollouts]) -> None:
    prompts, rollouts = given
    policy = load_policy(folder, device="cuda", trainable=True)
    offload = Offload(CUDA)
    gradients, graphs = [], []
    for chosen in (True, True, offload, offload):  # libraries take memory of their own in the first
        policy.language_model.zero_grad()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", torch.bfloat16):
            found = score(policy, prompts, rollouts.ids_BGR, rollouts.mask_BGR, checkpoint_activations=chosen)
        torch.cuda.synchronize()
        graphs.append(torch.cuda.memory_allocated() - before)
        (found * rollouts.mask_BGR.cuda()).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None})
        del found
    for other in gradients[1:]:
        assert all(torch.equal(other[name], gradients[0][name]) for name in other)
    tokens = sum(len(row.ids_T) for row in one_group_a_row(prompts, rollouts.ids_BGR, rollouts.mask_BGR))
    moved = (len(policy.language_model.lm.layers) - 1) * tokens * 512 * 4
    assert offload.moved_bytes == 2 * moved
    assert graphs[1] - graphs[2] > moved * 0.9 and graphs[3] <= graphs[2] + 4096
