"""Whether what draws the rollouts is what is trained: the gap between a token's log-prob when drawn and when scored.

Both should be one number, computed twice: by the decoder, under LoRA with the merged replica, and by the scoring pass.
The clipped ratio of the loss takes the scored one as that of the policy that drew the token, so where they part, the
gradient is of something else. Forced tokens were not drawn and do not count.
Legend: B prompts, G rollouts of a group, R response tokens."""

from __future__ import annotations

import numpy as np
import torch

from taro.core.errors import TaroError
from taro.train.ranks import ALONE, Ranks
from taro.train.rollouts import RolloutBatch, Scores

__all__ = ["check_gap"]


def check_gap(batch: RolloutBatch, scores: Scores, bound: float, ranks: Ranks = ALONE) -> None:
    """Raises TaroError, on every rank, where the mean gap over the drawn tokens of all ranks is beyond `bound`. A gap
    that is not a number is left to the update, which counts such steps."""
    drawn_BGR = batch.mask_BGR & (torch.arange(batch.mask_BGR.shape[-1]) >= batch.forced_BG[..., None])
    gap_N = (batch.sampled_BGR - scores.old_BGR).abs()[drawn_BGR].double()
    every = ranks.sum([float(gap_N.sum()), len(gap_N)])
    mean = float(every[0]) / max(float(every[1]), 1.0)
    if not mean > bound:
        return
    mine = np.array([float(gap_N.max()) if len(gap_N) else 0.0])
    largest = max(float(np.frombuffer(one)[0]) for one in ranks.gather(mine.tobytes()))
    raise TaroError(f"step {batch.at.step}: log-probs of the drawn tokens differ between drawing and scoring by "
                    f"{mean:.4g} in the mean (largest {largest:.4g}), beyond rollout.max_gap={bound:g}: the rollouts "
                    "are not the policy's, and the update would be wrong. Likely causes: weights that only one of the "
                    "two passes has (a replica that was not refreshed, a library that patches the model), bfloat16 "
                    "with very large logits (try dtype=float32 on a few steps), or a faulty GPU. Nothing of this step "
                    "was learned; resume from the newest checkpoint")
