"""Configuration: frozen pydantic models, YAML recipes, `--set key=value`.

One model per concept; unknown keys are refused with the nearest known one; a recipe is a YAML file, named by path or
by the name of one that ships in a stage's `recipes/` folder. Nothing here knows any stage's settings."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from taro.core.errors import ConfigError
from taro.core.places import paths_from
from taro.core.text_files import read_text
from taro.core.yaml_text import Asked, parse_yaml, parse_yaml_tree, typed

__all__ = ["Config", "changed_settings", "digest", "load_config", "parse_yaml", "read_yaml", "recipe_names"]

MAX_YAML_BYTES = 1 << 17
SHOWN = 8
RECIPE_ENDS = {".yaml", ".yml"}


class Config(BaseModel):
    """Base of every configuration model: frozen, unknown keys refused, defaults validated, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


ConfigT = TypeVar("ConfigT", bound=Config)


def recipe_names(package: str) -> list[str]:
    """Names of the recipes that ship in `package` ("taro.preprocess.recipes", "taro.train.recipes")."""
    return sorted(f.name.removesuffix(".yaml") for f in resources.files(package).iterdir() if f.name.endswith(".yaml"))


def read_yaml(path: Path, model: Any = Any) -> Any:
    """The YAML of a file, its words read as the settings of `model` take them (`taro.core.yaml_text`). Raises
    ConfigError, also where it cannot be read or is too large."""
    return typed(parse_yaml_tree(read_text(path, error=ConfigError, limit_bytes=MAX_YAML_BYTES), str(path)), model)


def load_config(model: type[ConfigT], source: str | Path | None, overrides: Sequence[str] = (), *,
                package: str) -> ConfigT:
    """Reads a recipe (a path, or a name in `package`; None: all defaults), applies `key.sub=value`, validates. Relative
    paths in a recipe file count from its folder, those of `overrides` from where one stands (`taro.core.places`).

    Raises ConfigError that names the file, the key, what was expected and what was got."""
    data = _read(source, model, package) if source is not None else {}
    if Path(source or "").suffix in RECIPE_ENDS:
        data = paths_from(data, model, Path(source or "").parent)
    for override in overrides:
        _apply(data, override)
    data = typed(data, model)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_explain(error, model, str(source or "defaults"))) from None


def digest(config: BaseModel) -> str:
    """sha256 over the canonical JSON of a configuration, in hex."""
    return hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def changed_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two nested settings, a line each, by the names that `--set` takes.

    >>> changed_settings({"a": {"b": 1}, "c": None}, {"a": {"b": 3}, "c": None, "d": "x"})
    ['a.b: 1 -> 3', 'd: absent -> "x"']
    """
    old, new = dict(_flat(then)), dict(_flat(now))
    return [f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
            for key in sorted({*old, *new}) if old.get(key, "absent") != new.get(key, "absent")]


def _flat(data: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.dumps(data, default=repr)


def _read(source: str | Path, model: type[BaseModel], package: str) -> dict[str, Any]:
    path = Path(source)
    if path.suffix in RECIPE_ENDS:
        if not path.is_file():
            raise ConfigError(f"{path}: no such recipe file; shipped recipes: {', '.join(recipe_names(package))}")
        data = read_yaml(path, model)
    else:
        names = recipe_names(package)
        if str(source) not in names:
            raise ConfigError(f"{source}: no such recipe; give a .yaml file or one of: {', '.join(names)}")
        text = resources.files(package).joinpath(f"{source}.yaml").read_text(encoding="utf-8")
        data = typed(parse_yaml_tree(text, str(source)), model)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: a recipe is a mapping of keys, got a {type(data).__name__}")
    return data


def _apply(data: dict[str, Any], override: str) -> None:
    key, eq, text = override.partition("=")
    override = override[:200]  # for messages
    if not eq or not key:
        raise ConfigError(f"--set {override}: expected key=value, such as --set seed=1")
    parts = key.split(".")
    at: Any = data
    for part in parts[:-1]:
        place = _place(at, part, override)
        if isinstance(at, dict):
            at.setdefault(part, {})
        if isinstance(at[place], Asked):  # an earlier --set of the whole group
            at[place] = at[place].tree
        at = at[place]
        if not isinstance(at, dict | list):
            raise ConfigError(f"--set {override}: {part} is a value, not a group of keys")
    at[_place(at, parts[-1], override)] = Asked.of(text, f"--set {override}: the value")


def _place(at: dict[str, Any] | list[Any], part: str, override: str) -> Any:
    """The key of a group; the place, from 0, in a list."""
    if isinstance(at, dict):
        return part
    if not part.isdecimal() or len(part) > 6 or int(part) >= len(at):
        raise ConfigError(f"--set {override}: {part} names no item of a list of {len(at)}; expected 0 to {len(at) - 1}")
    return int(part)


def _explain(error: ValidationError, model: type[BaseModel], source: str) -> str:
    items = error.errors()
    # An item that cannot be read leaves its list too short as well, which says nothing more.
    around = {item["loc"][:depth] for item in items for depth in range(len(item["loc"]))}
    items = [item for item in items if item["type"] != "too_short" or item["loc"] not in around]
    lines = []
    for item in items[:SHOWN]:
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            where = where[:200]
            near = difflib.get_close_matches(where.rpartition(".")[2], _all_fields(model), n=1)
            lines.append(f"{where}: unknown key" + (f"; did you mean {near[0]}?" if near else ""))
        else:
            # A rule between keys has no key of its own: its message names them.
            said = f"{where}: {item['msg']}, got {item.get('input')!r}" if where else str(item["msg"])
            lines.append(said.replace("Value error, ", "")[:500])
    more = len(items) - len(lines)
    return f"{source}: " + "; ".join(lines) + (f"; and {more:,} more" if more else "")


def _all_fields(model: type[BaseModel]) -> list[str]:
    names: list[str] = []
    for name, field in model.model_fields.items():
        names.append(name)
        for inner in _models(field.annotation):
            names += _all_fields(inner)
    return names


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models that a field may hold: itself, in a union or in a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
