"""What is measured on the way and what is kept."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from taro.core.config import Config

__all__ = ["CheckpointConfig", "ValidationConfig"]

class ValidationConfig(Config):
    """Scoring on a named split during training; the best checkpoint is picked here, never on a test split."""

    split: str | None = None
    """null: no validation"""
    sets: tuple[str, ...] | None = None
    """of several shard sets those, by name, whose queries of the split are answered; null: all that hold the split"""
    every: int = Field(20, ge=1)
    """steps; also before the first and after the last"""
    limit: int = Field(128, ge=1)
    """queries of each set, drawn once by the seed"""
    batch_prompts: int = Field(16, ge=1)
    """prompts decoded at once"""
    max_new_tokens: int = Field(1024, ge=1, le=32_768)
    """longest answer"""
    repetition_penalty: float = Field(1.05, gt=0)
    """of greedy decoding; 1: none"""


class CheckpointConfig(Config):
    """What is kept for `--resume`."""

    every: int = Field(50, ge=1)
    """steps; also after the last"""
    keep: int = Field(2, ge=1)
    """newest checkpoints kept, besides the best on validation"""
    background: bool = True
    """write checkpoints while training goes on; host memory then holds the trained weights and moments once more.
    false: training waits, and host memory holds one tensor"""
    dump_rollouts: bool = True
    """write every step's rollouts to OUT/rollouts"""
    export: Literal["last", "best"] = "last"
    """whose weights the export folder holds; best: on validation"""
    export_dtype: Literal["base", "float32"] = "base"
    """of the exported language model; base: as in the start policy's files (bfloat16 for released ones, to which the
    trained weights are rounded); float32: as trained, twice the size"""
