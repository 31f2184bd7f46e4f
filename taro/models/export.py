"""A policy back to a Hugging Face folder: the base checkpoint's names and files, the trained tensors in place.

Of the base go along the files that hold the model, and those of the kinds that a model needs (`KINDS`). What a trainer
left beside them (optimizer state, random states, logs, adapters, other weights, pickles, code) stays where it is."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch

from taro.core.errors import ModelError
from taro.core.json import read_json
from taro.core.tensors import DTYPES, LazyTensor, write_tensors
from taro.models.adapters import linears, lora_layers, weight_of
from taro.models.folder import template_name
from taro.models.merging import wide_dtype
from taro.models.policy import Policy
from taro.models.tensors import INDEX, is_index, opened, places, tensor_files, weights_name
from taro.models.weights import EMBEDDINGS, HEAD

__all__ = ["KINDS", "export_checkpoint"]

log = logging.getLogger(__name__)

KINDS = (
    "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "*.model", "*.tiktoken",
    "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
    "chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja",
    "taro.json",
    "README*", "LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*",
)
"""names of what a model needs besides weights: config, tokenizer, processor, templates, its card and licence"""
PASSED_OVER = frozenset({".git", ".gitattributes", ".cache", "additional_chat_templates", INDEX})
"""not worth a word: what downloads leave, and what is written anew"""
MAX_NAMED = 20


def export_checkpoint(policy: Policy, base: str | Path, out: str | Path, *, dtype: torch.dtype | None = None,
                      weights: Mapping[str, LazyTensor] | None = None,
                      progress: Callable[[int, int], None] = lambda *_: None) -> Path:
    """Writes `out`: `base` with the policy's language model and head in place of its own, the tower as it is, so that
    stock transformers loads it and computes what the policy does.

    Tensors keep `base`'s names, files and dtypes; language model and head take `dtype` where it is given, which
    config.json then names. A head that is the embeddings is written once. What of `base` stays behind is logged.
    `weights`: by the policy's names, what is more exact than the tensors that it computes with; `progress`: called with
    (tensors written, all)."""
    base, out = Path(base), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    files, names = tensor_files(base), places(base, policy.family)
    _copy_kinds(base, out, {file.name for file in files.values()})
    tied = policy.language_model.head.weight is policy.language_model.lm.embed_tokens.weight
    trained = _trained(policy, weights or {}, tied=tied)
    assert trained.keys() - names.values() <= ({EMBEDDINGS, HEAD} if tied else set()), "another model's folder"
    if tied and EMBEDDINGS in names.values():
        names = {name: where for name, where in names.items() if where != HEAD}
    weight_map, size_bytes = dict[str, str](), 0
    for file in sorted({files[name] for name in names}):
        with opened(file) as handle:
            content = {name: _exported(trained.get(names[name]), name, handle,
                                       None if names[name][0] == "tower" else dtype)
                       for name in names if files[name] == file}
            write_tensors(out / file.name, content, metadata={"format": "pt"},
                          progress=partial(_tell, progress, len(weight_map), len(names)))
        weight_map.update(dict.fromkeys(content, file.name))
        size_bytes += sum(math.prod(one.shape) * one.dtype.itemsize for one in content.values())
    if is_index(weights_name(base)):
        _write_json(out / weights_name(base), {"metadata": {"total_size": size_bytes}, "weight_map": weight_map})
    _adapt_config(out / "config.json", dtype=dtype, tied=tied)
    return out


def _tell(progress: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    """`done` tensors of a file are written, after `before` of other files."""
    progress(before + done, total)


def _trained(policy: Policy, weights: Mapping[str, LazyTensor], *,
             tied: bool) -> dict[tuple[str, str], torch.Tensor | LazyTensor]:
    """The tensors that may not be the base's own: all of language model and head, or with adapters, trained or merged
    on loading, those that they change."""
    layers = lora_layers(policy)
    if layers:
        loaded = {("lm", f"{name}.weight"): linears(policy)[name].weight.detach() for name in policy.changed}
        bases = {name: one.get_base_layer().weight for name, one in layers.items()}
        merged = {("lm", f"{name}.weight"): LazyTensor(wide_dtype(bases[name]), tuple(bases[name].shape),
                                                       partial(weight_of, one)) for name, one in layers.items()}
        return {**loaded, **merged}
    return {(part, name): weights.get(_own_name(part, name, tied=tied), tensor.detach())
            for part in ("lm", "head")
            for name, tensor in getattr(policy.language_model, part).state_dict().items()}


def _own_name(part: str, name: str, *, tied: bool) -> str:
    """The policy's name of a parameter; of a head that is the embeddings theirs."""
    return "lm.embed_tokens.weight" if tied and part == "head" else f"{part}.{name}"


def _exported(trained: torch.Tensor | LazyTensor | None, name: str, handle: Any,
              dtype: torch.dtype | None) -> LazyTensor:
    """The tensor to be written under `name`: the trained one, or the base's own; `dtype`: None: as in the base."""
    stored: torch.dtype = getattr(torch, DTYPES[handle.get_slice(name).get_dtype()])
    wanted = dtype or stored
    if trained is None:
        shape = tuple(handle.get_slice(name).get_shape())
        return LazyTensor(wanted, shape, lambda: handle.get_tensor(name).to(wanted))
    read = trained.read if isinstance(trained, LazyTensor) else lambda: trained
    return LazyTensor(wanted, tuple(trained.shape), lambda: read().to(device="cpu", dtype=wanted))


def _copy_kinds(base: Path, out: Path, weights: set[str]) -> None:
    kinds = list(KINDS)
    with contextlib.suppress(ModelError):  # no reason to lose the trained weights
        template = template_name(base)
        kinds += [Path(template).name] if template else []
    left = []
    for file in sorted([*base.iterdir(), *base.glob("additional_chat_templates/*")]):
        name = file.relative_to(base).as_posix()
        if file.is_file() and any(fnmatchcase(name, kind) for kind in kinds):
            (out / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, out / name)
        elif name not in weights and name not in PASSED_OVER:
            left.append(name)
    if left:
        more = f" and {len(left) - MAX_NAMED} more" if len(left) > MAX_NAMED else ""
        log.warning("%s: not copied to the export, since a model does not need it: %s%s", base,
                    ", ".join(left[:MAX_NAMED]), more)


def _adapt_config(path: Path, *, dtype: torch.dtype | None, tied: bool) -> None:
    """config.json as the weights are. Head and embeddings that are two (config.json may have said otherwise) are said
    to be two: not every program compares them."""
    config = read_json(path)
    for part in (config, config.get("text_config") or {}):
        if dtype is not None:
            part.update({key: str(dtype).removeprefix("torch.") for key in ("dtype", "torch_dtype") if key in part})
        if not tied and part.get("tie_word_embeddings"):
            part["tie_word_embeddings"] = False
    if dtype is not None:
        config.setdefault("dtype", str(dtype).removeprefix("torch."))
    if config != read_json(path):
        _write_json(path, config)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
