"""Training of adapters in place of the whole model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from taro.core.config import Config

__all__ = ["LoraConfig"]


class LoraConfig(Config):
    """LoRA (docs/lora.md): the policy's own weights are frozen, small matrices beside them are trained."""

    rank: int = Field(16, ge=1, le=1024)
    """of the matrices"""
    alpha: float = Field(32.0, gt=0)
    """the update is multiplied by alpha / rank"""
    dropout: float = Field(0.0, ge=0, lt=1)
    """share of an adapter's inputs that an update leaves out"""
    targets: tuple[Annotated[str, StringConstraints(min_length=1)], ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1)
    """Linears of the language model by name, or by the end of one: layers.0.mlp.up_proj"""
    rslora: bool = False
    """multiply by alpha / sqrt(rank) instead"""
    dora: bool = False
    """train the norm of each row of the weights apart (DoRA); slower"""
