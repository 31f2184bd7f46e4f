"""Settings of `taro train`: one frozen model per concept, every field with its unit; defaults are the paper's.

Left out: anything that a shard set or a model folder already says (sampling, template, encoder)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from taro.core.config import Config
from taro.core.places import LocalPath, ModelName, SetPlace, TemplateName, Word
from taro.train.algorithms import ALGORITHMS
from taro.train.algorithms.cloning import OffPolicy
from taro.train.curriculum import Curriculum
from taro.train.disruption import Kind
from taro.train.other_names import OTHER_NAMES
from taro.train.prefixes import PathSource

__all__ = ["CheckpointConfig", "Control", "DataConfig", "Gate", "Length", "LossConfig", "OptimizerConfig",
           "RewardConfig", "RolloutConfig", "ShardSource", "TrainConfig", "ValidationConfig"]

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
"""names of sets; without the characters that part a draw's name"""


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"expected a regular expression, but {error}") from None
    return text


def _ascending(ends: tuple[float, float]) -> tuple[float, float]:
    if not ends[0] <= ends[1]:
        raise ValueError("expected [low, high], low first")
    return ends


def _algorithm(name: str) -> str:
    if name not in ALGORITHMS:
        raise ValueError(f"expected an algorithm: {', '.join(ALGORITHMS)}")
    return name


Regex = Annotated[str, AfterValidator(_regex)]
Range = Annotated[tuple[float, float], AfterValidator(_ascending)]
Gate = Literal[">=", ">"]
Control = Literal["none", "permute-rewards"]


class Length(Config):
    """How long to train."""

    unit: Literal["epochs", "steps"] = "epochs"
    """of `amount`; an epoch draws every selected query once"""
    amount: int = Field(3, ge=1, le=10_000_000)
    """epochs or steps of the whole run, guided ones counted in"""


class DataConfig(Config):
    """Which queries of the shard sets are trained on, and how many make an epoch. A set of several may say otherwise
    for itself, see `ShardSource`."""

    split: str = "train"
    """train on queries of this split"""
    encoder: str | None = None
    """features to read; null: the ones that this policy's tower made"""
    difficulty: Range | None = None
    """keep queries whose difficulty is in [low, high], in the annotations' own unit; null: all"""
    queries: tuple[Word, ...] | None = None
    """keep these query ids; "@FILE": one a line; null: all"""
    keys: tuple[Word, ...] | None = None
    """keep queries of the clips with these keys; "@FILE": one a line; null: all"""
    text: Regex | None = None
    """keep queries in whose text this regular expression is found, capitals or not; null: all"""
    draws: int | None = Field(None, ge=1)
    """queries drawn in an epoch, from all sets together; null: all selected queries"""


class ShardSource(Config):
    """One of several shard sets. A filter that is null is that of `data`; a list `["A", "B"]` of paths is enough where
    the sets are alike."""

    path: SetPlace
    """the set's folder"""
    name: str | None = Field(None, pattern=NAME)
    """in metrics, rollouts and messages; null: the folder's name"""
    weight: float = Field(1.0, ge=0)
    """share of an epoch's draws, against the other sets' weights; 0: nothing is drawn, for validation alone"""
    split: str | None = None
    """queries of this split; null: as in data"""
    encoder: str | None = None
    """features to read; null: as in data"""
    difficulty: Range | None = None
    """keep queries whose difficulty is in [low, high]; null: as in data"""
    queries: tuple[Word, ...] | None = None
    """keep these query ids; null: as in data"""
    keys: tuple[Word, ...] | None = None
    """keep queries of the clips with these keys; null: as in data"""
    text: Regex | None = None
    """keep queries in whose text this is found; null: as in data"""

    @model_validator(mode="before")
    @classmethod
    def _a_path_alone(cls, data: Any) -> Any:
        return {"path": data} if isinstance(data, str | Path) else data

    def filled(self, data: DataConfig) -> Self:
        """With its name, and the filters of `data` where it has none of its own."""
        inherited = {field: getattr(data, field) for field in type(self).model_fields
                     if field in type(data).model_fields and getattr(self, field) is None}
        return self.model_copy(update={"name": self.name or Path(self.path).resolve().name, **inherited})


Shards = Annotated[Annotated[SetPlace, Tag("path")]
                   | Annotated[tuple[ShardSource, ...], Field(min_length=1), Tag("sets")],
                   Discriminator(lambda value: "path" if isinstance(value, str | Path) else "sets")]
"""The folder of one set, or a list of several."""


class RolloutConfig(Config):
    """How responses are drawn."""

    prompts: int = Field(16, ge=1)
    """prompts a step (B)"""
    group: int = Field(8, ge=2)
    """rollouts a prompt (G)"""
    max_new_tokens: int = Field(1024, ge=1, le=32_768)
    """longest response, the guided prefix counted in"""
    temperature: float = Field(1.0, gt=0)
    """of sampling"""
    top_p: float = Field(1.0, gt=0, le=1)
    """share of the probability that sampling keeps; 1: all"""
    paths: PathSource = "random"
    """candidate paths of guided rollouts: the paper's, those with the ground truth's captions, or drawn anew"""
    min_free_tokens: int = Field(48, ge=1)
    """tokens that a guided prefix must leave free for the rest; longer paths lose captions from their end"""
    batch_prompts: int = Field(16, ge=1)
    """prompts decoded and scored at once"""


class RewardConfig(Config):
    """The reward (docs/method.md)."""

    alpha: float = Field(0.3, ge=0)
    """size of the temporal-sensitivity bonus; 0 switches it off"""
    tau: float = Field(0.7, ge=0, le=1)
    """IoU from which an answer may earn the bonus"""
    gate: Gate = ">="
    """IoU gate of the bonus: the released code's ">=" or the paper's ">" (docs/method.md, difference 3)"""
    margin: float = Field(0.0, ge=0)
    """log-probability by which a drop must exceed its group's mean"""
    dt_s: float = Field(3.0, gt=0)
    """patches within this many seconds of a boundary are disrupted"""
    drop_over: Literal["reasoning", "response"] = "reasoning"
    """tokens whose log-probability drop counts (docs/method.md, difference 2)"""
    disruption: Kind = "patch"
    """what is done to the video; all but patch (the method's) are for comparison, see train/disruption.py; frame needs
    the shard set's frame variants, made with the same dt_s"""
    no_think: bool = False
    """accept `<answer>` alone"""
    protocol: Literal["taro", "multi-window"] = "taro"
    """how answers are read and compared; taro: the first window, against the best of the ground truth; multi-window:
    all of an answer's windows against all of the ground truth's (docs/evaluation.md); ask for them: template taro-multi
    """
    control: Control = "none"
    """permute-rewards: an honesty control, totals are permuted inside each group, so a free rollout can
    learn nothing from them (guided ones still imitate prefixes, with advantages that mean nothing)"""

    @model_validator(mode="after")
    def _no_think_has_no_reasoning(self) -> Self:
        if self.no_think and self.alpha > 0 and self.drop_over == "reasoning":
            raise ValueError("no_think responses have no reasoning tokens to measure the drop over; "
                             "set reward.drop_over=response or reward.alpha=0")
        return self


class LossConfig(Config):
    """The loss (docs/method.md)."""

    kind: Annotated[str, AfterValidator(_algorithm)] = "grpo"
    """grpo: advantages over std, token mean; dr_grpo: neither, a constant denominator"""
    off_policy: OffPolicy = "mask"
    """how tokens of guided prefixes are learned from (docs/method.md)"""
    awr_beta: float = Field(1.0, gt=0)
    """temperature of the weights of off_policy awr"""
    kl: float = Field(0.01, ge=0)
    """weight of the k3 KL to the start policy; 0 keeps no reference policy at all"""
    clip_low: float = Field(0.2, gt=0, lt=1)
    """a token's ratio is clipped below 1 - clip_low"""
    clip_high: float = Field(0.2, gt=0)
    """and above 1 + clip_high"""
    dual_clip: float = Field(3.0, gt=1)
    """bound of the ratio where the advantage is negative"""


class OptimizerConfig(Config):
    """AdamW and how a step's batch is spent."""

    lr: float = Field(1e-6, gt=0)
    """learning rate"""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """decay of AdamW's two moments"""
    eps: float = Field(1e-8, gt=0)
    """added to AdamW's denominator"""
    weight_decay: float = Field(0.01, ge=0)
    """of AdamW, decoupled"""
    grad_clip: float = Field(1.0, gt=0)
    """largest norm of the gradient"""
    warmup_steps: int = Field(0, ge=0)
    """linear from lr / warmup_steps; constant afterwards"""
    mini_batches: int = Field(1, ge=1)
    """updates per pass over a step's rollouts"""
    inner_epochs: int = Field(1, ge=1)
    """passes over a step's rollouts"""
    micro_prompts: int = Field(1, ge=1)
    """prompts in one forward and backward; changes memory and speed, not the gradient"""
    checkpoint_activations: bool = False
    """compute activations again in the backward pass: less memory, slower"""
    max_nonfinite: int = Field(3, ge=1)
    """consecutive steps with a non-finite loss or gradient after which the run stops"""


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
    dump_rollouts: bool = True
    """write every step's rollouts to OUT/rollouts"""
    export: Literal["last", "best"] = "last"
    """whose weights the export folder holds; best: on validation"""
    export_dtype: Literal["base", "float32"] = "base"
    """of the exported language model; base: as in the start policy's files (bfloat16 for released ones, to which the
    trained weights are rounded); float32: as trained, twice the size"""


class TrainConfig(Config):
    """A training run: one policy, one folder, one shard set or several."""

    other_names: ClassVar[Mapping[str, str]] = OTHER_NAMES

    policy: ModelName
    """model folder, sandbox:NAME, or hub id with @REVISION"""
    shards: Shards
    """the folder of a shard set; or a list of several, each with its weight and filters"""
    out: LocalPath
    """folder of the run; it must hold no other"""
    seed: int = Field(0, ge=0)
    """of every random draw"""
    template: TemplateName | None = None
    """prompt template, by name or file; null: the one that the policy's folder names, else "taro" """
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """of computation, weights stay float32; auto: bfloat16 on cuda, float32 on cpu"""
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

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.rollout.prompts % self.optimizer.mini_batches:
            raise ValueError(f"rollout.prompts={self.rollout.prompts} must be a multiple of "
                             f"optimizer.mini_batches={self.optimizer.mini_batches}")
        if self.reward.no_think and self.curriculum.schedule != "off":
            raise ValueError("reward.no_think=true leaves no reasoning to guide; set curriculum.schedule=off")
        _check_sources(self.sources, self.validation)
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
