"""A policy: the language model and tokenizer of a checkpoint, its prompts, and its vision tower only where asked.

Made by `taro.models.load.load_policy`. What it is made of has files of its own: language_model.py, prompt.py,
encoder.py. Here is what a response is made of: the tokens that end, pad or may never be in it, and its text.
Legend: R response tokens, V vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from taro.core.json import read_json
from taro.models.encoder import Encoder
from taro.models.families.base import Family
from taro.models.features import EncoderFingerprint, FrameSampling, VideoFeatures
from taro.models.fingerprint import encoder_fingerprint
from taro.models.language_model import LanguageModel
from taro.models.merging import StoredAdapter
from taro.models.prompt import Prompt, PromptFormat

__all__ = ["Policy"]

MAX_TOKENS_PER_CHARACTER = 4
"""of a byte-level tokenizer: a character of UTF-8 has at most four bytes"""


class Policy:
    """See the module. `encoder` is None where it was not asked for: training must not hold the tower. `adapter`: what
    was merged into the tensors of `folder` as they were loaded. `decoder`: of `taro.models.decoding.DECODERS`."""

    def __init__(self, folder: Path, config: Any, family: Family, tokenizer: Any, language_model: LanguageModel,
                 encoder: Encoder | None) -> None:
        self.folder, self.config, self.family, self.tokenizer = folder, config, family, tokenizer
        self.language_model, self.encoder = language_model, encoder
        self.prompts = PromptFormat(folder, config, family, tokenizer)
        self.adapter: StoredAdapter | None = None
        self.decoder = "grouped"
        self._pieces: dict[tuple[int, ...], str] = {}

    @property
    def device(self) -> torch.device:
        """Where the language model is."""
        return next(self.parameters()).device

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Language model and head (once, where tied); never the tower."""
        return self.language_model.named_parameters()

    def trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Those of `named_parameters` that require gradients: all in full training, under LoRA the adapters."""
        return ((name, one) for name, one in self.named_parameters() if one.requires_grad)

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """As `named_parameters`, without names."""
        return self.language_model.parameters()

    @property
    def changed(self) -> tuple[str, ...]:
        """Linears of the language model whose weights, as loaded, are not those in `folder`."""
        return () if self.adapter is None else tuple(self.adapter.linears)

    def prompt(self, features: VideoFeatures, user_text: str) -> Prompt:
        """See `PromptFormat.prompt`."""
        return self.prompts.prompt(features, user_text)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a piece of a response, no special tokens added."""
        return self.prompts.encode_text(text)

    def encode(self, frames_THWC: np.ndarray, frame_times_s: np.ndarray, sampling: FrameSampling, *,
               duration_s: float) -> VideoFeatures:
        """See `Encoder.encode`."""
        assert self.encoder is not None, "load the policy with tower=True to encode"
        return self.encoder.encode(frames_THWC, frame_times_s, sampling, duration_s=duration_s)

    def fingerprint(self, sampling: FrameSampling, dtype: str) -> EncoderFingerprint:
        """What identifies features of this checkpoint's tower; reads the files, the tower need not be loaded."""
        return encoder_fingerprint(self.folder, sampling, dtype)

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a response: of generation_config.json, the config and the tokenizer."""
        found: list[int] = []
        for value in (read_json(self.folder / "generation_config.json").get("eos_token_id"),
                      getattr(self.config.text_config, "eos_token_id", None), self.tokenizer.eos_token_id):
            found += [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int)]
        return tuple(dict.fromkeys(found))

    @cached_property
    def pad_id(self) -> int:
        """Fills ids past the end of a response."""
        return int(self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.eos_ids[0])

    @cached_property
    def banned_V(self) -> torch.Tensor:
        """[V] True for tokens that a response must never hold: vision tokens, padding (unless it ends a response) and
        ids past the tokenizer's. Sampling and scoring both exclude them."""
        banned = torch.zeros(self.config.text_config.vocab_size, dtype=torch.bool)
        banned[len(self.tokenizer) :] = True
        names = [name for name in self.family.vision_tokens if name in self.tokenizer.get_vocab()]
        ids = [*self.tokenizer.convert_tokens_to_ids(names), self.pad_id]
        banned[[i for i in ids if i not in self.eos_ids]] = True
        return banned.to(self.device)

    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """Text of a response, end and padding dropped, tags kept."""
        ends = {*self.eos_ids, self.pad_id}
        kept = [i for i in _plain(ids) if i not in ends]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def reasoning_mask(self, ids: Sequence[int] | torch.Tensor, opened: str = "") -> torch.Tensor:
        """bool [R]: tokens strictly between `<think>` and `</think>`, which the prompt may have `opened`. A token that
        holds a piece of a tag does not count; where `</think>` never comes, everything after `<think>` counts; without
        `<think>`, nothing does."""
        whole = _plain(ids)
        text, spans = self._spans(whole, opened)
        ends = {*self.eos_ids, self.pad_id}
        start = text.find("<think>")
        stop = text.find("</think>", max(start, 0))
        start, stop = (len(text), 0) if start < 0 else (start + len("<think>"), stop if stop >= 0 else len(text))
        inside = [start <= a and b <= stop and b > a and i not in ends
                  for (a, b), i in zip(spans, whole, strict=True)]
        return torch.tensor(inside, dtype=torch.bool)

    def _piece(self, ids: tuple[int, ...]) -> str:
        """Text of a few tokens, remembered: a step asks for that of every response token, one by one."""
        if ids not in self._pieces:
            self._pieces[ids] = self.tokenizer.decode(list(ids), skip_special_tokens=False,
                                                      clean_up_tokenization_spaces=False)
        return self._pieces[ids]

    def _spans(self, whole: list[int], opened: str) -> tuple[str, list[tuple[int, int]]]:
        """Text of `opened` and the tokens, and where in it each token stands; the tokens of one character share its
        place."""
        run, text = 0, opened
        spans: list[tuple[int, int]] = []
        for end in range(1, len(whole) + 1):
            piece = self._piece(tuple(whole[run:end]))
            if piece.endswith("\ufffd") and end - run < MAX_TOKENS_PER_CHARACTER and end < len(whole):
                continue
            spans += [(len(text), len(text) + len(piece))] * (end - run)
            text, run = text + piece, end
        return text, spans


def _plain(ids: Sequence[int] | torch.Tensor) -> list[int]:
    """Token ids as numbers, a tensor's in one go: one by one each of them would be a tensor first."""
    return [int(i) for i in (ids.tolist() if isinstance(ids, torch.Tensor) else ids)]
