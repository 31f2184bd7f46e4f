"""A run that is asked to stop, in moments that a signal seldom hits: it goes on as if it had not stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from taro.core.errors import Stopped
from taro.core.jsonl import read_jsonl
from taro.train.checkpoint import RunState, checkpoints, read_state
from taro.train.config import TrainConfig
from taro.train.loop import Together, train
from tests.train.conftest import Tiny
from tests.train.test_loop import SPEED


class Asked:
    """Asks a run to stop in the `count`-th moment of a name: a phase, or work beside the steps."""

    def __init__(self, name: str, count: int) -> None:
        self._name, self._count = name, count
        self.seen, self.signals = 0, list[int]()

    def phase(self, name: str, begins: bool) -> None:
        if begins and name == self._name:
            self.seen += 1
            self.signals += [15] if self.seen == self._count else []

    def work(self, name: str | None, done: int, total: int | None) -> None:
        self.phase(name or "", not done)

    @contextlib.contextmanager
    def stopping(self) -> Iterator[Sequence[int]]:
        yield self.signals

    def stop(self, config: TrainConfig) -> None:
        with pytest.raises(Stopped):
            train(config, on_phase=self.phase, on_work=self.work, together=Together(stopping=self.stopping))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in SPEED}
            for row in read_jsonl(folder / "metrics.jsonl")]


@pytest.mark.parametrize("number", [2, 3], ids=["in the middle", "the last one"])
def test_a_run_that_stops_while_it_validates_validates_when_it_goes_on(tiny: Tiny, tmp_path: Path, number: int) -> None:
    """The same lines and the same best checkpoint: scores of the step that it stopped at are not left out."""
    knobs: dict[str, Any] = {"length": {"amount": 2}, "checkpoint": {"every": 1, "export": "best", "keep": 9},
                             "validation": {"split": "val", "every": 1, "max_new_tokens": 48, "batch_prompts": 1}}
    whole, cut = (tiny.config(tmp_path / name, **knobs) for name in ("whole", "cut"))
    train(whole)
    Asked("validating on val", number).stop(cut)
    assert [row["step"] for row in lines(cut.out) if "eval" in row] == list(range(number - 1))
    train(cut, resume=True)
    assert lines(cut.out) == lines(whole.out)

    def states(folder: Path) -> dict[str, RunState]:
        return {path.name: read_state(path) for path in checkpoints(folder / "checkpoints")}

    assert states(cut.out) == states(whole.out)
    train(cut, resume=True)  # nothing is validated twice
    assert lines(cut.out) == lines(whole.out)


def test_rounds_of_redraws_end_when_a_run_is_to_stop(make_config: Callable[..., TrainConfig]) -> None:
    """Responses of 8 tokens all have reward 0: without a stop there would be 64 rounds more."""
    asked = Asked("rollouts", 3)
    asked.stop(make_config(rollout={"redraws": 64, "max_new_tokens": 8, "min_free_tokens": 4}, length={"amount": 1},
                           curriculum={"schedule": "off"}, reward={"alpha": 0.0}))
    assert asked.seen == 3


def test_a_run_stops_between_rollouts_and_scores(make_config: Callable[..., TrainConfig]) -> None:
    """Asked to while it draws, it does not score."""
    asked, phases = Asked("rollouts", 1), list[str]()

    def phase(name: str, begins: bool) -> None:
        phases.append(name)
        asked.phase(name, begins)

    with pytest.raises(Stopped):
        train(make_config(), on_phase=phase, together=Together(stopping=asked.stopping))
    assert "rollouts" in phases and "scores" not in phases
