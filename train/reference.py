"""The start policy, to which the KL of the loss is measured: frozen, and never trained.

A reference is a function of a step's rollouts, so that the loop does not ask where its weights lie: whole on the GPU,
shared out over the ranks' GPUs, or in the host's memory. The log-probs are the same to the last bit."""

from __future__ import annotations

from collections.abc import Callable

import torch

from taro.models.load import load_compute
from taro.models.resolve import ModelFolder
from taro.models.streamed import HostStore, ShardedStore, StreamedPolicy
from taro.train.config import TrainConfig
from taro.train.ranks import ALONE, Ranks
from taro.train.rollouts import RolloutBatch, score_prompts

__all__ = ["Reference", "open_reference"]

Reference = Callable[[RolloutBatch], torch.Tensor]
"""a batch -> log-probs [B, G, R] of its responses under the start policy, on the CPU"""


def open_reference(config: TrainConfig, folder: ModelFolder, device: torch.device, *, bf16: bool,
                   ranks: Ranks = ALONE) -> Reference | None:
    """The start policy of a run in the model folder `folder`; None where `loss.kl` is 0 or the objective is sft. Raises
    ModelError as `load_policy`."""
    if config.loss.kl == 0 or config.objective == "sft":
        return None
    double = config.dtype == "float64"
    if config.reference == "gpu":
        policy = load_compute(folder, device, bf16=bf16, double=double)
        return lambda batch: score_prompts(policy, batch.prompts, batch, bf16=bf16)

    def gather(mine_U: torch.Tensor, out_U: torch.Tensor) -> None:
        ranks.all_gather(mine_U, out_U)

    store = HostStore(device) if config.reference == "host" else ShardedStore(device, ranks.rank, ranks.world, gather)
    streamed = StreamedPolicy(folder, device, store, bf16=bf16, double=double)
    return _streamed(streamed, config.rollout.batch_prompts, ranks, bf16=bf16)


def _streamed(reference: StreamedPolicy, at_once: int, ranks: Ranks, *, bf16: bool) -> Reference:
    """Passes of `at_once` prompts; as many on every rank, since the ranks of a sharded reference gather together."""

    def scores(batch: RolloutBatch) -> torch.Tensor:
        counts = [int.from_bytes(one) for one in ranks.gather(len(batch.prompts).to_bytes(8))]
        parts = []
        for start in range(0, max(counts), at_once):
            part = slice(start, start + at_once)
            with torch.autocast(reference.device.type, torch.bfloat16, enabled=bf16):
                parts.append(reference.score(batch.prompts[part], batch.ids_BGR[part], batch.mask_BGR[part],
                                             temperature=batch.decoding.temperature).cpu())
        return torch.cat(parts)

    return scores
