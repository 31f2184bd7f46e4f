"""A run that reads its set over http:// or s3:// takes the steps of one that reads it from the folder, to the bit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from taro.shards.index_build import add_index
from taro.shards.remote import store
from taro.shards.transfer.push import Choices, push
from taro.train.loop import train
from tests.shards.helpers_http import serving
from tests.shards.remote.helpers_remote import moto_s3
from tests.train.conftest import Tiny
from tests.train.test_data import numbers, rollouts

pytest.importorskip("moto")
pytest.importorskip("obstore")
pytest.importorskip("webdataset")
READINGS = {"indexed": {"reading": "indexed"}, "stream": {"reading": "stream", "buffer": 4}}
STEPS = 3
"""an epoch"""


@pytest.fixture(scope="module")
def places(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The URL of one set by scheme, and its folder."""
    folder = Path(shutil.copytree(tiny.shards, tmp_path_factory.mktemp("remote") / "set"))
    add_index(str(folder))
    with serving(folder.parent) as web, moto_s3() as bucket:
        push(folder, f"{bucket}/training/set", Choices(i_may_share=True))
        yield {"folder": str(folder), "http": f"{web.url}/set", "s3": f"{bucket}/training/set"}


@pytest.fixture(scope="module", params=READINGS)
def reading(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def local(tiny: Tiny, places: dict[str, str], reading: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run from the folder."""
    return run(tiny, places["folder"], reading, tmp_path_factory.mktemp(reading) / "run")


def run(tiny: Tiny, shards: str, reading: str, out: Path) -> Path:
    """The folder of a run."""
    train(tiny.config(out, shards=shards, length={"amount": STEPS}, data=READINGS[reading]))
    return out


@pytest.mark.parametrize(("scheme", "whole_bytes"), [("http", store.WHOLE_BYTES), ("s3", 0)],
                         ids=["http-whole", "s3-ranges"])
def test_training_over_a_url_is_training_from_the_folder(
        tiny: Tiny, places: dict[str, str], local: Path, reading: str, scheme: str, whole_bytes: int, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TARO_CACHE", str(tmp_path / "cache"))  # of its own: nothing is left there by another run
    with patch.object(store, "WHOLE_BYTES", whole_bytes):
        there = run(tiny, places[scheme], reading, tmp_path / "run")
    assert len(numbers(there)) == STEPS and numbers(there) == numbers(local)
    assert rollouts(there) == rollouts(local)
    name = "export/model.safetensors"
    assert (there / name).read_bytes() == (local / name).read_bytes()
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()) > 0
