"""The programs of benchmarks/ import names that exist, and none in a circle; running them takes minutes to hours.
The models that they are run on load like released ones."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest
import torch

from benchmarks import shapes
from taro.models.load import load_policy

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "benchmarks").glob("*.py"))


def imports(path: Path) -> list[tuple[str, str]]:
    """(module, name) of every `from module import name` of ours."""
    return [(node.module, alias.name) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and node.module for alias in node.names
            if node.module.partition(".")[0] in {"taro", "tests", "benchmarks"}]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_a_program_imports_is_there(path: Path) -> None:
    for module, name in imports(path):
        loaded = importlib.import_module(module)
        assert hasattr(loaded, name) or importlib.import_module(f"{module}.{name}"), f"{module} has no {name}"


def test_no_program_imports_in_a_circle() -> None:
    names = {f"benchmarks.{path.stem}" for path in FILES}
    left = {f"benchmarks.{path.stem}": {named for module, name in imports(path)
                                        for named in (module, f"{module}.{name}") if named in names} for path in FILES}
    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert not left


@pytest.mark.parametrize("size", ["tiny", "qwen3-tiny"])
def test_a_random_model_loads_and_is_a_function_of_its_seed(tmp_path: Path, size: str,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForImageTextToText

    monkeypatch.setattr(shapes, "FILE_BYTES", 1 << 20)
    first, again, other = (shapes.write_model(tmp_path / str(number), size, seed)
                           for number, seed in enumerate((0, 0, 1)))
    assert len(list(first.glob("*.safetensors"))) > 2
    weights = [b"".join(path.read_bytes() for path in sorted(folder.glob("*.safetensors")))
               for folder in (first, again, other)]
    assert weights[0] == weights[1] != weights[2]
    policy, stock = load_policy(first, tower=True), AutoModelForImageTextToText.from_pretrained(first)
    ours, theirs = policy.language_model.lm, stock.model.language_model
    assert stock.dtype == torch.bfloat16 and policy.decode(torch.tensor([300])) == "w300"
    assert all(torch.equal(tensor, theirs.state_dict()[name].float()) for name, tensor in ours.state_dict().items())
