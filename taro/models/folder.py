"""A Hugging Face model folder on disk: config, the processor's pixel settings. Tensors: taro.models.tensors;
chat template: taro.models.chat_template."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from taro.core.errors import ModelError
from taro.core.files import is_plain_name
from taro.core.json import read_json
from taro.models.config_checks import check_config, check_stored
from taro.models.families.base import Family, PixelSettings
from taro.models.kinds import described, refuse_quantised
from taro.models.tokenizer_files import check_files, tokenizer_errors

__all__ = ["check_tokenizer", "pixel_settings", "read_config", "template_name"]

MAX_PATCH_PX = 256
MAX_LAYERS = 1024
"""of a language model or a tower; without weights each still costs memory and time"""


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
        raise ModelError(f"{folder}: no config.json{described(folder)}; expected a Hugging Face model folder (weights, "
                         "config, tokenizer)")
    try:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        parts = config, getattr(config, "text_config", None), getattr(config, "vision_config", None)
        layers = [getattr(part, name, 0) for part in parts for name in ("num_hidden_layers", "depth")]
    except Exception as error:  # noqa: BLE001  transformers lets through whatever a wrong value leads to
        raise ModelError(f"{folder}: not a usable model folder: {error!s:.300}") from None
    refuse_quantised(folder, config)
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
    with tokenizer_errors(folder):
        tokenizer(["a b", ""], add_special_tokens=False)
        tokenizer.decode([0], skip_special_tokens=False)
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
    if not isinstance(name, str) or not is_plain_name(Path(name).name):
        raise ModelError(f"{folder / 'taro.json'}: template is {name!r:.200}; expected the name of a prompt "
                         "template, or of a .yaml file in this folder")
    beside = folder / Path(name).name
    if beside.suffix not in {".yaml", ".yml"}:
        return name
    if not beside.is_file():  # never a file elsewhere: who made the folder does not choose what is read here
        raise ModelError(f"{folder / 'taro.json'}: template is {name[:200]!a}; expected that .yaml file in this folder")
    return str(beside)
