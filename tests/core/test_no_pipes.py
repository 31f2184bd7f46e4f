"""A named pipe, a socket or a device where a file is expected is one message: nothing waits for a writer."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from taro.annotations import import_annotations
from taro.annotations.importers import dataset_names
from taro.core.config import load_config, read_yaml
from taro.core.errors import TaroError
from taro.core.files import file_sha256
from taro.core.json import read_json
from taro.core.jsonl import read_jsonl
from taro.grounding.prompts import load_template
from taro.metrics.answers import read_answers
from taro.metrics.predictions import read_responses
from taro.preprocess.captioners.imported import captions_file
from taro.preprocess.clip import clip_encoder
from taro.preprocess.config import PreprocessConfig
from taro.train.checkpoint import read_state
from taro.train.config import TrainConfig
from taro.train.report.data import read_run
from tests.report import synthetic

SECONDS = 30


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """A reader that waits is interrupted, and the test fails."""

    def late(number: int, frame: FrameType | None) -> None:
        raise RuntimeError("it waits for a writer")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def lengths(path: Path) -> Any:
    (path.parent / "a.txt").write_text("v 0.0 1.0##query\n")
    return import_annotations(path.parent / "a.txt", dataset="charades-sta", lengths=path)


def pipes(path: Path, name: str) -> Path:
    """A folder with that file, which is a pipe or a device."""
    (path.parent / "folder").mkdir()
    return path.rename(path.parent / "folder" / name).parent


READERS: dict[str, Callable[[Path], Any]] = {
    **{f"annotations {name}": lambda path, name=name: import_annotations(path, dataset=name)  # type: ignore[misc]
       for name in dataset_names()},
    "lengths": lengths, "captions": captions_file, "answers": read_answers, "predictions": read_responses,
    "train recipe": lambda path: load_config(TrainConfig, path, package="taro.train.recipes"),
    "preprocess recipe": lambda path: load_config(PreprocessConfig, path, package="taro.preprocess.recipes"),
    "yaml": read_yaml, "template": load_template, "checkpoint": lambda path: read_state(pipes(path, "state.json")),
    "weights": file_sha256, "clip": lambda path: clip_encoder(str(pipes(path, "x.bin"))),
}  # fmt: skip


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet", ".json", ".txt", ".yaml"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("reader", READERS)
def test_no_reader_waits(tmp_path: Path, reader: str, kind: str, ending: str) -> None:
    file = tmp_path / f"x{ending}"
    os.mkfifo(file) if kind == "pipe" else file.symlink_to("/dev/zero")
    with pytest.raises((TaroError, OSError) if reader == "weights" else TaroError):
        READERS[reader](file)


def test_a_pipe_in_the_place_of_a_file_that_may_be_missing(tmp_path: Path) -> None:
    """Settings that are a pipe are not no settings; a log that is one holds no line."""
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(TaroError, match="expected a JSON file, found a folder, a pipe or a link to nothing"):
        read_json(tmp_path / "x.json")
    assert read_jsonl(tmp_path / "x.json") == []


def test_a_run_with_a_pipe_is_one_message_or_a_report(tmp_path: Path) -> None:
    run = synthetic.run_folder(tmp_path / "run", steps=4, guided=2, group=2)
    for file in [path for path in sorted(run.rglob("*")) if path.is_file()]:
        data = file.read_bytes()
        file.unlink()
        os.mkfifo(file)
        signal.alarm(SECONDS)
        with contextlib.suppress(TaroError):
            read_run(run)
        file.unlink()
        file.write_bytes(data)
