"""The fuzzer's targets of numbers, answers, heads of videos and files of a model folder, in small; the long run is by
hand (`python benchmarks/fuzz.py`). Each input is a function of its number, so a failure is repeated by `--replay`."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from benchmarks.fuzz import generator
from benchmarks.fuzz_answers import answer_targets
from benchmarks.fuzz_models import model_targets
from benchmarks.fuzz_tables import table_targets
from benchmarks.fuzz_targets import Target
from taro.core.errors import TaroError

INPUTS = 60
NAMES = ("numbers", "times", "protocols", "clock-forms", "demuxers", "config-json", "tokenizer-json", "chat-template",
         "weight-files", "set-keys")  # fmt: skip


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    seeds = tmp_path_factory.mktemp("seeds")
    return {one.name: one for make in (answer_targets, model_targets, table_targets) for one in make(seeds)}


@pytest.mark.parametrize("name", NAMES)
def test_an_input_is_answered_or_refused(targets: dict[str, Target], name: str, tmp_path: Path) -> None:
    for number in range(INPUTS):
        folder = tmp_path / str(number)
        folder.mkdir()
        with contextlib.suppress(TaroError):
            targets[name].run(targets[name].make(generator(1, name, number)), folder)
