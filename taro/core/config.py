"""Configuration: frozen pydantic models, YAML recipes, `--set key=value`.

One model per concept; unknown keys are refused with the nearest known one; a recipe is a YAML file, named by path or
by the name of one that ships in a stage's `recipes/` folder. Nothing here knows any stage's settings."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from taro.core.errors import ConfigError
from taro.core.places import paths_from
from taro.core.text_files import read_text

__all__ = ["Config", "changed_settings", "digest", "load_config", "parse_yaml", "read_yaml", "recipe_names"]

MAX_YAML_BYTES = 1 << 17
MAX_YAML_VALUES = 50_000
"""values of a document, each alias counted as often as it is written out"""
SHOWN = 8
RECIPE_ENDS = {".yaml", ".yml"}

_LET_THROUGH = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""what PyYAML's constructors raise beside YAMLError: `!!int ""`, thousands of digits, nesting"""


class Config(BaseModel):
    """Base of every configuration model: frozen, unknown keys refused, defaults validated, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


ConfigT = TypeVar("ConfigT", bound=Config)


def recipe_names(package: str) -> list[str]:
    """Names of the recipes that ship in `package` ("taro.preprocess.recipes", "taro.train.recipes")."""
    return sorted(f.name.removesuffix(".yaml") for f in resources.files(package).iterdir() if f.name.endswith(".yaml"))


class _Loader(yaml.SafeLoader):
    """Safe YAML whose booleans are `true` and `false` alone, so that `schedule: off` is the word off, and without
    dates, so that a folder may be named by one."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in {"bool", "timestamp"}]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))


def read_yaml(path: Path) -> Any:
    """The YAML of a file, see `parse_yaml`. Raises ConfigError, also where it cannot be read or is too large."""
    return parse_yaml(read_text(path, error=ConfigError, limit_bytes=MAX_YAML_BYTES), str(path))


def parse_yaml(text: str, where: str) -> Any:
    """Safe YAML whose aliases cannot blow up: a document that would be too large written out is refused.

    Raises ConfigError that opens with `where`, whatever the text."""
    try:
        data = yaml.load(text, _Loader)
        values = _written_out(data, {})
    except (yaml.YAMLError, *_LET_THROUGH) as error:
        raise ConfigError(f"{where}: not valid YAML: {str(error)[:500] or type(error).__name__}") from None
    if values > MAX_YAML_VALUES:
        raise ConfigError(f"{where}: its aliases (&, *) stand for more than {MAX_YAML_VALUES:,} values")
    return data


def _written_out(node: Any, known: dict[int, int]) -> int:
    """How many values a document has where every alias is written out, 64 characters of a text counted as one."""
    if isinstance(node, str):
        return 1 + len(node.encode()) // 64  # half of a surrogate pair is no text: ValueError
    inner = [*node, *node.values()] if isinstance(node, dict) else node if isinstance(node, list | tuple | set) else ()
    if not inner:
        return 1
    if id(node) not in known:
        known[id(node)] = MAX_YAML_VALUES + 1  # what a value that holds itself finds
        known[id(node)] = 1 + sum(_written_out(one, known) for one in inner)
    return known[id(node)]


def load_config(model: type[ConfigT], source: str | Path | None, overrides: Sequence[str] = (), *,
                package: str) -> ConfigT:
    """Reads a recipe (a path, or a name in `package`; None: all defaults), applies `key.sub=value`, validates. Relative
    paths in a recipe file count from its folder, those of `overrides` from where one stands (`taro.core.places`).

    Raises ConfigError that names the file, the key, what was expected and what was got."""
    data = _read(source, package) if source is not None else {}
    if Path(source or "").suffix in RECIPE_ENDS:
        data = paths_from(data, model, Path(source or "").parent)
    for override in overrides:
        _apply(data, override)
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


def _read(source: str | Path, package: str) -> dict[str, Any]:
    path = Path(source)
    if path.suffix in RECIPE_ENDS:
        if not path.is_file():
            raise ConfigError(f"{path}: no such recipe file; shipped recipes: {', '.join(recipe_names(package))}")
        data = read_yaml(path)
    else:
        names = recipe_names(package)
        if str(source) not in names:
            raise ConfigError(f"{source}: no such recipe; give a .yaml file or one of: {', '.join(names)}")
        data = parse_yaml(resources.files(package).joinpath(f"{source}.yaml").read_text(encoding="utf-8"), str(source))
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
    at: Any = data
    for part in parts[:-1]:
        at = at[_place(at, part, override)] if isinstance(at, list) else at.setdefault(part, {})
        if not isinstance(at, dict | list):
            raise ConfigError(f"--set {override}: {part} is a value, not a group of keys")
    at[_place(at, parts[-1], override)] = parse_yaml(text, f"--set {override}: the value")


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
