"""A policy back to a Hugging Face folder: the base checkpoint's names and files, the trained tensors in place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from taro.core.files import write_tensors
from taro.core.json import read_json
from taro.models.folder import tensor_files, tensors
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
    shards: dict[Path, dict[str, torch.Tensor]] = {}
    files = tensor_files(base)
    for name, tensor in tensors(base):
        where = policy.family.split_name(name)
        if where is not None and where[0] in trained:
            ours = trained[where[0]][where[1]].detach()
            tensor = ours.to(device="cpu", dtype=dtype or tensor.dtype).contiguous()
        shards.setdefault(files[name], {})[name] = tensor
    for file, content in shards.items():
        write_tensors(out / file.name, content, metadata={"format": "pt"})
    if dtype is not None:
        config, name = read_json(out / "config.json"), str(dtype).removeprefix("torch.")
        for part in (config, config.get("text_config") or {}):
            part.update({key: name for key in ("dtype", "torch_dtype") if key in part})
        (out / "config.json").write_text(json.dumps({"dtype": name, **config}, indent=2) + "\n", encoding="utf-8")
    return out
