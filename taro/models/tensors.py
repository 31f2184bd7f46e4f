"""The tensors of a model folder: which files hold the model, each tensor by its name, and their digest.

The choice of files is transformers' own: the file that config.json names (`transformers_weights`), else
`model.safetensors`, else the files of `model.safetensors.index.json`, each whole and in the order of their names, so
that of a tensor which two files hold the last counts, whatever the index says. Other files are no part of the model.
Reads safetensors only (never pickle), one tensor at a time: what is not wanted is not read."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from taro.core.errors import ModelError
from taro.core.files import is_plain_name
from taro.core.json import read_json
from taro.models.families.base import Family
from taro.models.kinds import described, misfit, quantised

__all__ = ["INDEX", "check_floats", "is_index", "opened", "places", "tensor_files", "tensors", "tower_sha256",
           "weight_files", "weights_name"]

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DISTRIBUTED = "shard-*-model-*-of-*.safetensors"
"""files of processes that saved a part each: newer releases of transformers take them before all others"""
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
NOT_WEIGHTS = {b"version https://git-lfs": "a Git LFS pointer; fetch them with `git lfs pull`",
               b"<": "a web page; fetch the file again"}
"""how a file begins that a download left in the place of weights, and what it is"""


def weights_name(folder: Path) -> str:
    """The file that transformers begins with: of weights, or an index of several. Raises ModelError where there is none
    or releases of transformers differ."""
    for file in sorted(folder.glob(DISTRIBUTED))[:1]:
        raise ModelError(f"{folder}: {file.name} is a part of a distributed checkpoint, which some releases of "
                         "transformers would load and others pass over; save the whole model, or remove the parts")
    chosen = read_json(folder / "config.json").get("transformers_weights")
    if chosen is None:
        chosen = next((name for name in (WEIGHTS, INDEX) if (folder / name).exists()), None)
    if chosen is None:
        raise ModelError(f"{folder}: no {WEIGHTS} or {INDEX} here{described(folder)}; expected a Hugging Face model "
                         "folder (pickles are not read)")
    return _plain(folder, chosen)


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers would load, in its order. Raises ModelError: see `weights_name`; one is missing."""
    name = weights_name(folder)
    names = [name]
    if is_index(name):
        index = read_json(folder / name).get("weight_map")
        if not isinstance(index, dict) or not index:
            raise ModelError(f"{folder / name}: expected a weight index with a weight_map; copy the file again")
        names = [_plain(folder, file) for file in index.values()]
    files = sorted({folder / file for file in names})
    for path in files:
        if not path.exists():
            raise ModelError(f"{folder}: {path.name} is named by the weight index but missing; copy it again")
    return files


def is_index(name: str) -> bool:
    """Whether a file of that name is an index of weight files."""
    return name.endswith(".index.json")


def _plain(folder: Path, name: Any) -> str:
    if not is_plain_name(name):
        raise ModelError(f"{folder}: the weight index names {name!r:.200}; expected a file name in this folder")
    return str(name)


def tensor_files(folder: Path) -> dict[str, Path]:
    """Every tensor's name and the file that it is loaded from. Raises ModelError: see `weight_files`; a file that
    cannot be read."""
    names: dict[str, Path] = {}
    for file in weight_files(folder):
        with opened(file) as handle:
            names.update(dict.fromkeys(handle.keys(), file))
    if not names:
        raise ModelError(f"{folder}: its weight files hold no tensors; copy them again")
    return names


def tensors(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of the tensors in the folder whose names are `wanted`, one at a time, sorted by file and name; the
    others are not read from disk. Raises ModelError for one that is not of floats, as in quantised models."""
    by_file: dict[Path, list[str]] = {}
    for name, file in tensor_files(folder).items():
        if wanted(name):
            by_file.setdefault(file, []).append(name)
    for file in sorted(by_file):
        with opened(file) as handle:
            for name in sorted(by_file[file]):
                _check_float(folder, name, handle)
                yield name, handle.get_tensor(name)


def check_floats(folder: Path, names: Collection[str]) -> None:
    """Raises ModelError where one of these tensors is not of floats; no tensor is read."""
    files = tensor_files(folder)
    for file in sorted({files[name] for name in names}):
        with opened(file) as handle:
            for name in sorted(name for name in names if files[name] == file):
                _check_float(folder, name, handle)


def _check_float(folder: Path, name: str, handle: Any) -> None:
    dtype = handle.get_slice(name).get_dtype()
    if dtype not in FLOATS:
        raise quantised(folder, f"{name[:200]} is {dtype}")


def places(folder: Path, family: Family) -> dict[str, tuple[str, str]]:
    """Of each tensor that is the model's: its name, its part and its name inside that ("lm", "head", "tower"). Tables
    that the modules make themselves are left out, as are names of no part. Raises ModelError: see `tensor_files`; two
    tensors for one place."""
    found: dict[tuple[str, str], str] = {}
    for name in tensor_files(folder):
        where = family.split_name(name)
        if where is None or where[1].endswith("rotary_emb.inv_freq"):
            continue
        if where in found:
            raise ModelError(f"{folder}: {found[where][:200]} and {name[:200]} are two names of one tensor; remove the "
                             "one that is not the model's")
        found[where] = name
    return {name: where for where, name in found.items()}


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A safetensors file as the library's `safe_open` gives it. Raises ModelError: it is damaged, no file, denied.
    Disk errors of what is done with it pass."""
    with ExitStack() as stack:
        try:
            if not stat.S_ISREG(file.stat().st_mode):  # opening a pipe would wait for its writer
                raise ModelError(f"{file}: expected a file of weights, got something else (a folder, a pipe)")
            with file.open("rb") as start:
                head = start.read(64)
            handle = stack.enter_context(safe_open(file, framework="pt"))
        except SafetensorError as error:
            for sign, what in NOT_WEIGHTS.items():
                if head.lstrip().startswith(sign):
                    raise ModelError(f"{file}: expected weights, got {what}") from None
            raise ModelError(f"{file}: damaged weights ({error!s:.300}); copy the file again") from None
        except OSError as error:
            raise ModelError(f"{file}: cannot be read: {error.strerror or error}; check its permissions") from None
        yield handle


def tower_sha256(folder: Path, family: Family) -> str:
    """sha256 over the tower's tensors sorted by their name inside the tower: name, dtype, shape, bytes."""
    inner = {name: place for name, (part, place) in places(folder, family).items() if part == "tower"}
    parts = {}
    for name, tensor in tensors(folder, inner.__contains__):
        digest = hashlib.sha256(f"{inner[name]} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        parts[inner[name]] = digest.digest()
    if not parts:
        known = misfit(folder, tensor_files(folder), lambda place: place[0] == "tower", family.split_name)
        raise known or ModelError(f"{folder}: holds no vision tower tensors; expected a full {family.name} checkpoint")
    return hashlib.sha256(b"".join(parts[name] for name in sorted(parts))).hexdigest()
