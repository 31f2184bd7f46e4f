"""The loss and the optimizer."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from taro.core.config import Config
from taro.train.algorithms import ALGORITHMS, OWN_SETTINGS
from taro.train.algorithms.cloning import OffPolicy

__all__ = ["LossConfig", "OptimizerConfig", "States"]

States = Literal["float32", "bfloat16", "8bit"]


def _algorithm(name: str) -> str:
    if name not in ALGORITHMS:
        raise ValueError(f"expected an algorithm: {', '.join(ALGORITHMS)}")
    return name


class LossConfig(Config):
    """The loss (docs/method.md)."""

    kind: Annotated[str, AfterValidator(_algorithm)] = "grpo"
    """grpo: advantages over std, token mean; dr_grpo: neither, a constant denominator; dapo: grpo with clip_high=0.28,
    no dual_clip, kl=0; gspo: a ratio a response, clip_low=3e-4, clip_high=4e-4, no dual_clip (where not given)"""
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
    dual_clip: float | None = Field(3.0, gt=1)
    """bound of the ratio where the advantage is negative; null: none"""
    entropy: float = Field(0.0, ge=0)
    """weight of the entropy bonus: the entropy of each token's distribution, in nats; 0: it is not computed"""
    mask_truncated: bool = False
    """leave tokens of responses that were cut off at max_new_tokens out of the loss and its denominator"""

    @model_validator(mode="before")
    @classmethod
    def _own_settings(cls, data: Any) -> Any:
        return {**OWN_SETTINGS.get(str(data.get("kind")), {}), **data} if isinstance(data, dict) else data


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
    """linear from lr / warmup_steps up to lr"""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """of the learning rate after the warm-up; linear and cosine fall from lr to min_lr at the end of the run"""
    min_lr: float = Field(0.0, ge=0)
    """where linear and cosine end"""
    mini_batches: int = Field(1, ge=1)
    """updates per pass over a step's rollouts"""
    inner_epochs: int = Field(1, ge=1)
    """passes over a step's rollouts"""
    micro_prompts: int = Field(1, ge=1)
    """prompts in one forward and backward; changes memory and speed, not the gradient"""
    states: States = "float32"
    """what is kept of each trained parameter, in bytes. float32: 16 (weight, gradient and two moments of 4); bfloat16:
    12 (moments of 2); 8bit: 6 (weight and gradient of 2, moments of 1). The first two hold 2 more where the policy
    computes in bfloat16. What is short is rounded by chance, right in the mean"""
    one_pass: bool = True
    """take the old log-probs from the update's own forward pass where they are the same: one update a step
    (mini_batches and inner_epochs 1), no rollout.redraws, no lora.dropout. False: from a pass of their own"""
    checkpoint_activations: bool = False
    """compute activations again in the backward pass: less memory, slower"""
    offload_activations: bool = False
    """keep what checkpoint_activations still holds, the layers' inputs, in the machine's memory until it is needed"""
    max_nonfinite: int = Field(3, ge=1)
    """consecutive steps with a non-finite loss or gradient after which the run stops"""

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.min_lr and (self.schedule == "constant" or self.min_lr > self.lr):
            raise ValueError(f"min_lr={self.min_lr} is where schedule linear or cosine ends, at most lr={self.lr}; got "
                             f"schedule={self.schedule}; leave min_lr out, or choose such a schedule")
        return self
