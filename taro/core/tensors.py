"""Safetensors files written one tensor at a time: a model, or an optimizer's moments, never lies in memory twice.

Why not the library's writer: it takes all tensors at once, on the CPU, which for 7B in float32 with AdamW's moments is
85 GB of host memory; and it orders metadata by a random hash, so bytes would differ from run to run. The layout is the
library's: data by falling element size, then name. Left out: reading (the library's `safe_open` reads one by one)."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["DTYPES", "LazyTensor", "tensor_bytes", "tensors_header", "write_tensors"]

DTYPES = {"F64": "float64", "I64": "int64", "F32": "float32", "I32": "int32", "BF16": "bfloat16", "F16": "float16",
          "I16": "int16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "I8": "int8", "U8": "uint8",
          "BOOL": "bool"}
"""safetensors' name of each of torch's dtypes"""


@dataclass(frozen=True)
class LazyTensor:
    """A tensor to be written that is made or read only when its turn comes. `read` gives it, of this dtype and
    shape."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor | LazyTensor], *,
                  metadata: Mapping[str, str] | None = None, progress: Callable[[int], None] = lambda _: None) -> str:
    """Writes a safetensors file, forced to the disk; returns its sha256. In host memory there is one tensor at a time,
    wherever they are. `progress`: called with the number of tensors written so far. Raises OSError."""
    header, order = tensors_header(tensors, metadata or {})
    digest = hashlib.sha256(header)
    with path.open("wb") as file:
        file.write(header)
        for number, name in enumerate(order, 1):
            one = tensors[name]
            tensor = one.read() if isinstance(one, LazyTensor) else one
            assert (tensor.dtype, tuple(tensor.shape)) == (one.dtype, tuple(one.shape)), f"{name}: not as announced"
            data = tensor_bytes(tensor)
            digest.update(data)
            file.write(data)
            progress(number)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def tensors_header(tensors: Mapping[str, torch.Tensor | LazyTensor],
                   metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """The bytes before the data, with their length in front, and the order of the data."""
    names = {f"torch.{dtype}": name for name, dtype in DTYPES.items()}
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        one, start = tensors[name], end
        end += math.prod(one.shape) * one.dtype.itemsize
        header[name] = {"dtype": names[str(one.dtype)], "shape": list(one.shape), "data_offsets": [start, end]}
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor, on the CPU, row by row."""
    import torch

    data: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(data)
