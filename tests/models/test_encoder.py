"""The tower loads alone: no tensor of the language model is read or held, and a policy can share it."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from taro.core.errors import ModelError
from taro.models.encoder import Encoder, load_encoder
from taro.models.families import FAMILIES
from taro.models.fingerprint import encoder_fingerprint
from taro.models.load import load_policy
from tests.helpers_models import TINY
from tests.models.helpers import SAMPLING, make_frames


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY[request.param](tmp_path_factory.mktemp("tiny"), tied=False)


def tensor_bytes() -> int:
    """Of all tensors that this process holds, each storage once."""
    gc.collect()
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
                for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter) and x.device.type == "cpu"}
    return sum(storages.values())


def encode(encoder: Encoder) -> torch.Tensor:
    return encoder.encode(make_frames(4, 84, 84), np.arange(4) / 2, SAMPLING, duration_s=2.0).main_SND


def test_an_encoder_holds_its_tower_and_nothing_else(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    tower = sum(x.nbytes for name, x in stored.items() if "visual" in name)
    whole = sum(x.nbytes for x in stored.values())
    del stored
    before = tensor_bytes()
    encoder = load_encoder(folder)
    alone = tensor_bytes() - before
    assert tower <= alone < tower + 4096, "rotary tables beside the weights"
    policy = load_policy(folder, tower=encoder)
    assert whole <= tensor_bytes() - before < whole + 8192, "the policy came without a tower of its own"
    assert policy.encoder is encoder
    mine = encode(encoder)
    own = load_policy(folder, tower=True).encoder
    assert own is not None and torch.equal(mine, encode(own))
    assert encoder.fingerprint(SAMPLING, "float32") == policy.fingerprint(SAMPLING, "float32")
    assert encoder_fingerprint(folder, SAMPLING, "float32") == encoder.fingerprint(SAMPLING, "float32")


def test_no_tensor_of_the_language_model_is_read(folder: Path, tmp_path: Path) -> None:
    """They are no numbers: the encoder does not look, a policy says so."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    stored = load_file(copy / "model.safetensors")
    parts = {"tower": {n: x for n, x in stored.items() if "visual" in n},
             "language": {n: x for n, x in stored.items() if "visual" not in n}}
    (copy / "model.safetensors").unlink()
    for part, content in parts.items():
        save_file(content, copy / f"{part}.safetensors", metadata={"format": "pt"})
    names = {name: f"{part}.safetensors" for part, content in parts.items() for name in content}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    wanted = encode(load_encoder(folder))
    save_file({name: x * float("nan") for name, x in parts["language"].items()}, copy / "language.safetensors")
    assert torch.equal(encode(load_encoder(copy)), wanted)
    with pytest.raises(ModelError, match="not finite"):
        load_policy(copy)


def test_a_folder_without_a_tower_is_named(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    stored = load_file(copy / "model.safetensors")
    save_file({n: x for n, x in stored.items() if "visual" not in n}, copy / "model.safetensors",
              metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"the weights do not fit config\.json"):
        load_encoder(copy)
