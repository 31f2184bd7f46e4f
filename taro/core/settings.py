"""The settings of a configuration model one by one: path, meaning, value, and where the value came from.

A path is what `--set` takes, `optimizer.lr`; settings of the items of a list stand under the list's name. A meaning is
the docstring under the field, read from the source only when somebody asks. Left out: printing (taro/cli/config.py)."""

from __future__ import annotations

import ast
import difflib
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

__all__ = ["Setting", "models_in", "settings_of", "similar", "source_of", "value_at"]

ITEM = "N"
"""stands for the place of an item in a list"""


@dataclass(frozen=True)
class Setting:
    """One setting. `default`: JSON text, None where it must be given; `meaning`: one line."""

    path: str
    meaning: str
    default: str | None


def settings_of(model: type[BaseModel], prefix: str = "") -> Iterator[Setting]:
    """Every setting of a model in the order of its fields, those of inner models by their paths.

    >>> from taro.models.features import FrameSampling
    >>> next(iter(settings_of(FrameSampling))).path
    'policy'
    """
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        inner = models_in(field.annotation)
        if inner and isinstance(field.annotation, type):
            yield from settings_of(inner[0], f"{path}.")
            continue
        default = field.default_factory() if field.default_factory is not None else field.default  # type: ignore[call-arg]
        yield Setting(path, _meanings(model).get(name, ""),
                      None if field.is_required() else json.dumps(default, default=str))
        for one in inner:
            section = one in get_args(field.annotation)  # `Section | None`; a list's items stand deeper
            yield from settings_of(one, f"{path}." if section else f"{path}.{ITEM}.")


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a field may hold: itself, in a union or in a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


@cache
def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """The docstrings under the fields of a model, each on one line."""
    found: dict[str, str] = {}
    for base in reversed([one for one in model.__mro__ if issubclass(one, BaseModel) and one is not BaseModel]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for before, node in zip(body.body, body.body[1:], strict=False):
            text = node.value if isinstance(node, ast.Expr) else None
            if isinstance(before, ast.AnnAssign) and isinstance(text, ast.Constant):
                found[ast.unparse(before.target)] = " ".join(str(text.value).split())
    return found


def similar(key: str, model: type[BaseModel], words: Mapping[str, str]) -> str:
    """What somebody meant who wrote the unknown `key`: a setting's whole path, or the name here of another library's
    word (`words`); "" where nothing is near."""
    name = key.rpartition(".")[2]
    if name in words:
        return f"here it is {words[name]}"
    paths = [setting.path for setting in settings_of(model)]
    groups = sorted({path.rpartition(".")[0] for path in paths} - {""})
    same = [path for path in paths if path.rpartition(".")[2] == name]
    if "." in key:
        same = difflib.get_close_matches(key, same, n=1, cutoff=0)
    near = same or difflib.get_close_matches(key, [*paths, *groups], n=1, cutoff=0.75)
    if not near:
        last = difflib.get_close_matches(name, [path.rpartition(".")[2] for path in [*paths, *groups]], n=1)
        near = [path for path in [*paths, *groups] if path.rpartition(".")[2] in last]
    return f"did you mean {' or '.join(near[:3])}?" if near else ""


def value_at(data: Any, path: str) -> Any:
    """The value at a path of nested settings; KeyError where there is none."""
    for part in path.split("."):
        try:
            data = data[int(part)] if isinstance(data, list) and part.isdecimal() else data[part]
        except (IndexError, TypeError):
            raise KeyError(path) from None
    return data


def source_of(path: str, recipe: Any, overrides: Sequence[str]) -> str:
    """Where the value at a path came from: "--set", "recipe" or "default".

    >>> source_of("a.b", {"a": {"b": 1}}, []), source_of("a.b", {}, ["a={b: 2}"]), source_of("a.c", {"a": {"b": 1}}, [])
    ('recipe', '--set', 'default')
    """
    for override in overrides:
        key, _, text = override.partition("=")
        if key == path or key.startswith(f"{path}.") or (path.startswith(f"{key}.") and path.split(".")[-1] in text):
            return "--set"
    try:
        value_at(recipe, path)
    except KeyError:
        return "default"
    return "recipe"
