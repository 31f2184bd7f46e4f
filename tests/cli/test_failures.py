"""What the system refuses is one message with its cause and what to do, never a possible defect of taro."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main

from taro.cli import app as cli
from taro.cli.failures import GPU, HOST, explained
from taro.core.config import Config
from taro.preprocess.config import PreprocessConfig
from taro.train.config import TrainConfig

SETTINGS: dict[str, type[Config]] = {"train": TrainConfig, "preprocess": PreprocessConfig}


def raised(action: Any) -> BaseException:
    with pytest.raises(BaseException) as caught:
        action()
    return caught.value


@pytest.mark.parametrize(("error", "kind"), [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "GPU"),
    (RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"), "GPU"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "GPU"),
    (raised(lambda: torch.empty(2**60, dtype=torch.uint8)), "machine"), (MemoryError(), "machine"),
    (raised(lambda: bytearray(2**62)), "machine"),
], ids=lambda value: str(value)[:40])  # fmt: skip
def test_full_memory_is_named_with_what_needs_less(error: BaseException, kind: str) -> None:
    for command in cli.COMMANDS:
        told = str(explained(error, command))
        advice = (GPU if kind == "GPU" else HOST).get(command, "")
        assert told.startswith(f"the {kind}'s memory is full (") and told.endswith(advice), told
        assert "\n" not in told and "TORCH_USE_CUDA_DSA" not in told, "advice to programmers is left out"


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("shape '[2]' is invalid"), ValueError("out of range")])
def test_a_defect_stays_one(error: BaseException) -> None:
    assert explained(error, "train") is None


def test_the_settings_that_are_advised_exist() -> None:
    for command, advice in [*GPU.items(), *HOST.items()]:
        for path in re.findall(r"\b([a-z_]+\.[a-z_]+|slice_bytes|workers)\b", advice):
            model: Any = SETTINGS[command]
            for name in path.split("."):
                assert name in model.model_fields, (command, path)
                model = model.model_fields[name].annotation
        flags = {flag for option in typer.main.get_command(cli.app).resolve_command(None, [command])[1].params
                 for flag in option.opts}
        assert set(re.findall(r"--[a-z-]+", advice)) <= flags, command


def test_rights_and_folders_in_place_of_files_are_no_defect(tmp_path: Path) -> None:
    from safetensors import safe_open

    folder = tmp_path / "model.safetensors"
    folder.mkdir()
    for action in (folder.read_bytes, lambda: safe_open(folder, framework="pt")):
        told = str(explained(raised(action), "eval"))
        assert "expected files and folders that taro can read and write" in told


def test_a_command_that_fills_the_memory_ends_with_one_message(tmp_path: Path) -> None:
    """The real command line; only the work is replaced, by an allocation that cannot succeed."""
    code = ("import taro.cli.app as cli, types, sys, torch\n"
            "work = types.ModuleType('work'); sys.modules['work'] = work\n"
            "work.run = lambda: torch.empty(2**60, dtype=torch.uint8)\n"
            "cli.COMMANDS['train'] = cli.Command('work', 'run', 'Fills the memory.')\n"
            "cli.main(['train'])")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ran.returncode == 1 and ran.stderr.startswith("error: the machine's memory is full (")
    assert "--resume" in ran.stderr and "defect" not in ran.stderr and "Traceback" not in ran.stderr
