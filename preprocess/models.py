"""Which models a job uses: names to folders, devices, dtypes, and fingerprints.

`sandbox:policy`, `sandbox:captioner` and `sandbox:clip` are the tiny models that ship with taro. Everything is loaded
once per job and only if something needs it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from taro.core.errors import ModelError
from taro.core.files import file_sha256
from taro.models.features import EncoderFingerprint, FrameSampling

if TYPE_CHECKING:
    import torch

    from taro.models.policy import Policy

__all__ = ["device_of", "dtype_of", "encoder_fingerprint", "folder_sha256", "load_tower_policy",
           "model_folder"]

SANDBOX = "sandbox:"


def model_folder(name: str) -> Path:
    """The folder of a model: a path, or one of the sandbox's by name. Raises ModelError where there is none."""
    if name.startswith(SANDBOX):
        from taro.sandbox import weights_folder

        folder = Path(weights_folder(name.removeprefix(SANDBOX)))
    else:
        folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ModelError(f"{name}: no such model folder; expected a folder with config.json and *.safetensors "
                         "(download it first, for instance with `hf download`)")
    return folder


def device_of(name: str) -> torch.device:
    """The device of a setting; auto is a GPU where there is one."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelError(f"device {name!r}: expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {name}: this machine shows no CUDA device to torch; set device to cpu or auto")
    return device


def dtype_of(name: str, device: torch.device) -> str:
    """The dtype of features: auto is bfloat16 on GPUs and float32 on CPUs."""
    if name != "auto":
        return name
    return "bfloat16" if device.type == "cuda" else "float32"


def load_tower_policy(folder: Path, device: torch.device, dtype: str) -> Policy:
    """A policy with its vision tower, frozen."""
    import torch

    from taro.models.load import load_policy

    return load_policy(folder, device=device, dtype=getattr(torch, dtype), tower=True)


def encoder_fingerprint(folder: Path, sampling: FrameSampling, dtype: str) -> tuple[EncoderFingerprint, int]:
    """(fingerprint of a model folder's tower, numbers a video token takes, all its levels), from its files alone."""
    from taro.models.families import family_of
    from taro.models.folder import read_config, tower_sha256

    config = read_config(folder)
    family = family_of(config, folder)
    fingerprint = EncoderFingerprint(
        family=family.name, model_id=folder.name, dtype=dtype, sampling=sampling,
        tower_sha256=tower_sha256(folder, family), size=family.size_label(config),
    )  # fmt: skip
    return fingerprint, int(config.text_config.hidden_size) * (1 + family.levels(config))


def folder_sha256(folder: Path) -> str:
    """Digest over a model folder's weights, configs and tokenizer (names and bytes): what a captioner is."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in {".safetensors", ".bin", ".pt", ".json", ".jinja", ".txt"}:
            digest.update(f"{path.name}\n{file_sha256(path)}\n".encode())
    return digest.hexdigest()
