"""On a GPU: a checkpoint has the numbers of the moment it was asked for, however soon the next update comes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from taro.train.checkpoint import RunState, Saver, load_checkpoint, staging
from taro.train.optimizer.optimizer import Optimizer
from taro.train.settings.update import OptimizerConfig, States

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
]


@pytest.mark.parametrize("states", ["float32", "bfloat16", "8bit"])
def test_what_is_staged_is_pinned_and_older_than_the_next_update(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: States) -> None:
    monkeypatch.setattr(staging, "CHUNK_BYTES", 2**24)
    named = {f"lm.layers.{n}.weight": torch.nn.Parameter(torch.randn(3000, 2001, device="cuda").bfloat16())
             for n in range(4)}
    optimizer = Optimizer(named.items(), OptimizerConfig(states=states))
    for piece in optimizer.pieces():
        piece.tensor.copy_(torch.randint(0, 100, piece.tensor.shape, device="cuda"))
    expected = [piece.tensor.cpu().clone() for piece in optimizer.pieces()]
    saver = Saver(tmp_path, optimizer, keep=1)
    room = saver._staging
    assert room is not None and room.ready()
    assert len(room._registered) == len(room._chunks) >= 2 and all(chunk.is_pinned() for chunk in room._chunks)
    for step in (1, 2):
        saver.save(RunState(step=step))
        for piece in optimizer.pieces():  # the next update, on the same stream, at once
            piece.tensor.zero_()
        saver.finish()
        load_checkpoint(tmp_path / f"step-{step:06d}", optimizer)
        for piece, whole in zip(optimizer.pieces(), expected, strict=True):
            assert torch.equal(piece.tensor.cpu(), whole), (step, piece.name, piece.kind)
        for slot in optimizer.slots:
            assert torch.equal(slot.flat, slot.weight.to(slot.parameter.dtype))
    saver.close()
