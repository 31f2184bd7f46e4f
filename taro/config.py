"""Configuration: frozen pydantic models, YAML recipes, `--set key=value`.

One model per concept; unknown keys are refused with the nearest known one; a recipe is a YAML file, named by path or
by the name of one that ships in a stage's `recipes/` folder. Nothing here knows any stage's settings.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from taro.errors import ConfigError

__all__ = ["Config", "digest", "load_config", "recipe_names"]


class Config(BaseModel):
    """Base of every configuration model: frozen, unknown keys refused, defaults validated, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


ConfigT = TypeVar("ConfigT", bound=Config)


def recipe_names(package: str) -> list[str]:
    """Names of the recipes that ship in `package` ("preprocess.recipes", "train.recipes")."""
    return sorted(f.name.removesuffix(".yaml") for f in resources.files(package).iterdir() if f.name.endswith(".yaml"))


class _Loader(yaml.SafeLoader):
    """Safe YAML whose booleans are `true` and `false` alone, so that `schedule: off` is the word off, and without
    dates, so that a folder may be named by one."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in {"bool", "timestamp"}]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))


def load_config(
    model: type[ConfigT], source: str | Path | None, overrides: Sequence[str] = (), *, package: str
) -> ConfigT:
    """Reads a recipe (a path, or a name in `package`; None: all defaults), applies `key.sub=value`, validates.

    Raises ConfigError that names the file, the key, what was expected and what was got.
    """
    data = _read(source, package) if source is not None else {}
    for override in overrides:
        _apply(data, override)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_explain(error, model, str(source or "defaults"))) from None


def digest(config: BaseModel) -> str:
    """sha256 over the canonical JSON of a configuration, in hex."""
    return hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def _read(source: str | Path, package: str) -> dict[str, Any]:
    path = Path(source)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise ConfigError(f"{path}: no such recipe file; shipped recipes: {', '.join(recipe_names(package))}")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: a recipe is YAML in UTF-8, got other bytes at {error.start:,}") from None
    else:
        names = recipe_names(package)
        if str(source) not in names:
            raise ConfigError(f"{source}: no such recipe; give a .yaml file or one of: {', '.join(names)}")
        text = resources.files(package).joinpath(f"{source}.yaml").read_text(encoding="utf-8")
    try:
        data = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: a recipe is a mapping of keys, got a {type(data).__name__}")
    return data


def _apply(data: dict[str, Any], override: str) -> None:
    key, eq, text = override.partition("=")
    if not eq or not key:
        raise ConfigError(f"--set {override}: expected key=value, such as --set seed=1")
    parts = key.split(".")
    at = data
    for part in parts[:-1]:
        inner = at.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override}: {part} is a value, not a group of keys")
        at = inner
    try:
        at[parts[-1]] = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML: {error}") from None


def _explain(error: ValidationError, model: type[BaseModel], source: str) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(item["loc"][-1]), _all_fields(model), n=1)
            lines.append(f"{where}: unknown key" + (f"; did you mean {near[0]}?" if near else ""))
        else:
            # A rule between keys has no key of its own: its message names them.
            said = f"{where}: {item['msg']}, got {item.get('input')!r}" if where else str(item["msg"])
            lines.append(said.replace("Value error, ", "")[:500])
    return f"{source}: " + "; ".join(lines)


def _all_fields(model: type[BaseModel]) -> list[str]:
    names: list[str] = []
    for name, field in model.model_fields.items():
        names.append(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += _all_fields(field.annotation)
    return names
