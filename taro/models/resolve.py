"""Names of models to folders and back, and names of devices: the one way for policies, captioners, towers and CLIP.

A model is named by a folder (`~` is the home), by `sandbox:NAME` for one that ships with taro, or by its id on the
Hugging Face hub, `OWNER/NAME`, with `@REVISION` for a branch, a tag or a commit. A folder that exists wins over a hub
id of the same spelling. Of the hub only what a model needs is fetched, into the hub's own cache; without a network
what the cache holds is used. Nothing heavy is imported before it is needed: a wrong name is answered at once.
Left out: models in object stores."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from taro.core.errors import ConfigError, ModelError
from taro.core.files import file_sha256
from taro.core.json import read_json
from taro.core.places import expand_home, hub_id

if TYPE_CHECKING:
    import torch

__all__ = ["ADAPTER", "SANDBOX", "SHIPPED", "ModelFolder", "ModelPlace", "base_of", "compute_device", "folder_sha256",
           "is_adapter", "model_id", "model_name", "place_at", "resolve_model", "resolve_place"]

SHIPPED = ("policy", "policy-qwen3-vl", "captioner", "clip")
"""models of taro.sandbox that are named sandbox:NAME"""

SANDBOX = "sandbox:"
ADAPTER = "adapter_config.json"
"""peft's settings: without a config.json beside it the folder is an adapter's, and names its base"""
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
"""config, weights, tokenizer, processor and templates; pickles and code stay where they are"""
LONGEST_NAME = 4096
"""characters of a base's name: no path of Linux is longer"""
DEVICE = re.compile(r"cpu|cuda(?::[0-9]{1,3})?")


def resolve_model(name: str | Path) -> Path:
    """The folder of a model. Raises ModelError where the name stands for none, or where the hub cannot be reached and
    its cache does not hold the model: with the line that fetches it on a machine with a network."""
    text = str(name)
    if text.startswith(SANDBOX):
        return _shipped(text.removeprefix(SANDBOX))
    folder = expand_home(text)
    if text and os.path.isdir(folder):  # noqa: PTH112  a name that is too long for a file is no folder, no OSError
        return folder
    hub = hub_id(text)
    if hub is None:
        raise ModelError(f"{text}: no such model folder; expected a folder with config.json and *.safetensors, "
                         "sandbox:NAME, or a hub id OWNER/NAME[@REVISION]")
    return _fetched(hub["id"], hub["revision"])


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter and no model of its own."""
    return (folder / ADAPTER).is_file() and not (folder / "config.json").exists()


def base_of(folder: Path) -> Path:
    """The folder of the model that an adapter folder is of; any other folder itself. Raises ModelError where it names
    none, or one that is nowhere."""
    if not is_adapter(folder):
        return folder
    settings = read_json(folder / ADAPTER)
    name, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not isinstance(revision, str | None):
        raise ModelError(f"{folder / ADAPTER}: base_model_name_or_path is {name!r:.200}; expected the model that the "
                         "adapter was trained on: a folder, or a hub id with its revision beside it")
    at = f"{name}@{revision}" if revision and hub_id(name) is not None and "@" not in name else name
    try:
        base = resolve_model(at)
    except ModelError as error:
        raise ModelError(f"{folder / ADAPTER}: its base_model_name_or_path cannot be used: {error}") from None
    if is_adapter(base):
        raise ModelError(f"{folder / ADAPTER}: its base {name!r:.200} is an adapter too; expected a whole model")
    return base


@dataclass(frozen=True)
class ModelPlace:
    """The folder of a whole model, and of an adapter that is merged into it."""

    base: Path
    adapter: Path | None = None

    @property
    def asked(self) -> Path:
        """The folder whose taro.json says how the model wants to be asked."""
        return self.adapter if self.adapter is not None and (self.adapter / "taro.json").exists() else self.base

    def sha256(self) -> str:
        """Digest over both."""
        digest = _files_digest(self.base if self.adapter is None else self.adapter)
        if self.adapter is not None:
            digest.update(_files_digest(self.base).hexdigest().encode())
        return digest.hexdigest()


ModelFolder = str | Path | ModelPlace
"""where a policy is loaded from: a folder, of a model or of an adapter that names its base; or base and adapter"""


def place_at(folder: ModelFolder) -> ModelPlace:
    """A model folder as base and adapter. Raises ModelError as `base_of`."""
    if isinstance(folder, ModelPlace):
        return folder
    folder = Path(folder)
    return ModelPlace(base_of(folder), folder if is_adapter(folder) else None)


def resolve_place(name: str | Path, adapter: str | Path | None = None) -> ModelPlace:
    """Base and adapter of a model and an adapter by their names; without one the name may be an adapter's own. Raises
    ModelError as `resolve_model` and `base_of`."""
    folder = resolve_model(name)
    if adapter is None:
        return place_at(folder)
    beside = resolve_model(adapter)
    if is_adapter(folder) or not (beside / ADAPTER).is_file():
        raise ModelError(f"policy {name} and adapter {adapter}: expected a whole model and the folder of an adapter "
                         f"({ADAPTER}); an adapter that names its base may be the policy by itself")
    return ModelPlace(folder, beside)


def model_name(folder: Path) -> str:
    """The way back: what to write for a folder in a command."""
    if folder.name in SHIPPED and folder == _weights() / folder.name:
        return f"{SANDBOX}{folder.name}"
    name, revision = model_id(folder)
    return str(folder) if revision is None else f"{name}@{revision}"


def model_id(folder: Path) -> tuple[str, str | None]:
    """(id, revision) of a model for manifests: OWNER/NAME and commit of a folder in the hub's cache; of another folder
    its bare name, since local paths never enter a shard, and None."""
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return "/".join(repository.split("--")[1:]), folder.name
    return folder.name, None


def folder_sha256(folder: Path) -> str:
    """Digest over a model folder's weights, configs and tokenizer (names and bytes): what a captioner is. Of an
    adapter's folder over its base too."""
    return place_at(folder).sha256()


def _files_digest(folder: Path) -> hashlib._Hash:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in {".safetensors", ".bin", ".pt", ".json", ".jinja", ".txt"}:
            digest.update(f"{path.name}\n{file_sha256(path)}\n".encode())
    return digest


def compute_device(name: str) -> torch.device:
    """The device of "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:N". Raises ConfigError for another name,
    and where torch finds no such GPU."""
    if name != "auto" and not DEVICE.fullmatch(name):
        raise ConfigError(f"device {name!r:.40}: expected auto, cpu, cuda or cuda:N")
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(name.partition(":")[2] or 0) >= found:
            raise ConfigError(f"device={name}: torch finds {found} GPUs here; use device=auto or device=cpu")
    return torch.device(name)


def _weights() -> Path:
    return Path(str(resources.files("taro"))) / "sandbox" / "weights"


def _shipped(name: str) -> Path:
    if name not in SHIPPED:
        raise ModelError(f"{SANDBOX}{name}: no such sandbox model; expected one of: {', '.join(SHIPPED)}")
    folder = _weights() / name
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder}: no weights; reinstall taro, or make them: taro sandbox build OUT --device cuda")
    return folder


@cache
def _fetched(name: str, revision: str | None) -> Path:
    """Once a process: a branch that moves meanwhile is one model all the same."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=list(HUB_FILES))
    except Exception as error:  # noqa: BLE001  what a broken connection raises differs between versions 1 and 2
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        at = "" if revision is None else f" --revision {revision}"
        raise ModelError(f"{name}: no such folder, and the hub does not give a model of that name ({reason}). Check "
                         "the name; for a gated model `hf auth login` first. Without a network here, run `hf download "
                         f"{name}{at} --local-dir DIR` on a machine that has one, copy DIR, and give it as the name"
                         ) from None
    return Path(folder)
