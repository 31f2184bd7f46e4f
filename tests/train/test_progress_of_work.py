"""How far checkpoints and the export are, as the callback of a run is told."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch

from taro.models.tensors import tensor_files
from taro.train.checkpoint import RunState, Saver
from taro.train.checkpoint import save as saving
from taro.train.config import TrainConfig
from taro.train.loop import train
from taro.train.optimizer.pieces import Piece


def test_the_export_counts_its_tensors(make_config: Callable[..., TrainConfig]) -> None:
    seen = defaultdict[str | None, list[tuple[int, int | None]]](list)
    report = train(make_config(length={"amount": 1}),
                   on_work=lambda what, done, total: seen[what].append((done, total)))
    every = len(tensor_files(report.export))
    assert seen["exporting the policy (tensors)"] == [(0, None), *((n, every) for n in range(1, every + 1))]
    assert "saving a checkpoint (MB)" in seen


class Owner:
    """Three tensors of 4 MB."""

    steps = 0

    def pieces(self) -> list[Piece]:
        return [Piece(f"t{number}", "weight", 10**6, 0, torch.zeros(10**6)) for number in range(3)]

    def load(self, read: Callable[[str, str, int, int], torch.Tensor], steps: int) -> None: ...


@pytest.mark.parametrize("background", [True, False])
def test_a_checkpoint_counts_its_megabytes_while_one_waits(tmp_path: Path, background: bool,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that waits for the one who is told: each word says what was written so far, all are of 12 MB."""
    monkeypatch.setattr(saving, "TELL_S", 0.01)
    monkeypatch.setattr(saving, "BLOCK_BYTES", 10**6)
    told, asked = list[tuple[int, int]](), threading.Event()

    def waiting(parts: Iterator[memoryview]) -> Iterator[memoryview]:
        for part in parts:
            yield part
            asked.clear()
            assert asked.wait(20)

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        asked.set()

    class Slow(Saver):
        def _counted(self, parts: Iterable[memoryview]) -> Iterator[memoryview]:
            return waiting(super()._counted(parts))

    saver = Slow(tmp_path, Owner(), background=background)
    saver.save(RunState(step=1), progress)
    saver.finish(progress)
    saver.close()
    assert {total for _, total in told} == {12}
    counts = [done for done, _ in told]
    assert counts == sorted(counts) and len(set(counts)) > 6 and (tmp_path / "step-000001").is_dir()
