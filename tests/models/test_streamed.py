"""Weights that are streamed, and layer inputs that leave the device: the numbers are those of the plain way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from taro.core.errors import ModelError
from taro.models.families import FAMILIES
from taro.models.load import load_compute, load_policy
from taro.models.logprobs import score
from taro.models.offload import Offload, offloaded_bytes
from taro.models.packing import one_group_a_row
from taro.models.policy import Policy
from taro.models.streamed import HostStore, StreamedPolicy
from tests.helpers_models import TINY
from tests.models.helpers import sampled

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[(name, tied) for name in sorted(FAMILIES) for tied in (True, False)],
                ids=lambda case: f"{case[0]}-{'tied' if case[1] else 'untied'}")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name, tied = request.param
    return TINY[name](tmp_path_factory.mktemp("tiny"), tied=tied)


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    return load_policy(folder, tower=True, trainable=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_streamed_policy_scores_as_a_whole_one(folder: Path, policy: Policy, dtype: str) -> None:
    prompts, rollouts = sampled(policy)
    bf16, double = dtype == "bfloat16", dtype == "float64"
    whole = load_compute(folder, CPU, bf16=bf16, double=double)
    streamed = StreamedPolicy(folder, CPU, HostStore(CPU), bf16=bf16, double=double)
    for _ in range(2):  # a second pass finds everything where it was
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            plain = score(whole, prompts, rollouts.ids_BGR, rollouts.mask_BGR, temperature=0.7)
            found = streamed.score(prompts, rollouts.ids_BGR, rollouts.mask_BGR, temperature=0.7)
        assert found.dtype == plain.dtype and torch.equal(found, plain) and float(plain.sum()) < 0
    held = sum(parameter.numel() for parameter in streamed.policy.parameters())
    assert held == policy.language_model.lm.norm.weight.numel(), "between passes the last norm alone is on the device"
    nobody = streamed.score([], rollouts.ids_BGR[:0], rollouts.mask_BGR[:0])
    assert nobody.shape == (0, *rollouts.ids_BGR.shape[1:])


def test_weights_that_do_not_fit_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, tmp_path / "odd")
    stored = load_file(tmp_path / "odd" / "model.safetensors")
    name = next(name for name in sorted(stored) if name.endswith("layers.1.mlp.up_proj.weight"))
    save_file({**stored, name: stored[name][:-1].contiguous()}, tmp_path / "odd" / "model.safetensors")
    with pytest.raises(ModelError, match=r"(?s)do not fit config\.json.*up_proj"):
        StreamedPolicy(tmp_path / "odd", CPU, HostStore(CPU), bf16=False)


@pytest.mark.parametrize("frozen", [False, True])
def test_offloaded_layer_inputs_give_the_gradients_of_kept_ones(policy: Policy, frozen: bool) -> None:
    """`frozen`: the embeddings do not train, so the first layer's input needs no gradient, but its weights do."""
    prompts, rollouts = sampled(policy)
    policy.language_model.lm.embed_tokens.requires_grad_(not frozen)
    offload = Offload(CPU)
    gradients = []
    for chosen in ({}, {"checkpoint_activations": True}, {"checkpoint_activations": offload}):
        policy.language_model.zero_grad()
        found = score(policy, prompts, rollouts.ids_BGR, rollouts.mask_BGR, **chosen)
        (found * rollouts.mask_BGR).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None})
    policy.language_model.requires_grad_(True)
    assert "lm.layers.0.mlp.up_proj.weight" in gradients[0]
    for other in gradients[1:]:
        assert other.keys() == gradients[0].keys()
        assert all(torch.equal(other[name], gradients[0][name]) for name in other)
    tokens = sum(len(row.ids_T) for row in one_group_a_row(prompts, rollouts.ids_BGR, rollouts.mask_BGR))
    lm = policy.language_model.lm
    assert offload.moved_bytes == (len(lm.layers) - 1) * tokens * lm.config.hidden_size * 4
    with torch.no_grad():
        score(policy, prompts, rollouts.ids_BGR, rollouts.mask_BGR, checkpoint_activations=offload)
    assert offload.moved_bytes == (len(lm.layers) - 1) * tokens * lm.config.hidden_size * 4, "no graph, nothing kept"


def test_offloaded_bytes_written_out() -> None:
    assert offloaded_bytes(28, 6000, 3584) == 27 * 2**27, "86 MB a layer lie in blocks of 128 MiB"
    assert offloaded_bytes(1, 6000, 3584) == 0
