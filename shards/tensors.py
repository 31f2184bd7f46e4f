"""Tensors as safetensors bytes: written so that equal tensors give equal bytes, read as untrusted bytes.

Why not the safetensors library: its writer orders metadata by a random hash, so bytes would differ from run to run;
and here the header is parsed under bounds (size, depth, names, dtype, rank, dimensions, offsets that tile the buffer)
before anything is allocated. The files are plain safetensors: any reader opens them. Left out: fp8 (a later minor
version).

Legend: S temporal patches, N tokens of a patch, D width, T frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from taro.core.errors import ShardError
from taro.core.json import parse_json
from taro.core.numbers import read_count, read_number
from taro.core.tensors import DTYPES, tensor_bytes, tensors_header
from taro.models.features import VideoFeatures
from taro.shards.format import MAX_DIM, MAX_HEADER_BYTES, MAX_MEMBER_BYTES, MAX_RANK, MAX_TENSORS

if TYPE_CHECKING:
    import torch

__all__ = ["HEADER_BYTES", "encoder_levels", "pack_features", "pack_frames", "pack_tensors", "stored_shape",
           "unpack_features", "unpack_frames", "unpack_tensors"]

DTYPE_BYTES = {"F64": 8, "I64": 8, "F32": 4, "BF16": 2, "F16": 2}
FEATURE_DTYPES = ("BF16", "F16", "F32")
MAX_LEVELS = 16
MAX_NAME_CHARACTERS = 200
COPIED_BYTES = 2**16
"""a tensor of fewer is copied out of its record"""
HEADER_BYTES = 8192
"""of a features record, within which its header ends"""


def pack_tensors(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """Safetensors bytes: header keys sorted; data by falling element size, then name, as the library lays it out."""
    stored = {f"torch.{DTYPES[dtype]}" for dtype in DTYPE_BYTES}
    for name, tensor in tensors.items():
        assert str(tensor.dtype) in stored, f"{name}: {tensor.dtype} is not stored in shards"
    header, order = tensors_header(tensors, metadata)
    return b"".join([header, *(tensor_bytes(tensors[name]) for name in order)])


def unpack_tensors(data: bytes | memoryview, where: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of safetensors bytes; what does not fit the format is a ShardError opening with `where`.
    Large tensors lie in the memory of `data` where that may be written."""
    import torch

    start, header = _header(data, where)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ShardError(f"{where}: safetensors metadata is not a map from text to text")
    layout = _layout(header, len(data) - start, where)
    tensors = {}
    for name, (dtype, shape, begin, end) in layout.items():
        raw = memoryview(data)[start + begin : start + end]
        # A view of a record that may be written and is this reader's own. A copy where it would not be aligned, and
        # of what is small, so that it does not keep the whole record alive.
        if raw.readonly or len(raw) < COPIED_BYTES or np.frombuffer(raw, np.uint8).ctypes.data % DTYPE_BYTES[dtype]:
            raw = memoryview(bytearray(raw))
        tensors[name] = torch.frombuffer(raw, dtype=getattr(torch, DTYPES[dtype])).reshape(shape)
    return tensors, metadata


def _header(data: bytes | memoryview, where: str) -> tuple[int, dict[str, Any]]:
    if not 8 <= len(data) <= MAX_MEMBER_BYTES:
        raise ShardError(f"{where}: {len(data):,} bytes are no safetensors file")
    size = int.from_bytes(data[:8], "little")
    if size > MAX_HEADER_BYTES or 8 + size > len(data):
        raise ShardError(f"{where}: a safetensors header of {size:,} bytes in a record of {len(data):,} "
                         f"(at most {MAX_HEADER_BYTES:,})")
    header = parse_json(bytes(data[8 : 8 + size]), f"{where}: safetensors header", limit_bytes=MAX_HEADER_BYTES)
    if not isinstance(header, dict) or not len(header) <= MAX_TENSORS + 1:
        raise ShardError(f"{where}: the safetensors header is not a map of at most {MAX_TENSORS} tensors")
    return 8 + size, header


def _layout(header: dict[str, Any], room: int, where: str) -> dict[str, tuple[str, list[int], int, int]]:
    """Per tensor dtype, shape and byte range, checked to tile `room` bytes without gap or overlap."""
    found: dict[str, tuple[str, list[int], int, int]] = {}
    for name, entry in header.items():
        if len(name) > MAX_NAME_CHARACTERS:
            raise ShardError(f"{where}: a tensor's name has {len(name):,} characters, at most {MAX_NAME_CHARACTERS}")
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ShardError(f"{where}: tensor {name[:80]!r} lacks dtype, shape or data_offsets, or has more")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
            raise ShardError(f"{where}: tensor {name[:80]!r} has dtype {str(dtype)[:40]!r}, "
                             f"expected one of {', '.join(DTYPE_BYTES)}")
        if not _counts(shape, 1, MAX_DIM) or not 1 <= len(shape) <= MAX_RANK:
            raise ShardError(f"{where}: tensor {name[:80]!r} has shape {str(shape)[:80]}, expected 1 to {MAX_RANK} "
                             f"dimensions of 1 to {MAX_DIM}")
        if not _counts(offsets, 0, MAX_MEMBER_BYTES) or len(offsets) != 2:
            raise ShardError(f"{where}: tensor {name[:80]!r} has data_offsets {str(offsets)[:80]}")
        if offsets[1] - offsets[0] != math.prod(shape) * DTYPE_BYTES[dtype]:
            raise ShardError(f"{where}: tensor {name[:80]!r} of shape {shape} and {dtype} lies at bytes {offsets}")
        found[name] = (dtype, shape, offsets[0], offsets[1])
    end = 0
    for name, (_, _, begin, stop) in sorted(found.items(), key=lambda item: item[1][2]):
        if begin != end:
            raise ShardError(f"{where}: tensor {name[:80]!r} begins at byte {begin} of the data, expected {end}")
        end = stop
    if end != room:
        raise ShardError(f"{where}: tensors end at byte {end} of the data, which has {room}")
    return found


def _counts(values: Any, least: int, most: int) -> bool:
    return isinstance(values, list) and all(type(value) is int and least <= value <= most for value in values)


def pack_features(features: VideoFeatures) -> bytes:
    """KEY.safetensors of a features shard: `main` [S, N, D], `deepstack.0`.., `times_s` float64 [S]; grid and stride as
    metadata (Python's shortest repr, which reads back to the same float)."""
    import torch

    tensors = {"main": features.main_SND, "times_s": torch.from_numpy(np.array(features.times_S, dtype=np.float64))}
    tensors |= {f"deepstack.{level}": tensor for level, tensor in enumerate(features.deepstack_LSND)}
    grid = ",".join(str(int(side)) for side in features.grid_thw)
    return pack_tensors(tensors, {"grid_thw": grid, "seconds_per_patch": repr(float(features.seconds_per_patch))})


def unpack_features(data: bytes | memoryview, where: str = "features") -> VideoFeatures:
    """The features that `pack_features` wrote, with every rule of the format checked."""
    tensors, metadata = unpack_tensors(data, where)
    main, deepstack = encoder_levels(tensors, ("times_s",), where)
    times = tensors["times_s"]
    grid, stride = _grid(metadata, where)
    if str(times.dtype) != "torch.float64" or times.ndim != 1 or not times.isfinite().all():
        raise ShardError(f"{where}: times_s is {times.dtype} {tuple(times.shape)}; expected finite float64 [S]")
    if not grid[0] == main.shape[0] == times.shape[0]:
        raise ShardError(f"{where}: main has {main.shape[0]} patches, times_s {times.shape[0]}, grid_thw {grid[0]}")
    if grid[1] * grid[2] % main.shape[1]:
        raise ShardError(f"{where}: {main.shape[1]} tokens a patch do not divide its grid of {grid[1]} x {grid[2]}")
    return VideoFeatures(main, times.numpy(), grid, stride, deepstack)


def stored_shape(start: bytes, where: str) -> tuple[int, int, int]:
    """(S, N, D) of a features record, from its first HEADER_BYTES. The data is not checked: it is not there."""
    shape = _header(start, where)[1].get("main", {}).get("shape")
    if not _counts(shape, 1, MAX_DIM) or len(shape) != 3:
        raise ShardError(f"{where}: main has shape {str(shape)[:80]}, expected [S, N, D]")
    return shape[0], shape[1], shape[2]


def encoder_levels(tensors: Mapping[str, torch.Tensor], others: Sequence[str],
                   where: str) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """`main` [S, N, D] and the deepstack levels of a record that holds the tensors `others` besides; ShardError unless
    they are all that it holds, of one shape and one dtype of features."""
    levels = len(tensors) - 1 - len(others)
    if set(tensors) != {"main", *others, *(f"deepstack.{level}" for level in range(levels))} or levels > MAX_LEVELS:
        raise ShardError(f"{where}: tensors are {sorted(tensors)[:8]}, expected main, {', '.join(others)} and "
                         "deepstack.0..")
    main, deepstack = tensors["main"], tuple(tensors[f"deepstack.{level}"] for level in range(levels))
    if main.ndim != 3 or any(level.shape != main.shape or level.dtype != main.dtype for level in deepstack):
        raise ShardError(f"{where}: main has shape {tuple(main.shape)}, deepstack "
                         f"{[tuple(x.shape) for x in deepstack]}; expected [S, N, D], all alike")
    if main.element_size() == 8:
        raise ShardError(f"{where}: main is {main.dtype}, expected a dtype of {', '.join(FEATURE_DTYPES)}")
    return main, deepstack


def _grid(metadata: dict[str, str], where: str) -> tuple[tuple[int, int, int], float]:
    sides = [read_count(side) or 0 for side in metadata.get("grid_thw", "").split(",", 3)]
    stride = read_number(metadata.get("seconds_per_patch", ""))
    if len(sides) != 3 or not all(1 <= side <= MAX_DIM for side in sides) or stride is None or not 0 <= stride <= 1e6:
        raise ShardError(f"{where}: metadata {str(metadata)[:200]}, expected grid_thw \"t,h,w\" and a finite "
                         "seconds_per_patch")
    t, h, w = sides
    return (t, h, w), stride


def pack_frames(frames_TD: torch.Tensor) -> bytes:
    """KEY.safetensors of a clip shard: `frames` [T, D], the CLIP features of the sampled frames."""
    assert frames_TD.ndim == 2, f"CLIP features are [T, D], got {tuple(frames_TD.shape)}"
    return pack_tensors({"frames": frames_TD}, {})


def unpack_frames(data: bytes | memoryview, where: str = "clip features") -> torch.Tensor:
    """The CLIP features [T, D] that `pack_frames` wrote."""
    tensors, _ = unpack_tensors(data, where)
    if set(tensors) != {"frames"} or tensors["frames"].ndim != 2 or not tensors["frames"].is_floating_point():
        raise ShardError(f"{where}: expected one tensor, frames [T, D], got {sorted(tensors)[:8]}")
    return tensors["frames"]
