"""YAML of people and of the command line, read by the types of the settings that it sets.

A YAML reader decides by the look of a word what it is: `007` a number, `2024-11-25` a date, `on` true, `12:30` the
number 750, `a #b` the word a with a comment. Here the setting decides: where it takes a text (a path, a name), the word
stays as it was written; where it takes a number, `1e-6` and `010` are numbers as everywhere else. Without a type, words
are read as YAML 1.2 reads them: `true` and `false` are the booleans, and there are no dates and no octals.

A key that stands twice is an error, since one of its values would vanish. Aliases cannot blow up: a document that would
be too large written out is refused."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from taro.core.errors import ConfigError

__all__ = ["Asked", "parse_yaml", "parse_yaml_tree", "typed"]

MAX_YAML_VALUES = 50_000
"""values of a document, each alias counted as often as it is written out"""
NULLS = ("", "~", "null", "Null", "NULL")
_TAG = "tag:yaml.org,2002:"
_LET_THROUGH = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""what PyYAML's constructors raise beside YAMLError: thousands of digits, nesting"""
_PATTERNS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
              "-+0123456789."),
}  # fmt: skip
"""YAML 1.2, core schema"""


@dataclass(frozen=True)
class _Word:
    """A plain word that is a number, a boolean or null by its look."""

    text: str
    value: Any


@dataclass(frozen=True)
class Asked:
    """The value of a `--set`, before its type is known: its `text`, and what it is as YAML or why it is none."""

    text: str
    tree: Any
    problem: ConfigError | None = None

    @classmethod
    def of(cls, text: str, where: str) -> Asked:
        """A text as it was typed; messages open with `where`."""
        if any(not (char.isprintable() or char in "\n\t") for char in text):
            raise ConfigError(f"{where}: not valid YAML: control characters or bytes that are no text")
        try:
            return cls(text, parse_yaml_tree(text, where))
        except ConfigError as problem:
            return cls(text, None, problem)


class _Loader(yaml.SafeLoader):
    """Safe YAML whose scalars keep their text, and whose keys are texts, each once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, "expected a mapping of keys", node.start_mark)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is no text", key.start_mark)
            if key.value in seen and key.tag != f"{_TAG}merge":
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value[:60]!a} stands twice",
                                                        key.start_mark)
            seen.add(key.value)
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}


def _scalar(kind: str) -> Any:
    pattern = re.compile(_PATTERNS[kind][0])

    def construct(loader: _Loader, node: yaml.Node) -> _Word:
        if not isinstance(node, yaml.ScalarNode) or not pattern.fullmatch(node.value):
            raise yaml.constructor.ConstructorError(None, None, f"expected a word of type {kind}", node.start_mark)
        return _Word(node.value, _value(kind, node.value))

    return construct


def _value(kind: str, text: str) -> Any:
    if kind == "bool":
        return text.lower() == "true"
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return int(text, 8) if text.startswith("0o") else int(text, 16) if text.startswith("0x") else int(text)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in (f"{_TAG}null", f"{_TAG}merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, (_pattern, _first) in _PATTERNS.items():
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(rf"^(?:{_pattern})$"), list(_first))
    _Loader.add_constructor(f"{_TAG}{_name}", _scalar(_name))
_Loader.add_constructor(f"{_TAG}null", lambda loader, node: _Word(str(node.value), None))


def parse_yaml(text: str, where: str) -> Any:
    """Safe YAML as plain values. Raises ConfigError that opens with `where`, whatever the text."""
    return typed(parse_yaml_tree(text, where), Any)


def parse_yaml_tree(text: str, where: str) -> Any:
    """The same, its words not yet read: see `typed`."""
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


def typed(data: Any, annotation: Any) -> Any:
    """A tree with its words read as what the settings of `annotation` (a model, or any type) take. Raises ConfigError
    where a `--set` is no YAML and its setting takes no text."""
    if isinstance(data, _Word):
        takes = _takes(annotation)
        stays = data.value is not None and "text" in takes and _kind(data.value) not in takes
        return data.text if stays else data.value
    if isinstance(data, Asked):
        return _asked(data, annotation)
    if isinstance(data, dict):
        return {key: typed(value, _inner(annotation, key)) for key, value in data.items()}
    if isinstance(data, list):
        return [typed(value, _inner(annotation, place)) for place, value in enumerate(data)]
    return data


def _asked(asked: Asked, annotation: Any) -> Any:
    text, takes = asked.text.strip(), _takes(annotation)
    nested = bool(takes & {"list", "group"})
    if "text" not in takes or (nested and text.startswith(("[", "{", "- "))):
        if asked.problem is not None:
            raise asked.problem
        return typed(asked.tree, annotation)
    if not text:
        return None
    if isinstance(asked.tree, _Word) and (asked.tree.value is not None or text in NULLS):
        if asked.tree.value is None:
            return "~" if text == "~" and "null" not in takes else None
        return asked.tree.value if _kind(asked.tree.value) in takes else text
    return asked.tree if isinstance(asked.tree, str) and text[0] in "\"'" else text


def _kind(value: Any) -> str:
    return "bool" if isinstance(value, bool) else "number"


def _takes(annotation: Any) -> set[str]:
    """What a type takes: text, number, bool, list, group (of keys), null; nothing is known of Any."""
    if annotation is None or annotation is type(None):
        return {"null"}
    origin = get_origin(annotation)
    if origin is Annotated:
        return _takes(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return set().union(*map(_takes, get_args(annotation)))
    if origin is Literal:
        return {"text" if isinstance(one, str) else _kind(one) for one in get_args(annotation) if one is not None}
    kind = origin or annotation
    if not isinstance(kind, type):
        return set()
    if issubclass(kind, BaseModel):  # one that may be written as its path alone takes a text too
        return {"group", "text"} if "path" in kind.model_fields else {"group"}
    table = {str: "text", Path: "text", bool: "bool", int: "number", float: "number", dict: "group", list: "list",
             tuple: "list"}
    return {name for one, name in table.items() if kind is one or (kind is Mapping and one is dict)}


def _inner(annotation: Any, key: str | int) -> Any:
    """The type of what stands under a key of a group, or at a place of a list; Any where that is not known."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _inner(inner[0], key)
    if origin in (Union, types.UnionType):
        wanted = "group" if isinstance(key, str) else "list"
        return next((_inner(one, key) for one in inner if wanted in _takes(one)), Any)
    if isinstance(key, int):
        if origin not in (list, tuple) or not inner:
            return Any
        return inner[0] if origin is list or inner[-1] is Ellipsis else inner[key] if key < len(inner) else Any
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.model_fields[key].annotation if key in annotation.model_fields else Any
    return inner[1] if origin in (dict, Mapping) and len(inner) == 2 else Any
