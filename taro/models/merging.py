"""Adapters merged into the weights that they are of: the arithmetic, and an adapter that lies in a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from taro.core.errors import ModelError
from taro.models.tensors import opened
from taro.models.weights import Place

__all__ = ["ADAPTER_TENSORS", "StoredAdapter", "merged_weight", "wide_dtype"]

ADAPTER_TENSORS = "adapter_model.safetensors"
"""the one file of peft's that holds tensors"""


def wide_dtype(weight: torch.Tensor) -> torch.dtype:
    """Of adapters and of merging: float32, of a float64 base float64."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def merged_weight(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float,
                  magnitude: torch.Tensor | None = None) -> torch.Tensor:
    """base [out, in], A [r, in], B [out, r] and with DoRA magnitude [out] -> the merged weight in float32 (float64 of a
    float64 base), as peft computes it."""
    wide = wide_dtype(weight)
    whole = weight.detach().to(wide) + (b.detach().to(wide) @ a.detach().to(wide)) * scaling
    if magnitude is None:
        return whole
    factor: torch.Tensor = magnitude.detach().to(wide) / torch.linalg.norm(whole, dim=1)
    return factor.view(-1, 1) * whole


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter in a folder, found to fit its base. linears: names of the base's Linears -> part of their adapter ->
    its name in the file."""

    folder: Path
    scaling: float
    linears: Mapping[str, Mapping[str, str]]

    @contextlib.contextmanager
    def merging(self) -> Iterator[Callable[[Place, torch.Tensor], torch.Tensor]]:
        """(place, the base's tensor) -> the merged one, in the same dtype; read one Linear at a time."""
        with opened(self.folder / ADAPTER_TENSORS) as handle:
            yield partial(self._merged, handle)

    def _merged(self, handle: Any, place: Place, tensor: torch.Tensor) -> torch.Tensor:
        name = place[1].removesuffix(".weight")
        if place[0] != "lm" or name not in self.linears or place[1] == name:
            return tensor
        read = {part: handle.get_tensor(key).to(tensor.device) for part, key in self.linears[name].items()}
        whole = merged_weight(tensor, read["lora_A"], read["lora_B"], self.scaling, read.get("lora_magnitude_vector"))
        if not bool(torch.isfinite(whole).all()):
            raise ModelError(f"{self.folder / ADAPTER_TENSORS}: the adapter of {name} makes numbers that are "
                             "not finite; its training diverged, or the file is damaged: give an earlier one, or copy "
                             "it again")
        return whole.to(tensor.dtype)
