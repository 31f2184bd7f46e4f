"""What a model folder is that taro does not read: an adapter, a quantised model, weights under a wrapper's names.

Each is known by what its writer leaves behind (files, names of tensors), so that a message says what the folder is and
what to do, not which of a thousand tensors are missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from taro.core.errors import ModelError

__all__ = ["described", "misfit", "quantised", "refuse_quantised"]

FILES = (
    ("adapter_config.json", "an adapter (such as LoRA) without its model: merge it into the base model first (peft: "
                            "merge_and_unload(), then save_pretrained)"),
    ("*.gguf", "a GGUF model, which is quantised: give the checkpoint that it was made from"),
    ("*.distcp", "a distributed checkpoint: save the whole model"),
    ("mp_rank_*", "a DeepSpeed checkpoint: convert it with the zero_to_fp32.py beside it, then to safetensors"),
    ("*.safetensors", "safetensors files of other names alone, which transformers would not load: rename a single one "
                      "to model.safetensors, several need their index"),
    ("*.bin", "only pickles (.bin): convert them to safetensors (transformers: from_pretrained, then save_pretrained)"),
)
"""pattern of a file's name, and what a folder with such a file is; the first that fits counts"""

WRAPPERS = {
    "module": "DistributedDataParallel or DeepSpeed", "_orig_mod": "torch.compile", "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing", "base_model": "peft (an adapter that is not merged)",
    "base_layer": "peft (an adapter that is not merged)", "modules_to_save": "peft (an adapter that is not merged)",
}
"""part of a tensor's name -> what had wrapped the model when it was saved"""

QUANTISED = (".qweight", ".qzeros", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".SCB", ".absmax",
             ".quant_state.bitsandbytes__nf4", ".g_idx")
"""ends of names that only quantised models have"""

MAX_PREFIX = 4


def described(folder: Path) -> str:
    """": it holds ..." for a folder without usable weights or config; "" where nothing is known of it, or where only
    its config is missing."""
    if any((folder / name).exists() for name in ("model.safetensors", "model.safetensors.index.json")):
        return ""
    return next((f": it holds {what}" for pattern, what in FILES if any(folder.glob(pattern))), "")


def quantised(folder: Path, sign: str) -> ModelError:
    """The error of a quantised model; `sign` tells how it is known."""
    return ModelError(f"{folder}: quantised weights ({sign}); taro trains and computes with those that were not "
                      "quantised: give the model that this one was made from")


def refuse_quantised(folder: Path, config: Any) -> None:
    """Raises ModelError where config.json says that the weights are quantised (AWQ, GPTQ, bitsandbytes, FP8 ...)."""
    for part in (config, getattr(config, "text_config", None), getattr(config, "vision_config", None)):
        found = getattr(part, "quantization_config", None) or getattr(part, "compression_config", None)
        if found:
            method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
            raise quantised(folder, f"config.json: {str(method or 'quantization_config')[:60]}")


def misfit(folder: Path, names: Iterable[str], missing: Callable[[tuple[str, str]], bool],
           split_name: Callable[[str], tuple[str, str] | None]) -> ModelError | None:
    """The error of tensors that are there under names that are not the model's; None where that explains nothing.
    `missing`: whether a place (part, name inside it) is without a tensor."""
    names = sorted(names)
    for name in names:
        if name.endswith(QUANTISED):
            return quantised(folder, f"it holds {name[:200]}")
    for name in names:
        bare = [part for part in name.split(".") if part not in WRAPPERS]
        for start in range(min(MAX_PREFIX, len(bare))):
            known = ".".join(bare[start:])
            place = split_name(known)
            if known != name and place is not None and missing(place):
                who = next((WRAPPERS[part] for part in name.split(".") if part in WRAPPERS), None)
                why = (f"as {who} names them; save the inner model, or rename them" if who
                       else "which transformers does not load; rename them")
                return ModelError(f"{folder}: expected tensors such as {known[:200]}, got {name[:200]}, {why}")
    return None
