"""Folders of one LoRA adapter, as peft writes and reads them: adapter_config.json and adapter_model.safetensors.

Such a folder is a policy: its base is the model that adapter_config.json names, and the adapter is merged into it when
it is loaded. It may come from anywhere, so what it holds is checked before anything is allocated: safetensors only, no
tensor that binds to no Linear of the language model, no shape that does not fit, no setting that would change what is
computed in a way that is not known here. Left out: several adapters at once; adapters of head, embeddings or tower."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from taro.core.errors import ModelError
from taro.core.json import read_json
from taro.core.tensors import LazyTensor, write_tensors
from taro.models.adapters import Lora, linears, lora_layers, parts_of
from taro.models.merging import ADAPTER_TENSORS as TENSORS
from taro.models.merging import StoredAdapter
from taro.models.policy import Policy
from taro.models.resolve import ADAPTER, SANDBOX, model_id
from taro.models.tensors import FLOATS, opened

__all__ = ["read_adapter", "write_adapter"]

MAX_RANK = 4096
STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""peft's ways to begin that leave the base as it is; with others (PiSSA, OLoRA, ...) the adapter is of another base"""
KNOWN = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "inference_mode", "init_lora_weights",
    "lora_alpha", "lora_dropout", "peft_type", "peft_version", "r", "rank_pattern", "revision", "target_modules",
    "task_type", "use_dora", "use_rslora", "exclude_modules", "layers_to_transform", "layers_pattern", "runtime_config",
    "ensure_weight_tying", "megatron_core", "qalora_group_size"})
"""settings of peft that are read, or change nothing about what a trained adapter computes; all others must be unset"""
TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.default)?(\.weight)?")


def _settings(folder: Path) -> tuple[int, float, bool, bool]:
    """(rank, alpha, rslora, dora). Raises ModelError for an adapter that is not a plain LoRA."""
    found: dict[str, Any] = read_json(folder / ADAPTER)
    where = folder / ADAPTER
    if found.get("peft_type") != "LORA":
        raise ModelError(f"{where}: peft_type is {found.get('peft_type')!r:.40}; expected LORA")
    for name, value in found.items():
        odd = (name not in KNOWN or name in {"rank_pattern", "alpha_pattern"}) and value not in (None, False, {}, [])
        odd = odd or (name == "bias" and value != "none") or (name == "init_lora_weights" and value not in STARTS)
        if odd:
            raise ModelError(f"{where}: {name[:80]} is {value!r:.100}, which taro does not apply; expected an adapter "
                             "of plain LoRA, rsLoRA or DoRA. Merge it with peft's merge_and_unload, and give the "
                             "merged model")
    rank, alpha = found.get("r", 8), found.get("lora_alpha", 8)  # peft's own defaults
    if type(rank) is not int or not 1 <= rank <= MAX_RANK or type(alpha) not in (int, float) or not 0 < alpha < 1e6:
        raise ModelError(f"{where}: r is {rank!r:.40} and lora_alpha {alpha!r:.40}; expected a rank of 1 to "
                         f"{MAX_RANK:,} and a number above 0")
    return rank, float(alpha), found.get("use_rslora") is True, found.get("use_dora") is True


def read_adapter(policy: Policy, folder: Path) -> StoredAdapter:
    """The adapter in a folder, of a policy that may be without memory. Raises ModelError: see the module."""
    rank, alpha, rslora, dora = _settings(folder)
    if not (folder / TENSORS).exists():
        raise ModelError(f"{folder}: no {TENSORS} (pickles such as adapter_model.bin are not read); save the adapter "
                         "with safe_serialization=True")
    with opened(folder / TENSORS) as handle:
        return StoredAdapter(folder, alpha / (rank**0.5 if rslora else rank),
                             _bound(policy, folder, handle, rank=rank, dora=dora))


def _bound(policy: Policy, folder: Path, handle: Any, *, rank: int, dora: bool) -> dict[str, dict[str, str]]:
    """Linear -> part of its adapter -> name in the file; all shapes are right. Nothing is read yet."""
    modules, found = linears(policy), dict[str, dict[str, str]]()
    keys: list[str] = list(handle.keys())
    for key in keys:
        match = TENSOR.fullmatch(key)
        place = None if match is None else policy.family.split_name(f"{match[1]}.weight")
        name = "" if place is None else place[1].removesuffix(".weight")
        if match is None or place is None or place[0] != "lm" or name not in modules:
            raise ModelError(f"{folder / TENSORS}: {key[:200]!a} belongs to no Linear of the language model in "
                             f"{policy.folder}; expected an adapter of this model's language model alone (head, "
                             "embeddings and vision tower are not adapted here)")
        out, into = modules[name].weight.shape
        shape = {"lora_A": (rank, into), "lora_B": (out, rank), "lora_magnitude_vector": (out,)}[match[2]]
        got = tuple(handle.get_slice(key).get_shape())
        if got != shape or handle.get_slice(key).get_dtype() not in FLOATS:
            raise ModelError(f"{folder / TENSORS}: {key[:200]} is {handle.get_slice(key).get_dtype()} {got}; expected "
                             f"floats of shape {shape}, for r={rank} and the base in {policy.folder}")
        found.setdefault(name, {})[match[2]] = key
    parts = {"lora_A", "lora_B", *(["lora_magnitude_vector"] if dora else [])}
    odd = [name for name, held in found.items() if held.keys() != parts]
    if odd or not found:
        raise ModelError(f"{folder / TENSORS}: expected {', '.join(sorted(parts))} for each adapted Linear, got "
                         f"{f'others for {odd[0]}' if odd else 'no tensors'}; copy the file again")
    return dict(sorted(found.items()))


def write_adapter(policy: Policy, lora: Lora, base: str, out: Path) -> None:
    """Writes the adapters of a policy as a folder of peft's over the stock whole model. `base`: the model as the user
    named it; of a hub's the commit goes along, a local folder is written as an absolute path."""
    layers = lora_layers(policy)
    name, revision = model_id(policy.folder)
    if revision is None:
        name = base if base.startswith(SANDBOX) else str(policy.folder.resolve())
    prefix = "base_model.model.model.language_model."
    content: dict[str, torch.Tensor | LazyTensor] = {
        f"{prefix}{layer}.{part}": torch.as_tensor(module.weight).detach().float()
        for layer, one in layers.items() for part, module in parts_of(one).items()}
    out.mkdir(parents=True, exist_ok=True)
    write_tensors(out / TENSORS, content, metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": name, "revision": revision,
        "inference_mode": True, "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "bias": "none",
        "use_rslora": lora.rslora, "use_dora": lora.dora, "init_lora_weights": True, "fan_in_fan_out": False,
        "target_modules": [f"model.language_model.{layer}" for layer in layers], "modules_to_save": None}
    (out / ADAPTER).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
