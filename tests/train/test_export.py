"""The export of a policy that computes with rounded weights: the trained ones, of all ranks, a tensor at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file

from taro.train.config import TrainConfig
from taro.train.export import export_run
from taro.train.open import open_run
from taro.train.step import train_step
from tests.train.live_bytes import LiveBytes


@pytest.mark.parametrize("dtype", ["base", "float32"])
def test_the_export_has_the_trained_weights_not_those_computed_with(
        make_config: Callable[..., TrainConfig], dtype: str) -> None:
    """The base's files are float32, so both exports must hold the float32 weights."""
    config = make_config(dtype="bfloat16", length={"amount": 1}, loss={"kl": 0.0}, checkpoint={"export_dtype": dtype})
    run = open_run(config, resume=False)
    train_step(run)
    assert any(slot.is_copy and not torch.equal(slot.weight, slot.flat.float()) for slot in run.optimizer.slots)
    trained = {slot.name: slot.weight.clone() for slot in run.optimizer.slots}
    run.saver.save(run.state)
    with LiveBytes(()) as live:
        export_run(run)
    run.close()
    exported = load_file(config.out / "export/model.safetensors")
    found = {name: exported[name] for name in exported if "visual" not in name}
    largest = max(one.nbytes for one in exported.values())
    for name, tensor in found.items():
        ours = name.replace("model.language_model.", "lm.").replace("model.", "lm.").replace("lm_head.", "head.")
        assert tensor.dtype == torch.float32 and torch.equal(tensor.flatten(), trained[ours]), name
    assert len(found) == len(trained)
    assert largest <= live.peak < 3 * largest, f"{live.peak} bytes for tensors of {largest} at most"
