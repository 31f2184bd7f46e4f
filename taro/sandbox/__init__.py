"""The embedded default: a synthetic video world, and tiny trained models with real architectures that know it.

`weights_folder(name)` is where a shipped model is: "policy" (a Qwen2.5-VL, weak: what training starts from),
"policy-qwen3-vl" (the same of the other family), "captioner" (strong perception) and "clip" (an open_clip model). They
are made by `taro sandbox build`. `make_sandbox` makes videos."""

from __future__ import annotations

from pathlib import Path

from taro.models.resolve import resolve_model
from taro.sandbox.make import make_sandbox
from taro.sandbox.world import WorldSettings

__all__ = ["WorldSettings", "make_sandbox", "weights_folder"]


def weights_folder(name: str) -> Path:
    """Folder of a shipped model. Raises ModelError where the name is unknown or the weights are not installed."""
    return resolve_model(f"sandbox:{name}")
