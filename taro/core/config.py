"""Configuration: frozen pydantic models, YAML recipes, `--set key=value`.

One model per concept; unknown keys are refused with the nearest known one; a recipe is a YAML file, named by path or
by the name of one that ships in a stage's `recipes/` folder. Nothing here knows any stage's settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from taro.core.errors import ConfigError
from taro.core.places import paths_from
from taro.core.settings import settings_of, similar
from taro.core.text_files import read_text
from taro.core.yaml_text import Asked, parse_yaml, parse_yaml_tree, typed

__all__ = ["Config", "changed_settings", "digest", "load_config", "missing_of", "parse_yaml", "read_recipe",
           "read_yaml", "recipe_names"]

MAX_YAML_BYTES = 1 << 17
MAX_PARTS = 32
"""names in a key of --set; settings have 4 at most"""
SHOWN = 8
RECIPE_ENDS = {".yaml", ".yml"}


class Config(BaseModel):
    """Base of every configuration model: frozen, unknown keys refused, defaults validated, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
    other_names: ClassVar[Mapping[str, str]] = {}
    """words of other libraries, and what they are here: for messages about unknown keys"""


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
    data = read_recipe(model, source, package=package)
    for override in overrides:
        _apply(data, override)
    data = typed(data, model)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_explain(error, model, str(source or "defaults"), data)) from None


def read_recipe(model: type[Config], source: str | Path | None, *, package: str) -> dict[str, Any]:
    """The settings that a recipe names, as `load_config` takes them; {} for None. Raises ConfigError."""
    data = _read(source, model, package) if source is not None else {}
    if Path(source or "").suffix in RECIPE_ENDS:
        data = paths_from(data, model, Path(source or "").parent)
    return data


def missing_of(model: type[Config], source: str | Path | None, overrides: Sequence[str] = (), *,
               package: str) -> list[str]:
    """The settings at the top of a model that must be given and are not. Raises ConfigError as `load_config`."""
    data = read_recipe(model, source, package=package)
    for override in overrides:
        _apply(data, override)
    return [name for name, field in model.model_fields.items() if field.is_required() and name not in data]


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
        if not path.exists():
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
    if len(parts) > MAX_PARTS:
        raise ConfigError(f"--set {override}: {len(parts):,} names between points; expected at most {MAX_PARTS}")
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


def _explain(error: ValidationError, model: type[Config], source: str, data: Any) -> str:
    items = error.errors()
    # An item that cannot be read leaves its list too short as well, which says nothing more.
    around = {item["loc"][:depth] for item in items for depth in range(len(item["loc"]))}
    items = [item for item in items if item["type"] != "too_short" or item["loc"] not in around]
    # What must be given comes last: a key that is misspelt may be the one that is missed.
    items.sort(key=lambda item: item["type"] == "missing")
    meanings = {setting.path: setting.meaning for setting in settings_of(model)}
    lines = []
    for item in items[:SHOWN]:
        where = ".".join(_plain(item["loc"], data))[:200]
        if item["type"] == "extra_forbidden":
            lines += [_unknown(key, model) for key in _leaves(where, item.get("input"))[:SHOWN]]
        elif item["type"] == "missing":
            lines.append(f"{where} must be given: --set {where}=..., or in the recipe"
                         + (f" ({meanings[where]})" if meanings.get(where) else ""))
        else:
            # A rule between keys has no key of its own: its message names them.
            said = f"{where}: {item['msg']}, got {item.get('input')!r}" if where else str(item["msg"])
            lines.append(said.replace("Value error, ", "")[:500])
    more = len(items) - len(items[:SHOWN])
    return f"{source}: " + "; ".join(lines) + (f"; and {more:,} more" if more else "")


def _unknown(key: str, model: type[Config]) -> str:
    near = similar(key, model, model.other_names)
    return f"{key}: unknown key" + (f"; {near}" if near else "")


def _leaves(where: str, value: Any) -> list[str]:
    """The keys that somebody wrote: those inside an unknown group, or the unknown key itself."""
    inner = [f"{where}.{key}"[:200] for key, _ in _flat(value)] if isinstance(value, Mapping) else []
    return inner or [where]


def _plain(loc: Sequence[Any], data: Any) -> Iterator[str]:
    """A place in the data as `--set` takes it: without the names that pydantic gives to the kinds of a union."""
    for part in loc:
        if isinstance(data, list | tuple) and isinstance(part, int):
            yield str(part)
            data = data[part] if part < len(data) else None
        elif isinstance(data, Mapping):
            yield str(part)
            data = data.get(part)
