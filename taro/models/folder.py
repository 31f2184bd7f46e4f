"""A Hugging Face model folder on disk: config, tensors by name, the processor's pixel settings.

Reads safetensors only (never pickle), one tensor at a time: what is not wanted is not read, nor is a file that holds
nothing wanted opened."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from taro.core.errors import ModelError
from taro.core.json import read_json
from taro.models.config_checks import check_config, check_stored
from taro.models.families.base import Family, PixelSettings
from taro.models.tokenizer_files import check_files

__all__ = ["check_tokenizer", "opened", "pixel_settings", "read_config", "template_name",
           "tensor_files", "tensors", "tower_sha256"]

MAX_PATCH_PX = 256
MAX_LAYERS = 1024
"""of a language model or a tower; without weights each still costs memory and time"""


def tensor_files(folder: Path) -> dict[str, Path]:
    """Every tensor's name and the file that holds it. Raises ModelError where there are none or a file is missing."""
    index = read_json(folder / "model.safetensors.index.json").get("weight_map")
    names: dict[str, Path] = {}
    if isinstance(index, dict):
        for name, file in index.items():
            if not isinstance(file, str) or Path(file).name != file:
                raise ModelError(f"{folder}: the weight index names {file!r}; expected a file name in this folder")
            names[name] = folder / file
    else:
        for file in sorted(folder.glob("*.safetensors")):
            with opened(file) as handle:
                names.update(dict.fromkeys(handle.keys(), file))
    if not names:
        raise ModelError(
            f"{folder}: no *.safetensors here; expected a Hugging Face model folder (pickles are not read)")
    for file in sorted(set(names.values())):
        if not file.is_file():
            raise ModelError(f"{folder}: {file.name} is named by the weight index but missing; copy it again")
    return names


def tensors(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of the tensors in the folder whose names are `wanted`, one at a time, sorted by file and name; the
    others are not read from disk."""
    by_file: dict[Path, list[str]] = {}
    for name, file in tensor_files(folder).items():
        if wanted(name):
            by_file.setdefault(file, []).append(name)
    for file in sorted(by_file):
        with opened(file) as handle:
            for name in sorted(by_file[file]):
                yield name, handle.get_tensor(name)


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A safetensors file as the library's `safe_open` gives it. Raises ModelError where it is damaged."""
    try:
        with safe_open(file, framework="pt") as handle:
            yield handle
    except SafetensorError as error:
        raise ModelError(f"{file}: damaged weights ({error!s:.300}); copy the file again") from None


def tower_sha256(folder: Path, family: Family) -> str:
    """sha256 over the tower's tensors sorted by their name inside the tower: name, dtype, shape, bytes."""
    inner = {name: where[1] for name in tensor_files(folder)
             if (where := family.split_name(name)) is not None and where[0] == "tower"}
    parts = {}
    for name, tensor in tensors(folder, inner.__contains__):
        digest = hashlib.sha256(f"{inner[name]} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        parts[inner[name]] = digest.digest()
    if not parts:
        raise ModelError(f"{folder}: holds no vision tower tensors; expected a full {family.name} checkpoint")
    return hashlib.sha256(b"".join(parts[name] for name in sorted(parts))).hexdigest()


def pixel_settings(folder: Path) -> PixelSettings:
    """Normalisation and patch sizes from the processor files. Raises ModelError where the folder has none."""
    whole = read_json(folder / "processor_config.json")
    found = (read_json(folder / "video_preprocessor_config.json") or whole.get("video_processor")
             or read_json(folder / "preprocessor_config.json") or whole.get("image_processor"))
    if not found:
        raise ModelError(
            f"{folder}: no processor files; expected video_preprocessor_config.json, processor_config.json or "
            "preprocessor_config.json beside the weights (copy them from the base model)")
    try:
        settings = PixelSettings(mean=tuple(float(value) for value in found["image_mean"]),
                                 std=tuple(float(value) for value in found["image_std"]),
                                 patch_size=int(found["patch_size"]), merge=int(found["merge_size"]))
        sides = settings.patch_size, settings.merge
        if not (len(settings.mean) == len(settings.std) == 3 and all(1 <= side <= MAX_PATCH_PX for side in sides)
                and all(math.isfinite(value) for value in (*settings.mean, *settings.std)) and all(settings.std)):
            raise ValueError(f"usable values: {settings}")
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder}: the processor file lacks {error!s:.200}; expected image_mean, image_std, "
                         "patch_size, merge_size") from None
    return settings


def read_config(folder: Path) -> Any:
    """transformers' config of a model folder, code of the folder never run. Raises ModelError."""
    check_files(folder)
    check_stored(folder)
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json; expected a Hugging Face model folder (weights, config, tokenizer)")
    try:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        parts = config, getattr(config, "text_config", None), getattr(config, "vision_config", None)
        layers = [getattr(part, name, 0) for part in parts for name in ("num_hidden_layers", "depth")]
    except Exception as error:  # noqa: BLE001  transformers lets through whatever a wrong value leads to
        raise ModelError(f"{folder}: not a usable model folder: {error!s:.300}") from None
    if not all(type(count) is int and 0 <= count <= MAX_LAYERS for count in layers):
        raise ModelError(f"{folder / 'config.json'}: its counts of layers are {layers!s:.100}; expected at most "
                         f"{MAX_LAYERS:,}")
    width, heads = (getattr(parts[2], name, None) for name in ("hidden_size", "num_heads"))
    if type(width) is int and type(heads) is int and (heads < 1 or width % (4 * heads)):
        # Rotary tables take two pairs of numbers of each head; weights of any count of heads have one shape.
        raise ModelError(f"{folder / 'config.json'}: its vision tower has {heads} heads for a width of {width}; "
                         "expected heads of a multiple of 4")
    check_config(folder, config)
    return config


def check_tokenizer(folder: Path, tokenizer: Any, family: Family, config: Any) -> None:
    """Raises ModelError for a tokenizer that is not this model's. Where a folder has none, transformers makes one up
    without vocabulary, with which a policy reads and writes nothing."""
    try:
        tokenizer(["a b", ""], add_special_tokens=False)
        tokenizer.decode([0], skip_special_tokens=False)
    except Exception as error:  # noqa: BLE001  a wrong setting in its files shows only in use
        raise ModelError(f"{folder}: the tokenizer cannot be used: {error!s:.200}; copy its files again") from None
    found = tokenizer.get_vocab().get(family.video_token)
    if found != config.video_token_id or len(tokenizer) > config.text_config.vocab_size:
        raise ModelError(
            f"{folder}: expected this model's tokenizer, with {family.video_token} as id {config.video_token_id} and "
            f"at most {config.text_config.vocab_size:,} tokens; got {found} and {len(tokenizer):,}. Copy "
            "tokenizer.json and tokenizer_config.json (or vocab.json and merges.txt) from the base model")


def template_name(folder: Path) -> str | None:
    """The prompt template that a folder's taro.json names, by name or as a path of the .yaml file beside it; None where
    it names none. Raises ModelError where that is no name."""
    name = read_json(folder / "taro.json").get("template")
    if name is None:
        return None
    if not isinstance(name, str) or not name:
        raise ModelError(f"{folder / 'taro.json'}: template is {name!r}; expected the name of a prompt template, or of "
                         "a .yaml file in this folder")
    beside = folder / Path(name).name
    if beside.suffix not in {".yaml", ".yml"}:
        return name
    if not beside.is_file():  # never a file elsewhere: who made the folder does not choose what is read here
        raise ModelError(f"{folder / 'taro.json'}: template is {name[:200]!a}; expected that .yaml file in this folder")
    return str(beside)
