"""Stock modules filled tensor by tensor from safetensors, only those that are asked for.

The stock loading of a whole model is left out: training must not hold the vision tower, encoding must not hold the
language model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from taro.core.errors import ModelError
from taro.models.families.base import Family
from taro.models.folder import tensor_files, tensors

__all__ = ["build", "fill"]


def build(folder: Path, family: Family, make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """The module that `make` gives, without memory. Raises ModelError where config.json does not describe one."""
    try:
        with torch.device("meta"):
            return make()
    except Exception as error:  # noqa: BLE001  transformers lets through whatever a wrong value leads to
        raise ModelError(f"{folder}: config.json describes no {family.name}: {error!s:.300}") from None


def fill(modules: Mapping[str, Any], folder: Path, family: Family, *, device: torch.device, dtype: torch.dtype) -> None:
    """Gives `modules` ("lm", "head", "tower") their tensors; those of other parts are not read. A head without any is
    tied to the embeddings. Raises ModelError: a missing or damaged file, tensors that do not fit the config."""
    states: dict[str, dict[str, torch.Tensor]] = {part: {} for part in modules}
    places = {name: where for name in tensor_files(folder)
              if (where := family.split_name(name)) is not None and where[0] in modules}
    for name, tensor in tensors(folder, places.__contains__):
        part, inner = places[name]
        states[part][inner] = tensor.to(device=device, dtype=dtype)
    tied = "head" in modules and "weight" not in states["head"]
    if tied and "embed_tokens.weight" in states["lm"]:
        states["head"]["weight"] = states["lm"]["embed_tokens.weight"]
    for part, module in modules.items():
        try:
            module.load_state_dict(states[part], assign=True, strict=True)
        except RuntimeError as error:
            raise ModelError(f"{folder}: the weights do not fit config.json: {str(error)[:600]}") from None
        _rebuild_buffers(module, device)
    if tied:
        modules["head"].weight = modules["lm"].embed_tokens.weight


def _rebuild_buffers(module: torch.nn.Module, device: torch.device) -> None:
    """Rotary tables are not in checkpoints: a module built without memory makes them anew."""
    for name, child in module.named_children():
        if name.startswith("rotary") and any(buffer.is_meta for buffer in child.buffers()):
            setattr(module, name, type(child)(child.config).to(device))
