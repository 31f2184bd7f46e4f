"""Types of settings that name a place, and from where a relative one counts.

In a recipe FILE relative paths count from that file's folder, wherever the command is run; on the command line, in
Python and in shipped recipes from where one stands. The types below mark the settings that this concerns: `LocalPath` a
file or folder of this machine, `SetPlace` a shard set, `ModelName` and `DataName` what may be a hub id,
`TemplateName` a shipped template or a .yaml file, `Word` a text that may be "@FILE". URLs, absolute paths, `~`,
`sandbox:NAME` and hub ids are the same from everywhere. Where OWNER/NAME could be both, a folder that is there wins."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator

from taro.core.errors import ConfigError
from taro.core.files import check_local

__all__ = ["DataName", "LocalPath", "ModelName", "SetPlace", "TemplateName", "Word", "expand_home", "hub_id",
           "paths_for", "paths_from", "real_paths", "shown_place"]

_HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
FILE_ENDS = (".csv", ".json", ".jsonl", ".parquet", ".safetensors", ".txt", ".yaml", ".yml")
"""of names that are no hub ids, whatever their form"""


@dataclass(frozen=True)
class _Mark:
    kind: Literal["path", "name", "template", "word"]


def expand_home(path: str | Path) -> Path:
    """`~` and `~USER` resolved; where nobody has that name, a folder of that very name, as in a shell."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def shown_place(place: str | Path) -> str:
    """A place for a message: of a URL no password and nothing behind `?` or `#`, which may be a signature.

    >>> shown_place("https://me:secret@example.org/set?sig=1"), shown_place("sets/a#b"), shown_place("hf://datasets/a@v1")
    ('https://example.org/set', 'sets/a#b', 'hf://datasets/a@v1')
    """
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+([^?#]*)", str(place))
    if found is None:
        return str(place)
    host, slash, rest = found[2].partition("/")
    if found[1].lower() != "hf" and "@" in rest:  # a password with a slash in it
        return f"{found[1]}://...{rest.rpartition('@')[2]}"
    return f"{found[1]}://{host.rpartition('@')[2]}{slash}{rest}"


def _local(path: Path) -> Path:
    check_local(path)
    return expand_home(path)


def _place(value: Any) -> Any:
    text = os.fspath(value) if isinstance(value, str | Path) else value
    if isinstance(text, str) and "://" in text:
        scheme, _, rest = text.partition("://")
        host = rest.partition("/")[0].rpartition("@")
        if host[1] or {"?", "#"} & {*text}:  # no ValueError: that would be shown with the value
            raise ConfigError(f"{scheme[:20]}://{host[2][:200]!a}: expected an address without a password, `?` or `#`, "
                              "since settings are written into run folders. Credentials come from the environment, for "
                              "http(s) from ~/.netrc")
    return str(expand_home(text)) if isinstance(text, str) and "://" not in text else text


LocalPath = Annotated[Path, AfterValidator(_local), _Mark("path")]
SetPlace = Annotated[str, BeforeValidator(_place), _Mark("path")]
ModelName = Annotated[str, _Mark("name")]
DataName = Annotated[Path, AfterValidator(expand_home), _Mark("name")]
TemplateName = Annotated[str, _Mark("template")]
Word = Annotated[str, _Mark("word")]


def paths_from(data: Any, model: type[BaseModel], folder: Path) -> Any:
    """The settings of a recipe in `folder`, with its relative paths as they are from where one stands."""

    def beside(text: str, kind: str) -> str:
        if _anywhere(text, kind, folder):
            return text
        found = str(folder / text)
        short = os.path.normpath(found)
        return short if os.path.realpath(short) == os.path.realpath(found) else found  # `..` may follow a link

    return _converted(data, model, beside)


def paths_for(data: Any, model: type[BaseModel], folder: Path) -> Any:
    """The other way: settings from where one stands, as a recipe in `folder` has to write them."""

    def from_there(text: str, kind: str) -> str:
        if _anywhere(text, kind, Path()):
            return text
        there, real = os.path.relpath(text, folder), os.path.realpath(text)
        return there if os.path.realpath(folder / there) == real else os.path.relpath(real, os.path.realpath(folder))

    return _converted(data, model, from_there)


def real_paths(data: Any, model: type[BaseModel]) -> Any:
    """Settings from where one stands, every local place absolute and without links: equal where they name one place,
    however it is spelt."""

    def real(text: str, kind: str) -> str:
        local = text.startswith(("/", "~")) or not _anywhere(text, kind, Path())
        return os.path.realpath(expand_home(text)) if local else text

    return _converted(data, model, real)


def hub_id(text: str) -> re.Match[str] | None:
    """The parts `id` and `revision` of a name of the form OWNER/NAME[@REVISION]; None of any other."""
    return None if text.endswith(FILE_ENDS) else _HUB_ID.fullmatch(text)


def _anywhere(text: str, kind: str, folder: Path) -> bool:
    """Whether a place is the same from everywhere."""
    if kind == "template" and not text.endswith((".yaml", ".yml")):
        return True
    named = kind == "name" and hub_id(text) is not None and not (folder / text).exists()
    return "://" in text or text.startswith(("/", "~", "sandbox:")) or named


def _converted(data: Any, annotation: Any, convert: Callable[[str, str], str], mark: _Mark | None = None) -> Any:
    """`data` with every place in it converted, found by walking the types of its model."""
    if isinstance(data, str | Path) and mark is not None:
        text, at = str(data), "@" if mark.kind == "word" else ""
        return at + convert(text.removeprefix(at), mark.kind) if text.startswith(at) else data
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields
        if isinstance(data, str | Path) and "path" in fields:  # a model that may be written as its path alone
            return _converted(data, None, convert, _marked(fields["path"].metadata))
        if not isinstance(data, dict):
            return data
        return {key: _converted(value, fields[key].annotation, convert, _marked(fields[key].metadata))
                if key in fields else value for key, value in data.items()}
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        return _converted(data, inner, convert, _marked(marks))
    if isinstance(data, list | tuple) and get_origin(annotation) in (list, tuple):
        return [_converted(item, get_args(annotation)[0], convert) for item in data]
    for one in get_args(annotation) if get_origin(annotation) not in (list, tuple, dict) else ():
        if (found := _converted(data, one, convert)) != data:
            return found
    return data


def _marked(metadata: Any) -> _Mark | None:
    return next((one for one in metadata if isinstance(one, _Mark)), None)
