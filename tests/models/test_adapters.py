"""Adapters beside, merged into and apart from a policy compute one thing; what does not fit is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from taro.core.errors import ConfigError, ModelError
from taro.models.adapter_folder import write_adapter
from taro.models.adapters import Lora, Merged, adapters_off, add_adapters, dropout_on, lora_layers, weight_of
from taro.models.attention import causal
from taro.models.export import export_checkpoint
from taro.models.load import load_compute, load_policy
from taro.models.offload import Offload
from taro.models.policy import Policy
from taro.models.resolve import resolve_place
from tests.helpers_models import TINY

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
"""peft asks for the older name"""
SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
KINDS = {"lora": {}, "rslora": {"rslora": True}, "dora": {"dora": True}, "rsdora": {"rslora": True, "dora": True}}


def lora(**changes: Any) -> Lora:
    return Lora(**{"rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": SEVEN, **changes})


@pytest.fixture(scope="module", params=TINY)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY[request.param](tmp_path_factory.mktemp("model") / "base")


def disturb(policy: Policy) -> None:
    """Adapters as training leaves them: no part of them is at its start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, one in policy.trained():
            one.add_(0.1 * torch.randn(one.shape, generator=generator) * (one.abs().mean() + 0.2))


def logits(policy: Policy) -> torch.Tensor:
    ids = torch.arange(3, 15)[None]
    positions = torch.arange(12).expand(3, 1, 12)
    with torch.no_grad():
        out: torch.Tensor = policy.language_model.head(policy.language_model(ids, positions, causal))
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_merged_equals_unmerged_equals_the_export_equals_peft(folder: Path, tmp_path: Path, kind: str) -> None:
    """fp32, 1e-5: the replica, the merged export in the stock class, peft over the stock base, and the adapter's folder
    as a policy; the tower's tensors are the base's."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    policy = load_compute(folder, torch.device("cpu"), bf16=False)
    start = logits(policy)
    spec = lora(**KINDS[kind])
    add_adapters(policy, spec, seed=3)
    assert torch.equal(logits(policy), start)
    merged = Merged(policy)
    disturb(policy)
    expected = logits(policy)
    assert (expected - start).abs().max() > 0.05
    assert not torch.allclose(logits(merged.policy), expected, atol=1e-3)
    merged.refresh()
    torch.testing.assert_close(logits(merged.policy), expected, atol=1e-5, rtol=1e-5)
    with adapters_off(policy):
        assert torch.equal(logits(policy), start)
    assert torch.equal(logits(policy), expected)
    ours, theirs = policy.language_model.lm, merged.policy.language_model.lm
    assert theirs.embed_tokens is ours.embed_tokens
    assert theirs.layers[0].input_layernorm is ours.layers[0].input_layernorm

    export_checkpoint(policy, folder, tmp_path / "export")
    write_adapter(policy, spec, str(folder), tmp_path / "adapter")
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "export", dtype=torch.float32).eval()
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        by_export = stock(input_ids=ids).logits
        base = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        loaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
        by_peft = loaded(input_ids=ids).logits
        for name, layer in lora_layers(policy).items():
            stock_layer = loaded.base_model.model.model.language_model.get_submodule(name)
            stock_layer.merge(safe_merge=True)
            torch.testing.assert_close(stock_layer.get_base_layer().weight, weight_of(layer), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(by_export, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(by_peft, by_export, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(load_policy(tmp_path / "adapter")), by_export, atol=1e-5, rtol=1e-5)
    before, after = (load_file(one / "model.safetensors") for one in (folder, tmp_path / "export"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.rpartition(".layers.")[2].split(".", 1)[1] for name in changed} == {
        *(f"self_attn.{one}.weight" for one in SEVEN[:4]), *(f"mlp.{one}.weight" for one in SEVEN[4:])}
    assert not any("visual" in name for name in changed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["sandbox:policy", "sandbox:policy-qwen3-vl"])
def test_merging_rounds_no_more_than_the_model_does(name: str, kind: str) -> None:
    """A trained model with logits up to 14. In float64 merged and apart are one; in float32 each lies within 1e-5 of
    the largest logit from there, and they from each other, as the base alone does."""
    policy = load_compute(resolve_place(name), torch.device("cpu"), bf16=False)
    base = logits(policy)
    add_adapters(policy, lora(**KINDS[kind]), seed=3)
    merged = Merged(policy)
    disturb(policy)
    merged.refresh()
    apart, together = logits(policy), logits(merged.policy)
    policy.language_model.double()
    exact = logits(policy)
    largest = float(exact.abs().max())
    bound = 1e-5 * largest
    assert largest > 8 and (exact - base).abs().max() > 0.5
    torch.testing.assert_close(logits(Merged(policy).policy), exact, atol=1e-12 * largest, rtol=0.0)
    for one, other in ((apart, exact), (together, exact), (together, apart)):
        torch.testing.assert_close(one.double(), other.double(), atol=bound, rtol=0.0)
    with adapters_off(policy):
        torch.testing.assert_close(base.double(), logits(policy), atol=bound, rtol=0.0)


def test_only_adapters_are_trained_and_start_from_the_seed(folder: Path) -> None:
    """Float32 over a bfloat16 base, equal for equal seeds, whatever torch drew before."""
    found: list[dict[str, torch.Tensor]] = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(found))
        policy = load_compute(folder, torch.device("cpu"), bf16=True)
        before = torch.get_rng_state()
        add_adapters(policy, lora(dora=True), seed=seed)
        assert torch.equal(before, torch.get_rng_state())
        trained = dict(policy.trained())
        assert trained and all("lora_" in name and one.dtype == torch.float32 for name, one in trained.items())
        assert all("lora_" in name or not one.requires_grad for name, one in policy.named_parameters())
        found.append({name: one.detach().clone() for name, one in trained.items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not all(torch.equal(found[0][name], found[2][name]) for name in found[0])


def test_a_gradient_of_bfloat16_reaches_every_adapter(folder: Path) -> None:
    """Under autocast, over a frozen bfloat16 base; the replica's gap is bfloat16's, and none at the start."""
    policy = load_compute(folder, torch.device("cpu"), bf16=True)
    add_adapters(policy, lora(), seed=0)
    merged = Merged(policy)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits(merged.policy), logits(policy))
    disturb(policy)
    merged.refresh()
    with torch.autocast("cpu", torch.bfloat16):  # anew: autocast remembers its casts
        hidden = policy.language_model(torch.arange(3, 15)[None], torch.arange(12).expand(3, 1, 12), causal)
        gap = (logits(merged.policy).log_softmax(-1) - policy.language_model.head(hidden).log_softmax(-1)).abs().mean()
    hidden.square().sum().backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for _, one in policy.trained())
    assert 0 < gap < 0.1


def test_dropout_is_named_and_ends_with_its_block(folder: Path) -> None:
    policy = load_compute(folder, torch.device("cpu"), bf16=False)
    add_adapters(policy, lora(dropout=0.5), seed=0)
    disturb(policy)
    plain = logits(policy)
    drawn: list[list[torch.Tensor]] = []
    for names in ((("a",), ("b",)), (("b",), ("a",))):
        torch.manual_seed(len(drawn))
        with dropout_on(policy, names):
            drawn.append([logits(policy), logits(policy)])
    assert torch.equal(drawn[0][0], drawn[1][1]) and torch.equal(drawn[0][1], drawn[1][0])
    assert not torch.equal(drawn[0][0], drawn[0][1]) and not torch.equal(drawn[0][0], plain)
    assert torch.equal(logits(policy), plain)


@pytest.mark.parametrize("checkpoint", [True, "offload"])
def test_recomputed_layers_give_the_adapters_their_gradients(folder: Path, checkpoint: bool | str) -> None:
    """Under autocast, which remembers its casts of the float32 adapters, and with dropout: bitwise."""
    found = []
    for how in (False, Offload(torch.device("cpu")) if checkpoint == "offload" else True):
        policy = load_compute(folder, torch.device("cpu"), bf16=True)
        add_adapters(policy, lora(dropout=0.2), seed=0)
        disturb(policy)
        with dropout_on(policy, [("row",)]):
            with torch.autocast("cpu", torch.bfloat16):
                hidden = policy.language_model(torch.arange(3, 15)[None], torch.arange(12).expand(3, 1, 12), causal,
                                               checkpoint=how)
            hidden.square().sum().backward()
        found.append({name: one.grad for name, one in policy.trained()})
    for name, gradient in found[0].items():
        other = found[1][name]
        assert gradient is not None and other is not None and torch.equal(gradient, other), name


@pytest.mark.parametrize("target", ["qkv", "attn.proj", "visual.blocks.0.attn.qkv", "lm_head", "embed_tokens", "proj"])
def test_a_target_that_names_no_linear_of_the_language_model(folder: Path, target: str) -> None:
    policy = load_compute(folder, torch.device("cpu"), bf16=False)
    layers = len(policy.language_model.lm.layers)
    with pytest.raises(ConfigError, match=rf"{target}.*down_proj \({layers}\).*q_proj \({layers}\).*vision tower"):
        add_adapters(policy, lora(targets=("q_proj", target)), seed=0)


def test_targets_may_be_ends_of_names(folder: Path) -> None:
    policy = load_compute(folder, torch.device("cpu"), bf16=False)
    add_adapters(policy, lora(targets=("layers.1.mlp.up_proj", "v_proj")), seed=0)
    names = {name.split(".", 2)[2] for name in lora_layers(policy)}
    assert names == {"mlp.up_proj", "self_attn.v_proj"}
    assert sum("up_proj" in name for name in lora_layers(policy)) == 1


def written(folder: Path, out: Path) -> Path:
    policy = load_compute(folder, torch.device("cpu"), bf16=False)
    add_adapters(policy, lora(), seed=0)
    write_adapter(policy, lora(), str(folder), out)
    return out


@pytest.mark.parametrize(("change", "message"), [
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"), ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"), ({"bias": "all"}, "bias"), ({"r": 10**9}, "rank of 1 to"),
    ({"r": 8}, "expected floats of shape"), ({"use_dora": True}, "lora_magnitude_vector"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"), ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ({"base_model_name_or_path": None}, "base_model_name_or_path is None"),
    ({"base_model_name_or_path": "x" * 5000}, r"base_model_name_or_path is .x{199}; expected"),
    ({"base_model_name_or_path": "/nowhere/at/all"}, "cannot be used"), ({"lora_alpha": "x"}, "lora_alpha"),
])
def test_an_adapter_that_cannot_be_applied(folder: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    adapter = written(folder, tmp_path / "adapter")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelError, match=message):
        load_policy(adapter)


def test_an_adapter_that_peft_made_over_a_base_that_is_named(folder: Path, tmp_path: Path) -> None:
    """Saved by peft from the stock whole model, with a base that is not here; base and adapter are given by name."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    base = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    config = LoraConfig(r=4, lora_alpha=8, use_rslora=True, init_lora_weights=False,
                        target_modules=r".*language_model\.layers\.\d+\.(self_attn\.q_proj|mlp\.up_proj)")
    stock = get_peft_model(base, config).eval()
    stock.save_pretrained(str(tmp_path / "adapter"))
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "/nowhere/at/all"}))
    with torch.no_grad():
        expected = stock(input_ids=torch.arange(3, 15)[None]).logits
    with pytest.raises(ModelError, match="cannot be used"):
        resolve_place(tmp_path / "adapter")
    place = resolve_place(folder, tmp_path / "adapter")
    torch.testing.assert_close(logits(load_policy(place)), expected, atol=1e-5, rtol=1e-5)
    assert place.asked == folder and place.sha256() != resolve_place(folder).sha256()
    for name, adapter in ((folder, folder), (tmp_path / "adapter", tmp_path / "adapter")):
        with pytest.raises(ModelError, match="expected a whole model and the folder of an adapter"):
            resolve_place(name, adapter)


def test_tensors_that_bind_to_nothing(folder: Path, tmp_path: Path) -> None:
    """Another model's names, the tower's, an extra tensor, a missing one, numbers that are not finite, a pickle."""
    adapter = written(folder, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    whole = load_file(file)
    first = next(name for name in whole if name.endswith("layers.0.mlp.up_proj.lora_A.weight"))
    tower = "base_model.model.model.visual.blocks.0.mlp.up_proj.lora_A.weight"
    odd = [({**whole, tower: torch.zeros(4, 32)}, "visual"),
           ({**whole, "base_model.model.lm_head.lora_A.weight": torch.zeros(4, 32)}, "lm_head"),
           ({**whole, "odd": torch.zeros(1)}, "odd"), ({**whole, first: torch.zeros(4, 31)}, "shape"),
           ({name: one for name, one in whole.items() if name != first}, "up_proj"),
           ({**whole, first: torch.full_like(whole[first], np.nan)}, "not finite")]
    for tensors, message in odd:
        save_file(tensors, file)
        with pytest.raises(ModelError, match=message):
            load_policy(adapter)
    file.rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"adapter_model\.bin are not read"):
        load_policy(adapter)
