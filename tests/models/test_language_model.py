"""The language model calls every stock module, so hooks, adapters and FSDP2 reach scoring and decoding; what attends is
handed in and never looked up; other rows and other samplers fit the same seams."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from taro.models.attention import causal, masked
from taro.models.families import FAMILIES
from taro.models.grouped import generate
from taro.models.language_model import hidden_states
from taro.models.load import load_policy
from taro.models.logprobs import row_logprobs, score
from taro.models.packing import PackedBatch, pack
from taro.models.policy import Policy
from taro.models.prompt import Prompt
from taro.models.sampler import Decoding
from tests.helpers_models import TINY
from tests.models.helpers import CASES, make_prompt, sampled


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY[request.param](tmp_path_factory.mktemp("tiny"), tied=False)


@pytest.fixture
def policy(folder: Path) -> Policy:
    return load_policy(folder, tower=True, trainable=True)


def scored(policy: Policy, prompts: Sequence[Prompt], ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return score(policy, prompts, ids, mask)


def greedy(policy: Policy, prompt: Prompt) -> torch.Tensor:
    return generate(policy, [prompt], G=1, decoding=Decoding(6, temperature=0.0)).logprobs_BGR


def test_every_module_with_weights_is_called_by_scoring_and_by_decoding(policy: Policy) -> None:
    prompts, rollouts = sampled(policy)
    called: set[str] = set()
    wanted = {name for name, module in policy.language_model.named_modules() if [*module.parameters(recurse=False)]}
    assert {"head", "lm.norm", "lm.embed_tokens", "lm.layers.0.self_attn.q_proj", "lm.layers.1.mlp.up_proj"} <= wanted
    layers = {f"lm.layers.{n}" for n in range(len(policy.language_model.lm.layers))}
    for name, module in policy.language_model.named_modules():
        module.register_forward_hook(lambda module, args, out, name=name: called.add(name))
    for run in (lambda: scored(policy, prompts, rollouts.ids_BGR, rollouts.mask_BGR), lambda: sampled(policy)):
        called.clear()
        run()
        assert {*wanted, *layers} <= called


def test_a_lora_adapter_changes_scoring_and_decoding_alike_and_trains(policy: Policy) -> None:
    from peft import LoraConfig, get_peft_model

    prompts, before = sampled(policy)
    plain = scored(policy, prompts, before.ids_BGR, before.mask_BGR)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "head"]
    policy.language_model = get_peft_model(policy.language_model, LoraConfig(r=2, target_modules=targets))
    assert torch.equal(scored(policy, prompts, before.ids_BGR, before.mask_BGR), plain), "a fresh adapter adds nothing"
    adapter = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    assert adapter and all("lora" in name for name in adapter)
    optimizer = torch.optim.SGD(adapter.values(), lr=1.0)
    for _ in range(2):  # the second half of a fresh adapter is zero, so the first moves from the second step on
        logprobs = score(policy, prompts, before.ids_BGR, before.mask_BGR, checkpoint_activations=True)
        (-logprobs.sum() / before.mask_BGR.sum()).backward()
        optimizer.step()
        moved = [name for name, p in adapter.items() if p.grad is not None and float(p.grad.abs().max()) > 0]
        optimizer.zero_grad()
    assert len(moved) == len(adapter)
    prompts, drawn = sampled(policy)
    after = scored(policy, prompts, drawn.ids_BGR, drawn.mask_BGR)
    torch.testing.assert_close(after, drawn.logprobs_BGR, atol=1e-4, rtol=0)
    again = scored(policy, prompts, before.ids_BGR, before.mask_BGR)
    assert float(again.sum()) > float(plain.sum()) + 1, "it learned what it was shown"
    with policy.language_model.disable_adapter():
        assert torch.equal(scored(policy, prompts, before.ids_BGR, before.mask_BGR), plain)


def test_fsdp2_shards_it_layer_by_layer(policy: Policy, folder: Path, tmp_path: Path) -> None:
    """One process: the wrapped policy scores, decodes and gets the gradients of the plain one, recomputed or not."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    prompts, rollouts = sampled(policy)
    plain = score(policy, prompts, rollouts.ids_BGR, rollouts.mask_BGR)
    plain.sum().backward()
    wanted = {name: p.grad for name, p in policy.named_parameters()}
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        sharded = load_policy(folder, trainable=True)
        for layer in sharded.language_model.lm.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(sharded.language_model, mesh=mesh)
        for checkpointed in (False, True):
            found = score(sharded, prompts, rollouts.ids_BGR, rollouts.mask_BGR, checkpoint_activations=checkpointed)
            assert torch.equal(found, plain)
            found.sum().backward()
            for name, parameter in sharded.named_parameters():
                torch.testing.assert_close(parameter.grad.full_tensor(), wanted[name], msg=name)
            sharded.language_model.zero_grad()
        torch.testing.assert_close(greedy(sharded, prompts[0]), greedy(policy, prompts[0]), atol=1e-5, rtol=0)
    finally:
        dist.destroy_process_group()


def test_each_call_has_the_attention_that_it_was_given(policy: Policy, folder: Path) -> None:
    """Several threads, two models, and a pass inside the attention of another, backward passes recomputed."""
    other = load_policy(folder, trainable=True)
    prompt, _ = make_prompt(policy, CASES[1], "when?")
    ids, positions = prompt.ids_P[None], prompt.positions_3P[:, None]

    def mean(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return v.mean(2, keepdim=True).expand_as(v).repeat_interleave(q.shape[1] // v.shape[1], 1)

    def nested(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            other.language_model(ids, positions, mean, video=prompt.video)
        return causal(layer, q, k, v)

    def gradient(of: Policy, attention: object) -> torch.Tensor:
        out = of.language_model(ids, positions, attention, video=prompt.video, checkpoint=True)
        return torch.autograd.grad(out.square().sum(), of.language_model.lm.layers[0].self_attn.v_proj.weight)[0]

    wanted = {"causal": gradient(policy, causal), "mean": gradient(policy, mean)}
    assert not torch.allclose(wanted["causal"], wanted["mean"])
    assert torch.equal(gradient(policy, nested), wanted["causal"])
    found: list[tuple[str, torch.Tensor]] = []

    def work(of: Policy, name: str, attention: object) -> None:
        found.extend((name, gradient(of, attention)) for _ in range(4))

    jobs = [(policy, "causal", causal), (policy, "mean", mean), (other, "causal", nested), (other, "mean", mean)]
    threads = [threading.Thread(target=work, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16 and all(torch.equal(value, wanted[name]) for name, value in found)


def test_the_stock_forward_goes_on_as_it_did(policy: Policy, folder: Path) -> None:
    from transformers import AutoModelForImageTextToText

    stock = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    prompt, _ = make_prompt(policy, CASES[1], "when?")
    asked = {"input_ids": prompt.ids_P[None], "position_ids": prompt.positions_3P[:, None]}
    with torch.no_grad():
        ours = policy.language_model.lm(**asked).last_hidden_state
        assert torch.equal(ours, stock.model.language_model(**asked).last_hidden_state)
    with pytest.raises(AssertionError, match="route"):
        hidden_states(stock.model.language_model, ours, prompt.positions_3P[:, None], causal)


def full_rows(prompts: Sequence[Prompt], ids_BGR: torch.Tensor, mask_BGR: torch.Tensor) -> Iterator[PackedBatch]:
    """A second packer: every response after its own copy of the prompt, one row each."""
    B, G, R = ids_BGR.shape
    for b in range(B):
        for g in range(G):
            row = pack([prompts[b]], ids_BGR[b : b + 1, g : g + 1], mask_BGR[b : b + 1, g : g + 1], groups=[0])
            object.__setattr__(row, "to_N", row.to_N + (b * G + g) * R)
            object.__setattr__(row, "attention", lambda device: causal)  # one response: earlier is visible
            yield row


def all_in_one(prompts: Sequence[Prompt], ids_BGR: torch.Tensor, mask_BGR: torch.Tensor) -> Iterator[PackedBatch]:
    """A third: all groups in one row."""
    yield pack(prompts, ids_BGR, mask_BGR, groups=range(len(prompts)))


@pytest.mark.parametrize("packer", [full_rows, all_in_one])
def test_other_rows_give_the_log_probs_and_gradients_of_packed_ones(policy: Policy, packer) -> None:
    prompts, rollouts = sampled(policy)
    gradients, found = [], []
    for chosen in ({}, {"packer": packer}):
        found.append(score(policy, prompts, rollouts.ids_BGR, rollouts.mask_BGR, **chosen))
        found[-1].square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in policy.named_parameters()})
        policy.language_model.zero_grad()
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=0)
    for name, gradient in gradients[0].items():
        assert (gradients[1][name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_a_packed_row_of_two_groups_written_out(policy: Policy) -> None:
    prompts = [make_prompt(policy, CASES[1], text)[0] for text in ("a", "bcd")]
    P, Q = (len(prompt.ids_P) for prompt in prompts)
    ids = torch.tensor([[[7, 8], [9, 0]], [[5, 0], [6, 0]]])
    mask = torch.tensor([[[1, 1], [1, 0]], [[1, 0], [1, 0]]], dtype=torch.bool)
    row = pack(prompts, ids, mask, groups=[0, 1])
    assert row.ids_T.tolist() == [*prompts[0].ids_P.tolist(), 7, 8, 9, *prompts[1].ids_P.tolist(), 5, 6]
    assert row.group_T.tolist() == [0] * (P + 3) + [1] * (Q + 2)
    assert row.response_T.tolist() == [-1] * P + [0, 0, 1] + [-1] * Q + [0, 1]
    assert row.positions_3T[0, P : P + 3].tolist() == [prompts[0].next_position + i for i in (0, 1, 0)]
    assert row.before_N.tolist() == [P - 1, P, P - 1, P + 3 + Q - 1, P + 3 + Q - 1]
    assert row.targets_N.tolist() == [7, 8, 9, 5, 6] and row.to_N.tolist() == [0, 1, 2, 4, 6]
    assert row.lengths() == [[P, 2, 1], [Q, 1, 1]]
    M = len(prompts[0].places_M)
    assert row.video.places_M[M:].tolist() == (prompts[1].places_M + P + 3).tolist()
    mask_TT = row.mask_TT(torch.device("cpu"))
    assert mask_TT[P + 1].nonzero()[:, 0].tolist() == [*range(P), P, P + 1], "its prefix, its own earlier token, itself"
    assert mask_TT[P + 2].nonzero()[:, 0].tolist() == [*range(P), P + 2], "not the other response"
    assert mask_TT[-1].nonzero()[:, 0].tolist() == [*range(P + 3, P + 3 + Q), P + 3 + Q + 1], "not the other group"
    assert row_logprobs(policy, row, temperature=1.0, checkpoint=False).shape == (5,)


def test_attention_by_group_is_attention_under_the_mask_of_the_row(policy: Policy) -> None:
    prompts = [make_prompt(policy, CASES[1], text)[0] for text in ("a", "bcd")]
    ids = torch.randint(5, 20, (2, 3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(7) < torch.tensor([[7, 0, 3], [1, 5, 5]])[..., None]
    row, cpu = pack(prompts, ids, mask, groups=[0, 1]), torch.device("cpu")
    P, Q = (len(prompt.ids_P) for prompt in prompts)
    assert row.lengths() == [[P, 7, 3], [Q, 1, 5, 5]]
    T = len(row.ids_T)
    for first in (0, P // 2, P + 8, P + 10 + Q // 2):  # all queries, or those of the last tokens alone
        q, k, v = (torch.randn(1, heads, T, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64,
                               requires_grad=True) for seed, heads in ((1, 4), (2, 2), (3, 2)))
        found = []
        for attend in (row.attention(cpu), masked(row.mask_TT(cpu)[first:][None, None])):
            mixed = attend(0, q[:, :, first:], k, v)
            found.append((mixed, *torch.autograd.grad(mixed.square().sum(), (q, k, v))))
        for one, two in zip(*found, strict=True):
            torch.testing.assert_close(one, two, atol=1e-12, rtol=1e-9)
