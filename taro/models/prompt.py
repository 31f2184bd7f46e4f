"""The prompt of one user turn, video first: the stock processor's token ids, our positions.
Legend: P prompt tokens, M video tokens among them, S temporal patches, N tokens of a patch, D width."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from taro.core.errors import ModelError
from taro.models.chat_template import Turn, chat_template, render_turn
from taro.models.families.base import Family
from taro.models.features import VideoFeatures
from taro.models.language_model import VideoTokens

__all__ = ["Prompt", "PromptFormat"]


@dataclass(frozen=True)
class Prompt:
    """A prompt with one video. ids_P: token ids, video placeholders expanded; positions_3P: M-RoPE; next_position:
    where every rollout starts; places_M: where in the prompt the video's tokens stand, patch by patch (text may stand
    between patches); opened: the `<think>` that the chat template opened, which a response has not (`PromptFormat`)."""

    ids_P: torch.Tensor
    positions_3P: torch.Tensor
    next_position: int
    places_M: torch.Tensor
    features: VideoFeatures
    opened: str = ""

    def __post_init__(self) -> None:
        assert self.positions_3P.shape == (3, len(self.ids_P)), f"{self.positions_3P.shape}, {len(self.ids_P)} ids"
        assert self.places_M.shape == (self.features.tokens,), f"{self.places_M.shape}, {self.features.tokens} tokens"

    @property
    def video(self) -> VideoTokens:
        """The features at their places in the prompt, for the language model."""
        x = self.features
        return VideoTokens(self.places_M, x.main_SND.flatten(0, 1), tuple(y.flatten(0, 1) for y in x.deepstack_LSND))

    def with_features(self, features: VideoFeatures) -> Prompt:
        """The same tokens and positions over other features of the same shape (a disruption)."""
        assert features.main_SND.shape == self.features.main_SND.shape
        assert len(features.deepstack_LSND) == len(self.features.deepstack_LSND)
        return replace(self, features=features)


class PromptFormat:
    """How a model folder writes prompts: its tokenizer and chat template, its family's video tokens and positions.
    Raises ModelError where the folder has no chat template."""

    def __init__(self, folder: Path, config: Any, family: Family, tokenizer: Any) -> None:
        self.folder, self.config, self.family, self.tokenizer = folder, config, family, tokenizer
        self._chat_template = chat_template(folder, tokenizer)
        self._video_id = tokenizer.convert_tokens_to_ids(family.video_token)

    def prompt(self, features: VideoFeatures, user_text: str) -> Prompt:
        """The prompt of one user turn, video first: the stock processor's token ids, our positions.

        Raises ModelError where the features are not of this family and width."""
        shape = (features.main_SND.shape[-1], len(features.deepstack_LSND))
        wanted = (self.config.text_config.hidden_size, self.family.levels(self.config))
        if shape != wanted:
            raise ModelError(
                f"{self.folder}: features of width {shape[0]} with {shape[1]} deepstack levels; this "
                f"{self.family.name} takes width {wanted[0]} with {wanted[1]}. Encode the videos with its own tower "
                "(taro preprocess).")
        texts = self._texts(self.family.video_text(features), user_text)
        run = features.tokens // (len(texts) - 1)
        assert run * (len(texts) - 1) == features.tokens, f"{features.tokens} tokens in {len(texts) - 1} runs"
        ids, places = [*texts[0]], []
        for text in texts[1:]:
            places.append(torch.arange(len(ids), len(ids) + run))
            ids += [*[self._video_id] * run, *text]
        positions, following = self.family.positions(self.config, [len(text) for text in texts], features)
        return Prompt(torch.tensor(ids), positions, following, torch.cat(places), features, self.opened)

    @cached_property
    def _turn(self) -> Turn:
        return render_turn(self.folder, self._chat_template, self.tokenizer, self.family.placeholder)

    @cached_property
    def opened(self) -> str:
        """What the chat template writes of the response: `<think>` and what follows, as thinking checkpoints have it;
        "" where it writes nothing of it. Form and reasoning are read over `opened` plus the response."""
        return self._turn.opened(self.tokenizer.all_special_tokens)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text, no special tokens added."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _texts(self, around: tuple[str, ...], user_text: str) -> list[list[int]]:
        """Token ids of the prompt's texts, the video's tokens left out between them. The user's text is tokenised with
        special tokens as plain text, so a query that spells `<|video_pad|>` stays a query."""
        turn = self._turn
        opening = self.tokenizer([turn.before + around[0], *around[1:-1]], add_special_tokens=False)["input_ids"]
        lead = around[-1] + turn.between
        if any(token in user_text for token in self.tokenizer.all_special_tokens):
            plain = self.tokenizer(user_text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            return [*opening, [*self.encode_text(lead), *plain, *self.encode_text(turn.after)]]
        return [*opening, self.encode_text(lead + user_text + turn.after)]
