"""How responses are drawn and rewarded."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from taro.core.config import Config
from taro.train.disruption import Kind
from taro.train.prefixes import PathSource

__all__ = ["Control", "Gate", "RewardConfig", "RolloutConfig"]

Gate = Literal[">=", ">"]
Control = Literal["none", "permute-rewards"]


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
    redraws: int = Field(0, ge=0, le=64)
    """rounds in which groups of equal rewards, which teach nothing, are drawn again (DAPO's dynamic sampling)"""
    paths: PathSource = "random"
    """candidate paths of guided rollouts: the paper's, those with the ground truth's captions, or drawn anew"""
    min_free_tokens: int = Field(48, ge=1)
    """tokens that a guided prefix must leave free for the rest; longer paths lose captions from their end"""
    batch_prompts: int = Field(16, ge=1)
    """prompts decoded and scored at once"""
    max_gap: float = Field(0.1, gt=0)
    """largest mean over a step's drawn tokens of |log-prob when drawn - log-prob when scored|; beyond it the run stops.
    float32 gives about 1e-6, bfloat16 about 0.02; at 0.1 ratios err by half of what loss.clip_low allows"""


def _function(name: str) -> str:
    module, colon, function = name.partition(":")
    if not (colon and function.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise ValueError("expected module:function, such as rewards:short")
    return name


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
    extra: tuple[tuple[Annotated[str, AfterValidator(_function)], float], ...] = ()
    """functions of your own and their weights in the total, `[["module:function", weight], ...]` (docs/rewards.md)"""
    overlong_tokens: int = Field(0, ge=0)
    """DAPO's overlong shaping: over the last so many tokens before rollout.max_new_tokens the total falls by up to 1;
    0: off"""
    control: Control = "none"
    """permute-rewards: an honesty control, totals are permuted inside each group, so a free rollout can
    learn nothing from them (guided ones still imitate prefixes, with advantages that mean nothing)"""

    @property
    def extra_names(self) -> tuple[str, ...]:
        """Names of what is added to the method's reward, in metrics and rollouts: those of the functions."""
        return (*(name.partition(":")[2] for name, _ in self.extra), *(["overlong"] if self.overlong_tokens else []))

    @model_validator(mode="after")
    def _each_name_once(self) -> Self:
        if len(set(self.extra_names)) < len(self.extra_names):
            raise ValueError(f"extra rewards have the names {', '.join(self.extra_names)}; each function needs a name "
                             "of its own")
        return self

    @model_validator(mode="after")
    def _no_think_has_no_reasoning(self) -> Self:
        if self.no_think and self.alpha > 0 and self.drop_over == "reasoning":
            raise ValueError("no_think responses have no reasoning tokens to measure the drop over; "
                             "set reward.drop_over=response or reward.alpha=0")
        return self
