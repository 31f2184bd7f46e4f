"""The shape of a language model: the numbers of config.json from which every size follows. No weight is read.

Left out: the vision tower, which training never loads. Legend: D width, F width inside the MLP, L layers, H heads, K
key-value heads, d head width, V vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taro.core.places import hub_id

__all__ = ["MODELS", "ModelShape", "RELEASED", "released_shape", "shape_of_config", "shape_of_folder"]


@dataclass(frozen=True)
class ModelShape:
    """One language model with its head. bias: of the query, key and value projections; head_norms: queries and keys
    have norms of their own; tied: the head is the embeddings; levels: deepstack levels of the features."""

    D: int
    F: int
    L: int
    H: int
    K: int
    d: int
    V: int
    tied: bool
    bias: bool
    head_norms: bool
    levels: int

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """The Linears of a layer by their names: (inputs, outputs)."""
        return {"q_proj": (self.D, self.H * self.d), "k_proj": (self.D, self.K * self.d),
                "v_proj": (self.D, self.K * self.d), "o_proj": (self.H * self.d, self.D),
                "gate_proj": (self.D, self.F), "up_proj": (self.D, self.F), "down_proj": (self.F, self.D)}

    @property
    def layer_matrices(self) -> int:
        """Parameters of a layer's Linears, their biases counted in."""
        weights = sum(inputs * outputs for inputs, outputs in self.linears.values())
        return weights + (self.H + 2 * self.K) * self.d * self.bias

    @property
    def layer_norms(self) -> int:
        """Parameters of a layer's norms."""
        return 2 * self.D + 2 * self.d * self.head_norms

    @property
    def norms(self) -> int:
        """Parameters of all norms."""
        return self.L * self.layer_norms + self.D

    @property
    def matrices(self) -> int:
        """Parameters of all Linears and of the embeddings, the head once more where it is not tied."""
        return self.L * self.layer_matrices + self.V * self.D * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All that training can train: language model and head."""
        return self.matrices + self.norms


def shape_of_config(config: Any) -> ModelShape:
    """The shape in transformers' config of a Qwen2.5-VL or Qwen3-VL."""
    text, second = config.text_config, config.model_type == "qwen3_vl"
    heads = int(text.num_attention_heads)
    return ModelShape(
        D=int(text.hidden_size), F=int(text.intermediate_size), L=int(text.num_hidden_layers), H=heads,
        K=int(text.num_key_value_heads), d=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
        V=int(text.vocab_size), tied=bool(config.tie_word_embeddings), bias=not second, head_norms=second,
        levels=len(config.vision_config.deepstack_visual_indexes) if second else 0)


def shape_of_folder(folder: Path) -> ModelShape:
    """The shape that a model folder's config.json describes. Raises ModelError as `read_config`."""
    from taro.models.folder import read_config

    return shape_of_config(read_config(folder))


RELEASED = {
    "qwen2.5-vl-3b": ModelShape(2048, 11008, 36, 16, 2, 128, 151936, True, True, False, 0),
    "qwen2.5-vl-7b": ModelShape(3584, 18944, 28, 28, 4, 128, 152064, False, True, False, 0),
    "qwen3-vl-8b": ModelShape(4096, 12288, 36, 32, 8, 128, 151936, False, False, True, 3),
}
"""name of a released model without its ending -> its shape, so that a plan needs no download"""
MODELS = {"qwen2.5-vl-3b": "Qwen/Qwen2.5-VL-3B-Instruct", "qwen2.5-vl-7b": "Qwen/Qwen2.5-VL-7B-Instruct",
          "qwen3-vl-8b": "Qwen/Qwen3-VL-8B-Instruct"}
"""the same names -> hub ids"""


def released_shape(policy: str) -> ModelShape | None:
    """The shape of a hub id such as Qwen/Qwen2.5-VL-7B-Instruct; None where it is not known.

    >>> released_shape("Qwen/Qwen2.5-VL-3B-Instruct").L, released_shape("someone/else")
    (36, None)
    """
    named = hub_id(policy)
    words = "" if named is None else str(named["id"]).partition("/")[2].lower()
    return next((shape for name, shape in RELEASED.items() if words in {name, f"{name}-instruct", f"{name}-thinking"}),
                None)
