"""What a run can be refused for before torch is imported or a weight is read: its folder, trackers, sets and policy.

A misspelt name must not cost the minutes in which 7B of weights are loaded. Nothing here imports more than numpy.
Left out: what takes the data or the policy's files to know (`taro.train.run_dir.open_run`).
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from taro.core.config import changed_settings, read_yaml
from taro.core.errors import ConfigError
from taro.core.places import paths_from
from taro.models.resolve import resolve_model
from taro.shards.manifest import read_manifest
from taro.shards.places import open_store
from taro.train.config import TrainConfig
from taro.train.trackers import check_trackers

__all__ = ["check_folder", "check_run"]

RESUME_MAY_CHANGE = {"length", "checkpoint", "trackers", "device"}
"""settings that a resumed run may change: none of them reaches the numbers of a step that both runs have"""


def check_run(config: TrainConfig, *, resume: bool) -> None:
    """Raises TaroError: a folder with another run, a tracker that is not installed, a place without a shard set, a
    policy that is nowhere."""
    check_folder(config, resume=resume)
    check_trackers(config.trackers)
    for source in config.sources:
        read_manifest(open_store(source.path))
    resolve_model(config.policy)


def check_folder(config: TrainConfig, *, resume: bool) -> None:
    """Raises ConfigError where the folder holds another run, or none to resume."""
    old = config.out / "config.yaml"
    if old.is_file() and not resume:
        raise ConfigError(f"{config.out} holds a run already; go on with it (--resume), or choose another folder with "
                          "--set out=DIR")
    if old.is_file():
        then, now = _settings(old), config.model_dump(mode="json")
        with contextlib.suppress(ValidationError):  # settings that are newer than the run have their defaults
            then = TrainConfig.model_validate(then).model_dump(mode="json")
        compared = now.keys() - RESUME_MAY_CHANGE
        changed = changed_settings(*({key: one[key] for key in compared if key in one} for one in (then, now)))
        if changed:
            raise ConfigError(f"{config.out} was started with other settings; resume with the same ones, or start a "
                              f"new run. Changed: {'; '.join(changed)}")
    elif resume:
        raise ConfigError(f"{config.out}: nothing to resume (no config.yaml); leave --resume out to start a run")


def _settings(path: Path) -> dict[str, Any]:
    try:
        data = read_yaml(path)
    except ConfigError as error:
        raise ConfigError(f"{path}: not the YAML that a run wrote ({error}); start a new run") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected the settings of a run, got a {type(data).__name__}; start a new run")
    return dict(paths_from(data, TrainConfig, path.parent))
