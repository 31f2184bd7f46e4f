"""A policy from a model folder: language model, head and tokenizer; the vision tower where it is asked for."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from taro.models.encoder import Encoder, load_encoder
from taro.models.families import family_of
from taro.models.folder import check_tokenizer, read_config
from taro.models.language_model import LanguageModel
from taro.models.policy import Policy
from taro.models.resolve import compute_device, resolve_model
from taro.models.tokenizer_files import check_tokenizer_files, tokenizer_errors
from taro.models.weights import build, fill

__all__ = ["load_frozen", "load_policy", "open_policy"]

log = logging.getLogger(__name__)


def load_policy(folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
                tower: bool | Encoder = False, trainable: bool = False) -> Policy:
    """A policy from a Hugging Face model folder.

    Args:
        folder: config.json, *.safetensors, tokenizer and (to encode) processor files.
        tower: also load the frozen vision tower, to encode frames; training leaves it out. An encoder of the same
            folder that is loaded already is used as it is.
        trainable: parameters of language model and head require gradients.

    Raises ModelError: a missing or damaged file, an unknown family, tensors that do not fit the config."""
    from transformers import AutoTokenizer

    folder = Path(folder)
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
    fill({"lm": lm, "head": head}, folder, family, device=torch.device(device), dtype=dtype,
         tied=bool(config.tie_word_embeddings))
    language_model = LanguageModel(lm, head).eval().requires_grad_(trainable)
    encoder = load_encoder(folder, device=device, dtype=dtype) if tower is True else tower or None
    return Policy(folder, config, family, tokenizer, language_model, encoder)


def load_frozen(folder: str | Path, device: torch.device, *, bf16: bool) -> Policy:
    """A policy to compute with, not to train. With `bf16` its matrices are bfloat16, its embeddings and norms are not:
    under autocast it then rounds exactly where the float32 policy in training does, so that a reference equal to the
    policy has KL 0. Raises ModelError as `load_policy`."""
    policy = load_policy(folder, device="cpu" if bf16 else device, dtype=torch.float32)
    if bf16:
        model = policy.language_model
        tied = model.head.weight is model.lm.embed_tokens.weight
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and not (tied and module is model.head):
                module.to(torch.bfloat16)
        model.to(device)
    return policy


def open_policy(name: str, device: str) -> Policy:
    """A policy to ask, by the names of a model and of a device; in bfloat16 on a GPU."""
    where = compute_device(device)
    return load_frozen(resolve_model(name), where, bf16=where.type == "cuda")
