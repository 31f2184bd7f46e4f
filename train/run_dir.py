"""The folder of a run: whose it is, who may train in it, and what a run is refused for before a weight is read.

One process at a time trains in a folder. It holds config.yaml, data.json, metrics.jsonl, rollouts/step-N.jsonl,
checkpoints/step-N/ and export/. A misspelt name must not cost the minutes in which 7B of weights are loaded, so nothing
here imports more than numpy. Left out: what takes the data or the policy's files to know (`taro.train.open`)."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from taro.core.config import changed_settings, read_yaml
from taro.core.errors import ConfigError, MissingPackageError
from taro.core.files import locked, make_folders, remove_temporary, remove_temporary_folders, write_atomically
from taro.core.json import read_json
from taro.core.places import paths_for, paths_from, real_paths
from taro.models.resolve import resolve_place
from taro.shards.lanes import check_webdataset
from taro.shards.manifest import read_manifest
from taro.shards.places import open_store
from taro.train.config import TrainConfig
from taro.train.extra_rewards import check_extra
from taro.train.trackers import check_trackers

__all__ = ["check_folder", "check_lora", "check_run", "lock_folder", "read_facts", "write_facts"]

RESUME_MAY_CHANGE = {"length", "checkpoint", "trackers", "tracking", "device", "out", "reference"}
"""settings that a resumed run may change: none of them reaches the numbers of a step that both runs have; `length`
does where the learning rate falls until the end of the run, and then may not change"""
KNOWN_BY = {"policy": "policy_sha256", "template": "template_sha256", "dtype": "compute_dtype",
            "shards": "validation_sha256"}
"""settings that may be spelt otherwise -> what data.json has of a run that recorded what they stand for"""


def check_run(config: TrainConfig, *, resume: bool) -> None:
    """Raises TaroError: a folder with another run, a tracker that is not installed, a reward of the user's that cannot
    be used, a place without a shard set, a policy that is nowhere."""
    check_folder(config, resume=resume)
    check_trackers(config.trackers)
    check_lora(config.lora is not None)
    check_extra(config.reward.extra)
    if config.data.reading == "stream":
        check_webdataset()
    for source in config.sources:
        read_manifest(open_store(source.path))
    resolve_place(config.policy, config.adapter)


def check_lora(wanted: bool) -> None:
    """Raises MissingPackageError where adapters are to be trained and peft is not installed."""
    if wanted and importlib.util.find_spec("peft") is None:
        raise MissingPackageError("lora needs peft, which is not installed; pip install 'taro-vtg[lora]', or leave the "
                                  "section lora out")


def check_folder(config: TrainConfig, *, resume: bool) -> None:
    """Raises ConfigError where the folder holds another run, or none to resume."""
    old = config.out / "config.yaml"
    if old.is_file() and not resume:
        raise ConfigError(f"{config.out} holds a run already; go on with it (--resume), or choose another folder with "
                          "--set out=DIR")
    if old.is_file():
        changed = _changed(_settings(old), config)
        if changed:
            raise ConfigError(f"{config.out} was started with other settings; resume with the same ones, or start a "
                              f"new run. Changed: {'; '.join(changed)}")
    elif resume:
        raise ConfigError(f"{config.out}: nothing to resume (no config.yaml); leave --resume out to start a run")


def _changed(then: dict[str, Any], config: TrainConfig) -> list[str]:
    """What differs between the settings of a run and those that it is resumed with, but for names of what is the same.
    Queries and template are compared by their digests when they are open (`taro.train.open`)."""
    now, facts = config.model_dump(mode="json"), read_facts(config.out)
    known = {key for key, fact in KNOWN_BY.items() if fact in facts}
    with contextlib.suppress(ValidationError):  # settings that are newer than the run have their defaults
        old = TrainConfig.model_validate(then)
        then = old.model_dump(mode="json")
        if "shards" in known:
            then["shards"], now["shards"] = _sets(old), _sets(config)
    then, now = (real_paths(one, TrainConfig) for one in (then, now))
    may_change = RESUME_MAY_CHANGE - ({"length"} if config.optimizer.schedule != "constant" else set())
    compared = now.keys() - may_change - (known & {"template", "dtype"})
    start = ("policy", "adapter")
    if any(then.get(name) != now[name] for name in start) and "policy" in known and (
            resolve_place(config.policy, config.adapter).sha256() == facts[KNOWN_BY["policy"]]):
        compared -= {*start}
    return changed_settings(*({key: _files_alike(one[key]) for key in compared if key in one} for one in (then, now)))


def _sets(config: TrainConfig) -> list[dict[str, Any]]:
    """The shard sets without their places; with their names where there are several, as draws are named by them."""
    sets = [source.model_dump(mode="json", exclude={"path"}) for source in config.sources]
    return sets if len(sets) > 1 else [{**sets[0], "name": None, "weight": 1.0}]


def _files_alike(value: Any) -> Any:
    """A setting with "@FILE" for the name of any file of names."""
    if isinstance(value, dict):
        return {key: _files_alike(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_files_alike(item) for item in value]
    return "@FILE" if isinstance(value, str) and value.startswith("@") else value


def read_facts(folder: Path) -> dict[str, Any]:
    """What data.json of a run folder holds; nothing where it cannot be read: then names alone are compared."""
    try:
        data = read_json(folder / "data.json", error=ConfigError)
    except ConfigError:
        return {}
    return data if isinstance(data, dict) else {}


def _settings(path: Path) -> dict[str, Any]:
    try:
        data = read_yaml(path, TrainConfig)
    except ConfigError as error:
        raise ConfigError(f"{path}: not the YAML that a run wrote ({error}); start a new run") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected the settings of a run, got a {type(data).__name__}; start a new run")
    # taro 0.1 wrote no data.json, and paths as they were given: counted from the folder that it was started in.
    counted_from = path.parent if (path.parent / "data.json").is_file() else Path.cwd()
    return dict(paths_from(data, TrainConfig, counted_from))


def lock_folder(config: TrainConfig, *, resume: bool) -> contextlib.ExitStack:
    """Keeps the run folder to this process until what is returned is closed: two that wrote into one would leave a
    mixture of both. Raises ConfigError where another process trains in it."""
    make_folders(config.out)
    with contextlib.ExitStack() as stack:
        if not stack.enter_context(locked(config.out / ".lock", wait=False)):
            raise ConfigError(f"{config.out}: another process trains in this folder now; wait for it, end it, or "
                              "choose another folder with --set out=DIR")
        check_folder(config, resume=resume)  # again: the folder may have been begun since
        for folder in (config.out, config.out / "rollouts"):
            remove_temporary(folder)
        for folder in (config.out, config.out / "checkpoints"):
            remove_temporary_folders(folder)
        return stack.pop_all()


def write_facts(config: TrainConfig, data: dict[str, Any]) -> None:
    """Writes config.yaml, a recipe whose relative paths count from the run folder, and data.json."""
    settings = yaml.safe_dump(paths_for(config.model_dump(mode="json"), TrainConfig, config.out), sort_keys=False)
    # config.yaml comes last: it says that a run was begun, and what data.json has of it is not found out again.
    write_atomically(config.out / "data.json", (json.dumps(data, indent=1) + "\n").encode())
    write_atomically(config.out / "config.yaml", settings.encode())
