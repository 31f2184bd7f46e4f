"""Stock modules filled tensor by tensor from safetensors, only those that are asked for.

The stock loading of a whole model is left out: training must not hold the vision tower, encoding must not hold the
language model. Whether the head is the embeddings is transformers' decision: config.json says so, and where both are
stored all the same they are one if they are equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from taro.core.errors import ModelError
from taro.models.families.base import Family
from taro.models.kinds import misfit
from taro.models.tensors import check_floats, places, tensor_files, tensors

__all__ = ["Dtypes", "EMBEDDINGS", "HEAD", "Keep", "Place", "build", "fill"]

EMBEDDINGS, HEAD = ("lm", "embed_tokens.weight"), ("head", "weight")
"""the two places (part, name inside it) that may hold one tensor"""


def build(folder: Path, family: Family, make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """The module that `make` gives, without memory. Raises ModelError where config.json does not describe one."""
    try:
        with torch.device("meta"):
            return make()
    except Exception as error:  # noqa: BLE001  transformers lets through whatever a wrong value leads to
        raise ModelError(f"{folder}: config.json describes no {family.name}: {error!s:.300}") from None


Place = tuple[str, str]
"""of a tensor: its part ("lm", "head", "tower") and its name inside that"""
Dtypes = Callable[[Place], torch.dtype]
"""of the tensor at a place, once it is loaded"""
Keep = Callable[[Place, torch.Tensor], torch.Tensor]
"""(place, tensor as read) -> what stands for it in the module: itself, or one without memory where its numbers are kept
elsewhere"""


def fill(modules: Mapping[str, Any], folder: Path, family: Family, *, device: torch.device,
         dtype: torch.dtype | Dtypes, tied: bool = False, keep: Keep = lambda place, tensor: tensor) -> None:
    """Gives `modules` ("lm", "head", "tower") their tensors; those of other parts are not read. Each tensor is brought
    to its device and dtype by itself, so no second copy of the model is made.

    `tied`: what config.json says of head and embeddings. Tied, the one that is not stored is the other; stored both,
    they are one where they are equal in `dtype`, else two, as transformers loads them. Raises ModelError: a missing or
    damaged file, a number that is not finite, no head where it is not tied, tensors that do not fit the config."""
    found: dict[Place, torch.Tensor] = {}
    of_model = places(folder, family)
    if "lm" in modules:
        check_floats(folder, of_model)  # of the tower too: an export has it
    wanted = {name: where for name, where in of_model.items() if where[0] in modules}
    for name, tensor in tensors(folder, wanted.__contains__):
        place = wanted[name]
        loaded = tensor.to(device=device, dtype=dtype if isinstance(dtype, torch.dtype) else dtype(place))
        if not _finite(loaded):
            raise ModelError(f"{folder}: {name} holds numbers that are not finite (NaN or infinite); its training "
                             "diverged, or the file is damaged: give an earlier checkpoint, or copy it again")
        found[place] = keep(place, loaded)
    one = tied and "head" in modules and _tie(found)
    _check(modules, found, folder, family)
    for part, module in modules.items():
        state = {name: tensor for (of, name), tensor in found.items() if of == part}
        try:
            module.load_state_dict(state, assign=True, strict=True)
        except RuntimeError as error:
            raise ModelError(f"{folder}: the weights do not fit config.json: {str(error)[:600]}") from None
        _rebuild_buffers(module, device)
    if one:
        modules["head"].weight = modules["lm"].embed_tokens.weight


def _finite(tensor: torch.Tensor) -> bool:
    if not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)  # NaN spreads; no copy is made
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _tie(found: dict[tuple[str, str], torch.Tensor]) -> bool:
    """Completes embeddings and head by each other; returns whether they are one."""
    stored = [place for place in (EMBEDDINGS, HEAD) if place in found]
    if len(stored) == 1:
        found[EMBEDDINGS] = found[HEAD] = found[stored[0]]
    return bool(stored) and torch.equal(found[EMBEDDINGS], found[HEAD])


def _check(modules: Mapping[str, Any], found: Mapping[tuple[str, str], torch.Tensor], folder: Path,
           family: Family) -> None:
    """Raises ModelError where a tensor is missing for a reason that can be named."""
    missing = {(part, name) for part, module in modules.items() for name in module.state_dict()} - found.keys()
    if not missing:
        return
    known = misfit(folder, tensor_files(folder), missing.__contains__, family.split_name)
    if known is not None:
        raise known
    if missing == {HEAD}:
        raise ModelError(f"{folder}: no lm_head.weight, and config.json does not tie the head to the embeddings "
                         "(tie_word_embeddings: false). Copy the file that holds it; or say true there, if the model "
                         "was trained so")


def _rebuild_buffers(module: torch.nn.Module, device: torch.device) -> None:
    """Rotary tables are not in checkpoints: a module built without memory makes them anew."""
    for name, child in module.named_children():
        if name.startswith("rotary") and any(buffer.is_meta for buffer in child.buffers()):
            setattr(module, name, type(child)(child.config).to(device))
