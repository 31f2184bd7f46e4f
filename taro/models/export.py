"""A policy back to a Hugging Face folder: the base checkpoint's names and files, the trained tensors in place."""

from __future__ import annotations

import json
import shutil
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from taro.core.json import read_json
from taro.core.tensors import DTYPES, LazyTensor, write_tensors
from taro.models.folder import opened, tensor_files
from taro.models.policy import Policy

__all__ = ["export_checkpoint"]


def export_checkpoint(policy: Policy, base: str | Path, out: str | Path, *, dtype: torch.dtype | None = None) -> Path:
    """Writes `out`: `base` with the policy's language model and head in place of its own, everything else copied, the
    tower's tensors included, so that it loads unedited wherever `base` does. Tensors keep `base`'s names; its dtypes
    too, but for language model and head where `dtype` is given, which config.json then names."""
    base, out = Path(base), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(base.iterdir()):
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copyfile(file, out / file.name)
    trained = {part: dict(getattr(policy.language_model, part).state_dict()) for part in ("lm", "head")}
    for file, group in groupby(sorted(tensor_files(base).items(), key=lambda one: one[1]), key=lambda one: one[1]):
        with opened(file) as handle:
            content = {name: _exported(policy.family.split_name(name), name, handle, trained, dtype)
                       for name, _ in group}
            write_tensors(out / file.name, content, metadata={"format": "pt"})
    if dtype is not None:
        config, name = read_json(out / "config.json"), str(dtype).removeprefix("torch.")
        for part in (config, config.get("text_config") or {}):
            part.update({key: name for key in ("dtype", "torch_dtype") if key in part})
        (out / "config.json").write_text(json.dumps({"dtype": name, **config}, indent=2) + "\n", encoding="utf-8")
    return out


def _exported(where: tuple[str, str] | None, name: str, handle: Any, trained: dict[str, dict[str, torch.Tensor]],
              dtype: torch.dtype | None) -> LazyTensor:
    """The tensor to be written under `name`: the trained one, or the base's own."""
    stored: torch.dtype = getattr(torch, DTYPES[handle.get_slice(name).get_dtype()])
    if where is None or where[0] not in trained:
        return LazyTensor(stored, tuple(handle.get_slice(name).get_shape()), partial(handle.get_tensor, name))
    ours, wanted = trained[where[0]][where[1]].detach(), dtype or stored
    return LazyTensor(wanted, tuple(ours.shape), partial(ours.to, device="cpu", dtype=wanted))
