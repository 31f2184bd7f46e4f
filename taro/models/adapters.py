"""LoRA: small trained matrices (peft's) inside the frozen Linears of a language model, and what is computed with them.

peft puts its layers in place, so scoring calls the stock modules as before. Rollouts and answers come from a merged
replica, whose Linears hold base plus adapter rounded once; it shares everything else with the policy. With the adapters
off the policy is the model that training began with, so no second one is needed as the reference. Adapters are float32
whatever the base is, and start from named draws, made on the CPU. Left out: adapters of head, embeddings and tower
(features are cached, the tower is never trained), and folders of adapters (`taro.models.adapter_folder`)."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from taro.core import draws
from taro.core.errors import ConfigError
from taro.models.merging import merged_weight, wide_dtype
from taro.models.policy import Policy

__all__ = ["Lora", "Merged", "add_adapters", "adapters_off", "dropout_on", "linears", "lora_layers",
           "parts_of", "targeted", "weight_of"]

NAME = "default"
"""peft's name of the one adapter"""


@dataclass(frozen=True)
class Lora:
    """rank, alpha: the update is B A times alpha / rank, with `rslora` alpha / sqrt(rank) (Kalajdzievski, 2023);
    dropout: of what goes into A; targets: names of Linears, as in peft a name or the end of one; dora: the norm of each
    row is a parameter of its own (Liu et al., 2024)."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    rslora: bool = False
    dora: bool = False


def linears(policy: Policy) -> dict[str, torch.nn.Linear]:
    """The Linears of the language model by their names in it; under adapters the frozen ones inside."""
    found: dict[str, torch.nn.Linear] = {}
    for name, module in policy.language_model.lm.named_modules():
        if isinstance(module, torch.nn.Linear) and ".lora_" not in name:
            found[name.removesuffix(".base_layer")] = module
    return found


def lora_layers(policy: Policy) -> dict[str, Any]:
    """peft's layers by the names of the Linears that they stand for; none without adapters, and then without peft."""
    return {name: module for name, module in policy.language_model.lm.named_modules()
            if isinstance(getattr(module, "lora_A", None), torch.nn.ModuleDict)}


def add_adapters(policy: Policy, lora: Lora, *, seed: int) -> None:
    """Puts adapters that change nothing yet into a policy, and trains them alone. Raises ConfigError where a target is
    the name of no Linear of the language model."""
    from peft import LoraConfig, inject_adapter_in_model

    lm = policy.language_model.lm
    names = targeted(linears(policy), lora.targets, policy.folder)
    config = LoraConfig(r=lora.rank, lora_alpha=cast(int, lora.alpha), lora_dropout=lora.dropout, target_modules=names,
                        use_rslora=lora.rslora, use_dora=lora.dora, bias="none")
    with torch.random.fork_rng(_generators(policy)):  # peft draws a start of its own
        inject_adapter_in_model(config, lm, adapter_name=NAME)
    policy.language_model.eval().requires_grad_(False)
    layers = lora_layers(policy)
    assert sorted(layers) == names, "peft took other modules than those that were named"
    for name, layer in layers.items():
        base = layer.get_base_layer().weight
        wide = wide_dtype(base)
        for part in parts_of(layer).values():
            part.to(wide).requires_grad_(True)
        a = layer.lora_A[NAME].weight
        bound = layer.in_features**-0.5  # kaiming_uniform with a = sqrt(5), peft's start
        start = draws.rng("lora", seed, name).uniform(-bound, bound, tuple(a.shape))
        with torch.no_grad():
            a.copy_(torch.from_numpy(start))
            layer.lora_B[NAME].weight.zero_()
            if lora.dora:  # in float32, as it is computed with, so that the start changes nothing
                layer.lora_magnitude_vector[NAME].weight.copy_(
                    torch.linalg.norm(base.to(wide), dim=1))


def _generators(policy: Policy) -> list[torch.device]:
    """Devices besides the CPU whose generator the policy's dropout draws from."""
    return [policy.device] if policy.device.type == "cuda" else []


def parts_of(layer: Any) -> dict[str, torch.nn.Module]:
    """The trained modules of one of peft's layers, by the names of their tensors in a folder of peft's."""
    found = {"lora_A.weight": layer.lora_A[NAME], "lora_B.weight": layer.lora_B[NAME]}
    if NAME in layer.lora_magnitude_vector:
        found["lora_magnitude_vector"] = layer.lora_magnitude_vector[NAME]
    return found


def targeted(names: Collection[str], targets: Sequence[str], policy: str | Path) -> list[str]:
    """Those of the Linears `names` of a language model that `targets` name, sorted. Raises ConfigError: one names
    none."""
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            counts = Counter(name.rpartition(".")[2] for name in names)
            there = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
            raise ConfigError(f"lora.targets: {target!r:.100} is no Linear of the language model in {policy}; "
                              f"there are {there}. The vision tower, the embeddings and the head cannot be targets")
    return sorted(name for name in names
                  if any(name == target or name.endswith(f".{target}") for target in targets))


def weight_of(layer: Any) -> torch.Tensor:
    """The merged weight, in float32, of one of peft's layers."""
    tensors = {name: torch.as_tensor(part.weight) for name, part in parts_of(layer).items()}
    return merged_weight(layer.get_base_layer().weight, tensors["lora_A.weight"], tensors["lora_B.weight"],
                         layer.scaling[NAME], tensors.get("lora_magnitude_vector"))


@contextlib.contextmanager
def adapters_off(policy: Policy) -> Iterator[None]:
    """The policy is its frozen base while the block runs."""
    layers = lora_layers(policy).values()
    # Only peft's flag is set: its own switch would also change which parameters require gradients.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@contextlib.contextmanager
def dropout_on(policy: Policy, names: Sequence[tuple[int | str, ...]]) -> Iterator[None]:
    """Adapters drop while the block runs; the i-th row that the language model reads in it draws as `names[i]` says, so
    a resumed run repeats its draws and a prompt's do not depend on what is computed beside it."""
    layers = [layer for layer in lora_layers(policy).values()
              if not isinstance(layer.lora_dropout[NAME], torch.nn.Identity)]
    if not layers:
        yield
        return
    left = iter(names)

    def seeded(*_: Any) -> None:
        torch.manual_seed(int(draws.rng("lora dropout", *next(left)).integers(2**62)))

    hook = policy.language_model.register_forward_pre_hook(seeded)
    try:
        with torch.random.fork_rng(_generators(policy)):
            for layer in layers:
                layer.train()
            yield
    finally:
        hook.remove()
        for layer in layers:
            layer.eval()


class Merged:
    """The replica of a policy with adapters: `policy` holds merged copies of the target Linears, in the dtype of the
    frozen ones, and everything else is the policy's own. `refresh` after each update."""

    def __init__(self, policy: Policy) -> None:
        self._layers = lora_layers(policy)
        self._linears: dict[str, torch.nn.Linear] = {}
        self.policy = copy.copy(policy)
        self.policy.language_model = copy.copy(policy.language_model)
        modules = dict(policy.language_model._modules)
        self.policy.language_model._modules = {**modules, "lm": self._twin(policy.language_model.lm, "")}
        self.refresh()

    def _twin(self, module: torch.nn.Module, name: str) -> torch.nn.Module:
        """The module with plain Linears in place of peft's layers; itself where it holds none."""
        if name in self._layers:
            base = self._layers[name].get_base_layer()
            twin = torch.nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
            twin.weight = torch.nn.Parameter(torch.empty_like(base.weight), requires_grad=False)
            twin.bias = base.bias
            self._linears[name] = twin.eval()
            return twin
        children = {key: self._twin(child, f"{name}.{key}".lstrip("."))
                    for key, child in module.named_children()}
        if all(child is getattr(module, key) for key, child in children.items()):
            return module
        twin_of = copy.copy(module)
        twin_of._modules = {**module._modules, **children}
        return twin_of

    @torch.no_grad()
    def refresh(self) -> None:
        """Merges anew, a Linear at a time."""
        for name, layer in self._layers.items():
            self._linears[name].weight.copy_(weight_of(layer))
