"""The language model: the stock text model and its head as one `nn.Module`, for prefill, packed scoring and decoding.

Every layer, norm and projection is called as a module, the stock decoder layers by their own forward: adapters (peft),
FSDP2's hooks and transformers' fixes apply. Positions are always ours (families/positions.py); so is the attention
(attention.py). Left out: key-value caches, which belong to whoever hands in the attention.
Legend: B rows, T tokens, D width, M video tokens, L deepstack levels, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from taro.models.attention import Attention, is_routed, route
from taro.models.offload import Recompute, recomputing

__all__ = ["LanguageModel", "RowPass", "VideoTokens", "hidden_states"]


@dataclass(frozen=True)
class VideoTokens:
    """Features of a video in rows of tokens: `main_MD` stands for the embeddings at `places_M`; level l of `levels_LMD`
    (Qwen3-VL's deepstack) is added there to what language layer l puts out. [M, D] is for every row, [B, M, D] holds a
    video of its own for each."""

    places_M: torch.Tensor
    main_MD: torch.Tensor
    levels_LMD: tuple[torch.Tensor, ...] = ()

    def __post_init__(self) -> None:
        assert all(x.shape[-2:-1] == self.places_M.shape for x in (self.main_MD, *self.levels_LMD))

    def place(self, embeds_BTD: torch.Tensor) -> torch.Tensor:
        """The embeddings with the video in place. Placed by position, never by token id: a response may not, but a
        hostile checkpoint could, hold the placeholder."""
        main = _like(self.main_MD, embeds_BTD)
        return embeds_BTD.index_copy(1, self.places_M.to(embeds_BTD.device), main)

    def add(self, layer: int, x_BTD: torch.Tensor) -> torch.Tensor:
        """The hidden states after `layer`, its level added; unchanged past the last level."""
        if layer >= len(self.levels_LMD):
            return x_BTD
        return x_BTD.index_add(1, self.places_M.to(x_BTD.device), _like(self.levels_LMD[layer], x_BTD))


def _like(features_MD: torch.Tensor, x_BTD: torch.Tensor) -> torch.Tensor:
    features = features_MD.to(device=x_BTD.device, dtype=x_BTD.dtype)
    return features.expand(len(x_BTD), *features.shape[-2:])


class LanguageModel(torch.nn.Module):
    """lm: stock text model (`embed_tokens`, `layers`, `rotary_emb`, `norm`); head: [D] to [V]. The two names are those
    of a run's checkpoints."""

    def __init__(self, lm: Any, head: torch.nn.Module) -> None:
        super().__init__()
        route(lm)
        self.lm, self.head = lm, head

    def embed(self, ids_BT: torch.Tensor, video: VideoTokens | None) -> torch.Tensor:
        """Embeddings [B, T, D] with the video in place, in the precision of the norms: what goes from layer to layer is
        not rounded where the embeddings are. Ids at the video's places are not looked at."""
        embeds: torch.Tensor = self.lm.embed_tokens(ids_BT).to(self.lm.norm.weight.dtype)
        return embeds if video is None else video.place(embeds)

    def forward(self, ids_BT: torch.Tensor, positions_3BT: torch.Tensor, attention: Attention, *,
                video: VideoTokens | None = None, checkpoint: Recompute = False) -> torch.Tensor:
        """Hidden states [B, T, D] after the final norm.

        Args:
            ids_BT: token ids; those at the video's places are not looked at.
            positions_3BT: M-RoPE positions.
            attention: the attention of this use.
            video: needed by rows that hold a video's tokens; tokens decoded after them do without.
            checkpoint: recompute each layer in the backward pass instead of keeping its activations; its input is
                kept, or offloaded to host memory.
        """
        return hidden_states(self.lm, self.embed(ids_BT, video), positions_3BT, attention, video=video,
                             checkpoint=checkpoint)


def hidden_states(lm: Any, embeds_BTD: torch.Tensor, positions_3BT: torch.Tensor, attention: Attention, *,
                  video: VideoTokens | None = None, checkpoint: Recompute = False) -> torch.Tensor:
    """As `LanguageModel.forward`, of a stock text model that went through `route`, from embeddings with the video in
    place."""
    row = RowPass(lm, embeds_BTD, positions_3BT, attention, video)
    how = recomputing(checkpoint, len(lm.layers))
    for number, layer in enumerate(lm.layers):
        row.through(number, partial(how, layer) if how else layer)
    normed: torch.Tensor = lm.norm(row.x_BTD)
    return normed


class RowPass:
    """Rows of tokens on their way through the layers of a stock text model that went through `route`: `x_BTD` is what
    the last of them put out. For whoever goes through the layers in an order of their own."""

    def __init__(self, lm: Any, embeds_BTD: torch.Tensor, positions_3BT: torch.Tensor, attention: Attention,
                 video: VideoTokens | None = None) -> None:
        assert is_routed(lm), "route(lm) comes first"
        self.x_BTD, self._attention, self._video = embeds_BTD, attention, video
        self._angles = lm.rotary_emb(embeds_BTD, positions_3BT)

    def through(self, number: int, layer: Callable[..., torch.Tensor]) -> None:
        """Through layer `number`, and what the video adds behind it."""
        x = layer(self.x_BTD, attention_mask=None, position_embeddings=self._angles, attention=self._attention)
        self.x_BTD = x if self._video is None else self._video.add(number, x)
