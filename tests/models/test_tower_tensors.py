"""The tower's tensors are looked at before training, though training loads none: an export has them, and shards name
their digest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from taro.core.errors import ModelError
from taro.models.families import FAMILIES, family_of
from taro.models.folder import read_config
from taro.models.load import load_policy
from taro.models.tensors import tower_sha256
from tests.helpers_models import TINY


@pytest.fixture(params=sorted(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    made: Path = TINY[request.param](tmp_path)
    return made


@pytest.mark.parametrize(("prefix", "message"), [
    ("module.", r"got module\..*, as DistributedDataParallel or DeepSpeed names them"),
    ("_orig_mod.", r"got _orig_mod\..*, as torch\.compile names them"), ("base_model.model.", "as peft"),
    ("policy.", "which transformers does not load; rename them$"),
])  # fmt: skip
def test_a_tower_under_the_names_of_a_wrapper_is_named(folder: Path, prefix: str, message: str) -> None:
    """Features are compared with the tower before a policy is loaded."""
    stored = load_file(folder / "model.safetensors")
    save_file({f"{prefix}{name}": tensor for name, tensor in stored.items()}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        tower_sha256(folder, family_of(read_config(folder), folder))


def test_a_text_model_has_no_tower_under_any_name(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    text = {name: tensor for name, tensor in stored.items() if "visual." not in name}
    assert 0 < len(text) < len(stored)
    save_file(text, folder / "model.safetensors")
    with pytest.raises(ModelError, match="holds no vision tower tensors"):
        tower_sha256(folder, family_of(read_config(folder), folder))


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64, torch.complex64, torch.float8_e8m0fnu,
                                   torch.int8, torch.float8_e4m3fn, torch.bool])  # fmt: skip
def test_a_tower_that_is_not_of_floats_is_refused_before_training(folder: Path, dtype: torch.dtype) -> None:
    stored = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(stored) if "visual." in name)
    save_file({**stored, name: torch.ones(stored[name].shape).to(dtype)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=rf"quantised weights \({re.escape(name)} is "):
        load_policy(folder)
