"""A policy from a model folder: language model, head and tokenizer; the vision tower where it is asked for."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import torch

from taro.models.adapter_folder import read_adapter
from taro.models.encoder import Encoder, load_encoder
from taro.models.families import family_of
from taro.models.folder import check_tokenizer, read_config
from taro.models.language_model import LanguageModel
from taro.models.policy import Policy
from taro.models.resolve import ModelFolder, compute_device, place_at, resolve_place
from taro.models.tokenizer_files import check_tokenizer_files, tokenizer_errors
from taro.models.weights import Dtypes, Keep, build, fill

__all__ = ["build_policy", "compute_dtypes", "fill_policy", "load_compute", "load_policy", "open_policy"]

log = logging.getLogger(__name__)


def load_policy(folder: ModelFolder, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
                tower: bool | Encoder = False, trainable: bool = False) -> Policy:
    """A policy from a Hugging Face model folder.

    Args:
        folder: config.json, *.safetensors, tokenizer and (to encode) processor files; or an adapter's
            (`taro.models.adapter_folder`), which is merged into its base.
        tower: also load the frozen vision tower, to encode frames; training leaves it out. An encoder of the same
            folder that is loaded already is used as it is.
        trainable: parameters of language model and head require gradients.

    Raises ModelError: a missing or damaged file, an unknown family, tensors that do not fit the config."""
    policy, tied = build_policy(folder)
    fill_policy(policy, device=torch.device(device), dtype=dtype, tied=tied)
    policy.language_model.requires_grad_(trainable)
    policy.encoder = load_encoder(policy.folder, device=device, dtype=dtype) if tower is True else tower or None
    return policy


def build_policy(folder: ModelFolder) -> tuple[Policy, bool]:
    """A policy whose language model and head have no memory yet, and whether config.json ties the two. Raises
    ModelError as `load_policy`, but for the tensors."""
    from transformers import AutoTokenizer

    place = place_at(folder)
    folder = place.base
    config = read_config(folder)
    family = family_of(config, folder)
    check_tokenizer_files(folder)
    with tokenizer_errors(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    check_tokenizer(folder, tokenizer, family, config)
    if (folder / "adapter_config.json").exists():
        log.warning("%s: adapter_config.json: an adapter that is not applied lies beside the weights; if it is wanted, "
                    "merge it first", folder)
    text = config.text_config
    lm: Any = build(folder, family, lambda: family.build_lm(config))
    head: Any = build(folder, family, lambda: torch.nn.Linear(text.hidden_size, text.vocab_size, bias=False))
    language_model = LanguageModel(lm, head).eval().requires_grad_(False)
    policy = Policy(folder, config, family, tokenizer, language_model, None)
    if place.adapter is not None:
        policy.adapter = read_adapter(policy, place.adapter)
    return policy, bool(config.tie_word_embeddings)


def fill_policy(policy: Policy, *, device: torch.device, dtype: torch.dtype | Dtypes, tied: bool,
                keep: Keep = lambda place, tensor: tensor) -> None:
    """Gives a policy of `build_policy` its tensors, see `taro.models.weights.fill`, those of an adapter merged in."""
    model, adapter = policy.language_model, policy.adapter
    with contextlib.nullcontext() if adapter is None else adapter.merging() as merge:
        fill({"lm": model.lm, "head": model.head}, policy.folder, policy.family, device=device, dtype=dtype, tied=tied,
             keep=keep if merge is None else lambda place, tensor: keep(place, merge(place, tensor)))
    model.requires_grad_(False)


def compute_dtypes(policy: Policy, *, bf16: bool, double: bool = False) -> Dtypes:
    """Of the tensors that a policy computes with. With `bf16` its matrices and embeddings are bfloat16, its norms are
    not, nor is what goes from layer to layer: under autocast that rounds exactly where float32 weights would. `double`:
    all are float64."""
    parts = {"lm": policy.language_model.lm, "head": policy.language_model.head}
    short = {(part, f"{name}.{leaf}".lstrip(".")) for part, module in parts.items()
             for name, inner in module.named_modules() if isinstance(inner, torch.nn.Linear | torch.nn.Embedding)
             for leaf in ("weight", "bias")}
    plain = torch.float64 if double else torch.float32
    return lambda place: torch.bfloat16 if bf16 and place in short else plain


def load_compute(folder: ModelFolder, device: torch.device, *, bf16: bool, trainable: bool = False,
                 double: bool = False) -> Policy:
    """A policy in the precision that it computes in, see `compute_dtypes`; every tensor goes to the device in its own
    dtype, one at a time. `double`: in float64. Raises ModelError as `load_policy`."""
    policy, tied = build_policy(folder)
    fill_policy(policy, device=device, dtype=compute_dtypes(policy, bf16=bf16, double=double), tied=tied)
    if double:
        policy.language_model.double()  # rotary tables too
    policy.language_model.requires_grad_(trainable)
    return policy


def open_policy(name: str, device: str, adapter: str | None = None) -> Policy:
    """A policy to ask, by the names of a model, of a device and of an adapter over the model; in bfloat16 on a GPU."""
    where = compute_device(device)
    return load_compute(resolve_place(name, adapter), where, bf16=where.type == "cuda")
