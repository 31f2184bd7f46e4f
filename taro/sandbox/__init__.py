"""The embedded default: a synthetic video world, and tiny trained models with real architectures that know it.

`weights_folder(name)` is where a shipped model is: "policy" (a Qwen2.5-VL, weak: what training starts from),
"policy-qwen3-vl" (the same of the other family), "captioner" (strong perception) and "clip" (an open_clip model). They
are made by `taro sandbox build`. `make_sandbox` makes videos.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from taro.core.errors import ModelError
from taro.sandbox.make import make_sandbox
from taro.sandbox.world import WorldSettings

__all__ = ["MODELS", "WorldSettings", "make_sandbox", "weights_folder"]

MODELS = ("policy", "policy-qwen3-vl", "captioner", "clip")


def weights_folder(name: str) -> Path:
    """Folder of a shipped model. Raises ModelError where the name is unknown or the weights are not installed."""
    if name not in MODELS:
        raise ModelError(f"{name}: no such sandbox model; expected one of: {', '.join(MODELS)}")
    folder = Path(str(resources.files("taro.sandbox"))) / "weights" / name
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder}: no weights; reinstall taro, or make them: taro sandbox build OUT --device cuda")
    return folder
