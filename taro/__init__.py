"""taro trains multimodal LLMs to ground queries in videos and to reason with time.

What users import is `taro`: `taro.open_shards(...)`, `taro.rewards`, `taro.train(...)` and the rest of the table
below are looked up when they are first used (PEP 562), so `import taro` is instant and needs no heavy library. The
stages' packages (preprocess, shards, train) have common names; where a foreign module hides one, using it here raises
one error that names both files.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preprocess.config import PreprocessConfig
    from preprocess.run import preprocess
    from shards.reader import open_shards
    from shards.verify import verify as verify_shards
    from taro.annotations import import_annotations
    from taro.config import load_config
    from taro.features import FrameSampling, VideoFeatures
    from taro.metrics import evaluate_predictions
    from taro.mllm import export_checkpoint, generate, load_policy, score
    from taro.moment import Moment, iou
    from train import advantages, disruption, losses, rewards
    from train.config import TrainConfig
    from train.evaluate import evaluate_policy
    from train.grpo import train

__version__ = "0.1.0"

del annotations  # the future feature's name would hide the package taro.annotations

# name -> (module, attribute); an empty attribute is the module itself. The block above says the same to type checkers.
_LAZY: dict[str, tuple[str, str]] = {
    "FrameSampling": ("taro.features", "FrameSampling"),
    "Moment": ("taro.moment", "Moment"),
    "PreprocessConfig": ("preprocess.config", "PreprocessConfig"),
    "TrainConfig": ("train.config", "TrainConfig"),
    "VideoFeatures": ("taro.features", "VideoFeatures"),
    "advantages": ("train.advantages", ""),
    "disruption": ("train.disruption", ""),
    "evaluate_policy": ("train.evaluate", "evaluate_policy"),
    "evaluate_predictions": ("taro.metrics", "evaluate_predictions"),
    "export_checkpoint": ("taro.mllm", "export_checkpoint"),
    "generate": ("taro.mllm", "generate"),
    "import_annotations": ("taro.annotations", "import_annotations"),
    "iou": ("taro.moment", "iou"),
    "load_config": ("taro.config", "load_config"),
    "load_policy": ("taro.mllm", "load_policy"),
    "losses": ("train.losses", ""),
    "open_shards": ("shards.reader", "open_shards"),
    "preprocess": ("preprocess.run", "preprocess"),
    "rewards": ("train.rewards", ""),
    "score": ("taro.mllm", "score"),
    "train": ("train.grpo", "train"),
    "verify_shards": ("shards.verify", "verify"),
}

__all__ = [
    "__version__",
    "FrameSampling",
    "Moment",
    "PreprocessConfig",
    "TrainConfig",
    "VideoFeatures",
    "advantages",
    "disruption",
    "evaluate_policy",
    "evaluate_predictions",
    "export_checkpoint",
    "generate",
    "import_annotations",
    "iou",
    "load_config",
    "load_policy",
    "losses",
    "open_shards",
    "preprocess",
    "rewards",
    "score",
    "train",
    "verify_shards",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'taro' has no attribute {name!r}; it has: {', '.join(sorted(_LAZY))}")
    module, attribute = _LAZY[name]
    stage = module.partition(".")[0]
    if stage != "taro":
        from taro.stages import check_stages

        check_stages(stage)
    found = importlib.import_module(module)
    value = getattr(found, attribute) if attribute else found
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
