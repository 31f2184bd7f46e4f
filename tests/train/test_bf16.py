"""bfloat16 computation over float32 weights: the path of a GPU, tried on the CPU and, where there is one, a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from taro.core.jsonl import read_jsonl
from taro.train.config import TrainConfig
from taro.train.loop import train

GAP = 0.05
"""mean |log-prob at sampling - log-prob in scoring| that bfloat16 may cost: decoding and packed rows round apart"""


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_start_policy_has_kl_zero_and_weights_stay_float32(
        device: str, make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(device=device, dtype="bfloat16", length={"amount": 3}, optimizer={"lr": 1e-3},
                         validation={"split": "val", "every": 3, "max_new_tokens": 32})
    report = train(config)
    rows = [row for row in read_jsonl(config.out / "metrics.jsonl") if "eval" not in row]
    assert rows[0]["kl"] == 0.0 and rows[-1]["kl"] > 0.0
    assert rows[0]["clip_fraction"] == 0.0
    assert all(0 < row["logprob_gap"] < GAP for row in rows)
    assert report.skipped == 0 and all(row["loss"] is not None for row in rows)
    from safetensors.torch import load_file

    state = load_file(config.out / "checkpoints/step-000003/rank-00000-of-00001.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_a_float64_run_computes_in_float64_throughout(make_config: Callable[..., TrainConfig]) -> None:
    """Weights and moments are float64, and the reference too: no KL to it that float32 would leave."""
    from safetensors.torch import load_file

    config = make_config(dtype="float64", length={"amount": 2}, loss={"kl": 0.01})
    train(config)
    rows = list(read_jsonl(config.out / "metrics.jsonl"))
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-12) and all(row["logprob_gap"] < 1e-6 for row in rows)
    state = load_file(config.out / "checkpoints/step-000002/rank-00000-of-00001.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float64}
