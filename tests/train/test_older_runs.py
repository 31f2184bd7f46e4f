"""A run that taro 0.1 began goes on here to the same bits."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import save_file

from taro.core.errors import ConfigError
from taro.models.load import load_policy
from taro.train.checkpoint.read import Reader
from taro.train.config import TrainConfig
from taro.train.loop import train
from tests.train.conftest import Tiny
from tests.train.test_many_ranks import assert_weights, rows

RECORDED = Path(__file__).parent / "data/version-1/config.yaml"
"""written by taro 0.1.0: `taro train quickstart` from the folder that holds `shards`, out=run"""


def as_taro_0_1(run: Path, policy: Path, settings: dict[str, Any]) -> None:
    """Makes of a run with one checkpoint what taro 0.1 left: no data.json, settings as they were given, two files of
    whole tensors."""
    (run / "data.json").unlink()
    (run / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    (checkpoint,) = (run / "checkpoints").iterdir()
    shapes = {name: tuple(one.shape) for name, one in load_policy(policy, trainable=True).named_parameters()}
    weights, moments = {}, {}
    with Reader(checkpoint).check() as reader:
        state = reader.content.state
        for (name, kind), (whole, _) in reader.tensors.items():
            tensor = reader.read(name, kind, 0, whole).reshape(shapes[name])
            if kind == "weight":
                weights[name] = tensor
                moments[f"{name}.step"] = tensor.new_tensor(float(reader.steps))
            else:
                moments[f"{name}.{kind}"] = tensor
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()
    digests = {}
    for file, tensors in (("model.safetensors", weights), ("optimizer.safetensors", moments)):
        save_file(tensors, checkpoint / file)
        digests[file] = hashlib.sha256((checkpoint / file).read_bytes()).hexdigest()
    kept = {"step": state.step, "skipped": state.skipped, "nonfinite_streak": state.nonfinite_streak,
            "best_step": state.best_step, "best_score": state.best_score}
    (checkpoint / "state.json").write_text(json.dumps({"version": 1, "state": kept, "sha256": digests}))


def test_it_goes_on_to_the_same_bits(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its relative paths count from where it was started. Other settings are refused by their names."""
    monkeypatch.chdir(tmp_path)
    given = yaml.safe_load(RECORDED.read_text())
    assert (given["shards"], given["out"]) == ("shards", "run")
    given |= {"policy": str(tiny.policy), "shards": os.path.relpath(tiny.shards)}

    def config(out: str, steps: int, **changes: Any) -> TrainConfig:
        return TrainConfig.model_validate({**given, "out": out, "length": {"unit": "steps", "amount": steps},
                                           **changes})

    train(config("whole", 3))
    train(config("run", 2))
    as_taro_0_1(Path("run"), tiny.policy, {**given, "out": "run"})
    with pytest.raises(ConfigError, match=r"Changed: seed: 0 -> 1"):
        train(config("run", 3, seed=1), resume=True)
    train(config("run", 3), resume=True)
    assert rows(Path("run")) == rows(Path("whole"))
    assert_weights(Path("run"), Path("whole"), 3, 0.0)
    train(config("run", 3), resume=True)  # and is one of this taro from then on
