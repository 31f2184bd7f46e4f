"""Settings of `taro train`: one frozen model per concept, every field with its unit; defaults are the paper's.

The concepts are the files of `taro.train.settings`. Left out: anything that a shard set or a model folder already says
(sampling, template, encoder)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from taro.core.config import Config
from taro.core.places import LocalPath, ModelName, TemplateName
from taro.train.curriculum import Curriculum
from taro.train.other_names import OTHER_NAMES
from taro.train.settings.adapters import LoraConfig
from taro.train.settings.data import NAME, DataConfig, Length, Shards, ShardSource
from taro.train.settings.keeping import CheckpointConfig, ValidationConfig
from taro.train.settings.rollout import Control, Gate, RewardConfig, RolloutConfig
from taro.train.settings.tracking import TrackingConfig
from taro.train.settings.update import LossConfig, OptimizerConfig

__all__ = ["CheckpointConfig", "Control", "DataConfig", "Gate", "Length", "LoraConfig", "LossConfig", "OptimizerConfig",
           "RewardConfig", "RolloutConfig", "ShardSource", "TrackingConfig", "TrainConfig", "ValidationConfig"]


class TrainConfig(Config):
    """A training run: one policy, one folder, one shard set or several."""

    other_names: ClassVar[Mapping[str, str]] = OTHER_NAMES

    policy: ModelName
    """model folder, sandbox:NAME, or hub id with @REVISION; or an adapter's folder, which names its base"""
    adapter: ModelName | None = None
    """an adapter's folder, merged into the policy before training begins; null: none"""
    shards: Shards
    """the folder of a shard set; or a list of several, each with its weight and filters"""
    out: LocalPath
    """folder of the run; it must hold no other"""
    seed: int = Field(0, ge=0)
    """of every random draw"""
    objective: Literal["rl", "sft"] = "rl"
    """rl: the method; sft: learn responses written from candidate paths and ground truth, a cold start (docs/sft.md)"""
    template: TemplateName | None = None
    """prompt template, by name or file; null: the one that the policy's folder names, else "taro" """
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one"""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """of computation; auto: bfloat16 on cuda, float32 on cpu. bfloat16: linear layers and embeddings are held so too,
    and optimizer.states says what is trained; float64: for tests of exactness"""
    reference: Literal["gpu", "sharded", "host"] = "gpu"
    """where the start policy of loss.kl lies; the numbers are the same. gpu: beside the policy, on every GPU; sharded:
    shared out over the GPUs, gathered a layer at a time; host: in the machine's memory, streamed a layer at a time"""
    lora: LoraConfig | None = None
    """adapters to train beside a frozen policy; null: the whole language model is trained"""
    length: Length = Length()
    data: DataConfig = DataConfig()
    curriculum: Curriculum = Curriculum()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """besides metrics.jsonl, which is always written"""
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.rollout.prompts % self.optimizer.mini_batches:
            raise ValueError(f"rollout.prompts={self.rollout.prompts} must be a multiple of "
                             f"optimizer.mini_batches={self.optimizer.mini_batches}")
        if self.reward.no_think and self.curriculum.schedule != "off":
            raise ValueError("reward.no_think=true leaves no reasoning to guide; set curriculum.schedule=off")
        if self.dtype == "float64" and (
                (self.optimizer.states, self.reference) != ("float32", "gpu") or self.lora is not None):
            raise ValueError("dtype=float64 goes with optimizer.states=float32, reference=gpu and no lora; got "
                             f"{self.optimizer.states}, {self.reference} and {'a' if self.lora else 'no'} lora; leave "
                             "them out, or choose another dtype")
        if self.optimizer.offload_activations and not self.optimizer.checkpoint_activations:
            raise ValueError("optimizer.offload_activations moves what optimizer.checkpoint_activations keeps; set "
                             "that to true as well")
        if self.lora is not None and self.reference != "gpu":
            raise ValueError(f"reference={self.reference} places a second policy, and with lora there is none: the "
                             "reference is the policy without its adapters; leave reference at gpu")
        _check_sources(self.sources, self.validation)
        if self.reward.overlong_tokens > self.rollout.max_new_tokens:
            raise ValueError(f"reward.overlong_tokens={self.reward.overlong_tokens} are more tokens than a response "
                             f"may have, rollout.max_new_tokens={self.rollout.max_new_tokens}")
        if self.rollout.min_free_tokens >= self.rollout.max_new_tokens and self.curriculum.schedule != "off":
            raise ValueError(f"rollout.min_free_tokens={self.rollout.min_free_tokens} leaves no room for a guided "
                             f"prefix in max_new_tokens={self.rollout.max_new_tokens}")
        return self

    @property
    def sources(self) -> tuple[ShardSource, ...]:
        """The shard sets, each with its name and all its filters."""
        listed = self.shards if isinstance(self.shards, tuple) else (ShardSource(path=self.shards),)
        return tuple(source.filled(self.data) for source in listed)


def _check_sources(sources: tuple[ShardSource, ...], validation: ValidationConfig) -> None:
    """Names that tell sets apart, something to draw from, and a validation split that no set is trained on."""
    names = [str(source.name) for source in sources]
    for name in names if len(names) > 1 else ():
        if names.count(name) > 1 or not re.fullmatch(NAME, name):
            raise ValueError(f"shards: {name!r} does not name one of several sets (letters, digits, _ . and -, at most "
                             "64, each name once); give the sets a `name` of their own")
    if not any(source.weight for source in sources):
        raise ValueError("shards: every set has weight 0; expected one at least to draw from")
    if unknown := [name for name in validation.sets or () if name not in names]:
        raise ValueError(f"validation.sets names {', '.join(unknown)}; the sets are {', '.join(names)}")
    for source in sources:
        asked = validation.sets is None or source.name in validation.sets
        if source.weight and asked and validation.split is not None and validation.split == source.split:
            where = "data.split" if len(sources) == 1 else f"the split that {source.name} is trained on"
            raise ValueError(f"validation.split and {where} are both {source.split!r}; name a split of its own, "
                             "or null to train without validation")
