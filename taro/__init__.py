"""taro trains multimodal LLMs to ground queries in videos and to reason with time.

The names below are looked up when they are first used (PEP 562), so `import taro` is instant and needs no heavy
library. The stages are packages: `taro.preprocess` (videos to shards), `taro.shards` (the artefact between them) and
`taro.train` (shards to a checkpoint)."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from taro.core.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from taro.annotations import import_annotations
    from taro.core.config import load_config
    from taro.grounding.moment import Moment, iou
    from taro.metrics.scores import evaluate_predictions
    from taro.models.decoding import generate
    from taro.models.export import export_checkpoint
    from taro.models.features import FrameSampling, VideoFeatures
    from taro.models.load import load_policy
    from taro.models.logprobs import score
    from taro.preprocess.config import PreprocessConfig
    from taro.preprocess.run import preprocess as make_shards
    from taro.shards.reader import open_shards
    from taro.shards.verify import verify as verify_shards
    from taro.train.config import TrainConfig
    from taro.train.evaluate import evaluate_policy
    from taro.train.loop import train as train_policy

del annotations  # the future feature's name would hide the package taro.annotations

# name -> (module, attribute). The block above says the same to type checkers.
_LAZY: dict[str, tuple[str, str]] = {
    "FrameSampling": ("taro.models.features", "FrameSampling"),
    "Moment": ("taro.grounding.moment", "Moment"),
    "PreprocessConfig": ("taro.preprocess.config", "PreprocessConfig"),
    "TrainConfig": ("taro.train.config", "TrainConfig"),
    "VideoFeatures": ("taro.models.features", "VideoFeatures"),
    "evaluate_policy": ("taro.train.evaluate", "evaluate_policy"),
    "evaluate_predictions": ("taro.metrics.scores", "evaluate_predictions"),
    "export_checkpoint": ("taro.models.export", "export_checkpoint"),
    "generate": ("taro.models.decoding", "generate"),
    "import_annotations": ("taro.annotations", "import_annotations"),
    "iou": ("taro.grounding.moment", "iou"),
    "load_config": ("taro.core.config", "load_config"),
    "load_policy": ("taro.models.load", "load_policy"),
    "make_shards": ("taro.preprocess.run", "preprocess"),
    "open_shards": ("taro.shards.reader", "open_shards"),
    "score": ("taro.models.logprobs", "score"),
    "train_policy": ("taro.train.loop", "train"),
    "verify_shards": ("taro.shards.verify", "verify"),
}
_CONFIGS = {"preprocess": "PreprocessConfig", "train": "TrainConfig"}
"""the settings of each stage that has recipes"""
_STAGES = ("preprocess", "shards", "train")
_PACKAGES = ("annotations", "core", "grounding", "metrics", "models", "pages", "sandbox", *_STAGES)

for _name in _STAGES:
    if not os.access(f"{__path__[0]}/{_name}/__init__.py", os.F_OK):  # pathlib takes longer to load than all of this
        raise ImportError(
            f"{__path__[0]}/{_name}: expected a folder or a link to one, got a copy of taro that was made without "
            "symbolic links. Clone it again on Linux or macOS with `git clone -c core.symlinks=true URL`, or install a "
            "released wheel: pip install taro-vtg")

__all__ = [
    "__version__",
    "FrameSampling",
    "Moment",
    "PreprocessConfig",
    "TrainConfig",
    "VideoFeatures",
    "evaluate_policy",
    "evaluate_predictions",
    "export_checkpoint",
    "generate",
    "import_annotations",
    "iou",
    "load_config",
    "load_policy",
    "load_recipe",
    "make_shards",
    "open_shards",
    "score",
    "train_policy",
    "verify_shards",
]


@overload
def load_recipe(recipe: str | Path | None, stage: Literal["train"], overrides: Sequence[str] = ()) -> TrainConfig: ...


@overload
def load_recipe(recipe: str | Path | None, stage: Literal["preprocess"], overrides: Sequence[str] = ()
                ) -> PreprocessConfig: ...


def load_recipe(recipe: str | Path | None, stage: Literal["preprocess", "train"], overrides: Sequence[str] = ()
                ) -> PreprocessConfig | TrainConfig:
    """The settings of a stage ("preprocess" or "train"), as `taro preprocess RECIPE` and `taro train RECIPE` read them.

    Args: recipe: a shipped recipe's name, a .yaml file, or None for the defaults; overrides: as `--set` takes them,
    such as "shards=data/shards". Raises ConfigError that names the key, what was expected and what was got.

    >>> load_recipe("quickstart", "train", ["shards=shards", "out=run", "seed=3"]).seed
    3
    """
    from taro.core.config import load_config
    from taro.core.errors import ConfigError

    if stage not in _CONFIGS:
        raise ConfigError(f"stage {stage!r:.100}: no stage with recipes; expected {' or '.join(_CONFIGS)}, after the "
                          'recipe, as in load_recipe("quickstart", "train")')
    if isinstance(overrides, str):
        raise ConfigError(f'overrides {overrides!r:.100}: one text; expected a list of them, such as ["seed=1"]')
    model: type[PreprocessConfig | TrainConfig] = __getattr__(_CONFIGS[stage])
    return load_config(model, recipe, overrides, package=f"taro.{stage}.recipes")


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"taro.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'taro' has no attribute {name!r}; it has: {', '.join(sorted(_LAZY))}")
    module, attribute = _LAZY[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_PACKAGES})
