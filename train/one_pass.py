"""The update's own forward pass gives the old log-probs, so that no pass over a row is made twice.

Where a step makes one update of all of its rollouts, the policy that drew them is the policy that is updated: the
log-probs of the forward pass are the old ones, every ratio is 1, and the advantages are numbers that weigh the loss
afterwards. So each group goes through the policy once, is judged (the disrupted pass, rewards, advantages), and goes
back. The loss's denominator is counted before, from the rollouts. The optimizer takes its step once all groups were
seen: what stops a step stops it before anything is learned.
Legend: B prompts, G rollouts, R response tokens."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from taro.models.packing import Packer
from taro.models.policy import Policy
from taro.train.algorithms.base import make_algorithm
from taro.train.config import TrainConfig
from taro.train.disruption import Disruption
from taro.train.phases import Phases
from taro.train.rewards import Rewards, compute_rewards, control_totals
from taro.train.rollouts import Disrupted, RolloutBatch, Scores
from taro.train.update import Judged

__all__ = ["OnePass", "Seen", "in_one_pass"]


def in_one_pass(config: TrainConfig) -> bool:
    """Whether a run's steps can take old log-probs from the update: there is one update a step, no group is drawn again
    for its rewards, no dropout tells the two passes apart, and a group's advantages are its own."""
    optimizer, lora = config.optimizer, config.lora
    return (optimizer.one_pass and optimizer.mini_batches == optimizer.inner_epochs == 1 and not config.rollout.redraws
            and (lora is None or not lora.dropout) and make_algorithm(config.loss).by_group)


class Seen(NamedTuple):
    """What the groups of a batch turned out to be."""

    scores: Scores
    parts: Rewards
    totals_BG: np.ndarray
    advantages_BG: np.ndarray


class OnePass:
    """The `Judge` of such a step. The groups are asked for in their order, each once; then `seen` has all of them."""

    def __init__(self, policy: Policy, batch: RolloutBatch, config: TrainConfig, phases: Phases, *,
                 bf16: bool = False) -> None:
        self._policy, self._batch, self._config, self._phases, self._bf16 = policy, batch, config, phases, bf16
        self._algorithm = make_algorithm(config.loss)
        self._disruption = Disruption(config.reward.disruption, config.reward.dt_s)
        self._disrupted: Disrupted | None = None
        self._seen: list[Seen] = []
        if not batch.samples:
            nothing_BGR = torch.zeros(batch.ids_BGR.shape)
            self(slice(0), nothing_BGR)

    def packer(self, micro: slice) -> Packer:
        """A row a group, which leaves keys and values for the disrupted pass."""
        self._disrupted = Disrupted(self._batch.part(micro), self._disruption)
        return self._disrupted.kept.keep

    def __call__(self, micro: slice, current_BGR: torch.Tensor) -> Judged:
        """Scores, rewards and advantages of these groups."""
        batch, config = self._batch.part(micro), self._config
        disrupted = self._disrupted or Disrupted(batch, self._disruption)
        old_BGR = current_BGR.cpu()
        with self._phases("scores"):
            scores = disrupted.scores(self._policy, old_BGR, config.reward, bf16=self._bf16)
        self._disrupted = None
        with self._phases("rewards"):
            parts = compute_rewards(batch, scores, config.reward)
            totals_BG = control_totals(parts, batch, config.reward.control)
            advantages_BG = self._algorithm.advantages(totals_BG)
        self._seen.append(Seen(scores, parts, totals_BG, advantages_BG))
        return Judged(scores.old_BGR, advantages_BG)

    def seen(self, reference_BGR: torch.Tensor | None) -> Seen:
        """Of the whole batch. reference_BGR: log-probs under the start policy, which come from elsewhere."""
        scores, parts, totals, advantages = zip(*self._seen, strict=True)
        return Seen(Scores.joined(scores, reference_BGR), Rewards.joined(parts), np.concatenate(totals),
                    np.concatenate(advantages))
