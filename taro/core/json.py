"""Untrusted JSON, read strictly: bytes, depth and containers bounded, no repeated keys, NaN or half surrogates.

Shards, annotations, answers and model folders come from other people. Leniency would lose data (of a key that an object
repeats all but one value would vanish) or fail far away (half of a surrogate pair cannot be written again). Depth and
containers are counted before anything is built: an empty list takes 2 bytes in a file and 64 in memory. The caller
names the class of error that its user sees (most are shards'); every message opens with `where`."""

from __future__ import annotations

import json
import math
import os
import re
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from taro.core.errors import ModelError, ShardError, TaroError
from taro.core.files import open_regular

__all__ = ["MAX_CONTAINERS", "MAX_DEPTH", "MAX_JSON_BYTES", "canonical_json", "check_model", "elements", "parse_json",
           "parse_model", "read_json",
           "strict_json", "strict_json_values"]

ModelT = TypeVar("ModelT", bound=BaseModel)

MAX_CONTAINERS = 4_000_000
MAX_DEPTH = 32
MAX_JSON_BYTES = 64 * 2**20
"""of a file that `read_json` reads"""

_BLANKS = re.compile(r"[ \t\r\n]*")
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


def canonical_json(model: BaseModel) -> bytes:
    """The one way a model is written: keys sorted, no blanks, UTF-8, no NaN."""
    return json.dumps(model.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False,
                      allow_nan=False).encode()


def elements(data: bytes) -> int:
    """How many values some JSON holds, at least: lists, objects and commas outside of its strings.

    >>> elements(b'{"a,[": [1, 2]}')
    3
    """
    plain = _STRING.sub(b"", data)
    return sum(plain.count(one) for one in (b"[", b"{", b","))


def strict_json(data: bytes, *, any_value: bool = False) -> Any:
    """Parsed JSON of any size. Raises ValueError, whatever the bytes: not UTF-8 or JSON, too deep, too many containers,
    a repeated key, a number that is not finite, half of a surrogate pair. With `any_value` the last two pass: for a
    reader that judges each value, so that one spoils its row and not the file.

    >>> strict_json(b'{"a": [1, 2]}')
    {'a': [1, 2]}
    >>> strict_json(b'{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: key 'a' stands twice in an object
    """
    _check_brackets(data)
    try:
        parsed = _decoder(any_value).decode(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
    if not any_value and (b"\\ud" in data or b"\\uD" in data):
        json.dumps(parsed, ensure_ascii=False).encode()  # half of a surrogate pair cannot be encoded
    return parsed


def strict_json_values(data: bytes) -> list[Any]:
    """The same for several values behind one another, as `jq` prints them, with any values in them.

    >>> strict_json_values(b'{"a": 1}\\n{\\n"a": 2}')
    [{'a': 1}, {'a': 2}]
    """
    _check_brackets(data)
    text, decoder, found = data.decode("utf-8"), _decoder(any_value=True), []
    at = _BLANKS.match(text).end()  # type: ignore[union-attr]
    try:
        while at < len(text):
            value, at = decoder.raw_decode(text, at)
            found.append(value)
            at = _BLANKS.match(text, at).end()  # type: ignore[union-attr]
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
    return found


@cache
def _decoder(any_value: bool) -> json.JSONDecoder:
    return json.JSONDecoder(object_pairs_hook=_distinct, parse_constant=float if any_value else _no_constant,
                            parse_float=float if any_value else _finite)


def parse_json(data: bytes, where: str, *, limit_bytes: int, limit_elements: int | None = None,
               error: type[TaroError] = ShardError) -> Any:
    """`strict_json` of at most `limit_bytes` and `limit_elements`, counted before anything is built; what is wrong is
    an `error` that opens with `where`."""
    if len(data) > limit_bytes:
        raise error(f"{where}: {len(data):,} bytes of JSON, at most {limit_bytes:,} are read")
    if limit_elements is not None and len(data) > limit_elements and (found := elements(data)) > limit_elements:
        raise error(f"{where}: {found:,} values in the JSON, at most {limit_elements:,} are read")
    try:
        return strict_json(data)
    except ValueError as problem:
        raise error(f"{where}: not valid JSON ({problem!s:.200}); the file is damaged, fetch or make it "
                    "again") from None


def parse_model(model: type[ModelT], data: bytes, where: str, *, limit_bytes: int, limit_elements: int | None = None,
                error: type[TaroError] = ShardError) -> ModelT:
    """`parse_json`, then validation against `model`."""
    parsed = parse_json(data, where, limit_bytes=limit_bytes, limit_elements=limit_elements, error=error)
    return check_model(model, parsed, where, error=error)


def check_model(model: type[ModelT], parsed: Any, where: str, *, error: type[TaroError] = ShardError) -> ModelT:
    """Parsed JSON as a `model`; an `error` that opens with `where` and tells the first problem where it is none."""
    try:
        return model.model_validate(parsed)
    except ValidationError as problem:
        first = problem.errors(include_url=False, include_input=False)[0]
        at = ".".join(str(part) for part in first["loc"])[:200]
        more = f" (and {problem.error_count() - 1} more)" if problem.error_count() > 1 else ""
        # Untrusted text may be in it: no control characters on a terminal, nothing that cannot be encoded.
        what = f"{at + ': ' if at else ''}{first['msg'][:300]}".encode("unicode_escape").decode()
        raise error(f"{where}: not a valid {model.__name__}: {what}{more}; the file is damaged, or of another version "
                    "of taro") from None


def read_json(path: Path, *, error: type[TaroError] = ModelError) -> dict[str, Any]:
    """The JSON object in a file of at most 64 MiB; {} where there is nothing of that name. Raises `error`."""
    if not os.path.lexists(path):
        return {}
    if not path.is_file():
        raise error(f"{path}: expected a JSON file, found a folder, a pipe or a link to nothing")
    try:
        with open_regular(path) as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror}; check its permissions") from None
    parsed = parse_json(data, str(path), limit_bytes=MAX_JSON_BYTES, error=error)
    if not isinstance(parsed, dict):
        raise error(f"{path}: expected a JSON object, got a {type(parsed).__name__}")
    return parsed


def _check_brackets(data: bytes) -> None:
    """Raises ValueError for too deep or too many brackets outside strings; no recursion, time linear in the bytes."""
    # `\Z` ends an unterminated string, or a hostile file would be scanned again from every quote in it.
    brackets = _STRING.sub(b"", data).translate(None, delete=_NOT_BRACKETS)
    containers = brackets.count(b"[") + brackets.count(b"{")
    if containers > MAX_CONTAINERS:
        raise ValueError(f"{containers:,} lists and objects, at most {MAX_CONTAINERS:,} are read")
    depth = 0
    for byte in brackets:
        depth += 1 if byte in b"[{" else -1
        if depth > MAX_DEPTH:
            raise ValueError(f"JSON is nested deeper than {MAX_DEPTH}")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {repeated[:60]!a} stands twice in an object")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is no finite number")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
