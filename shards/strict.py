"""JSON from strangers: bounded in bytes and depth, no duplicate keys, no NaN, validated; canonical when we write it.

Everything that can be wrong becomes a `ShardError` that opens with `where` (shard, key, offset).
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from taro.core.errors import ShardError
from taro.shards.format import MAX_JSON_DEPTH

__all__ = ["canonical_json", "parse_json", "parse_model"]

ModelT = TypeVar("ModelT", bound=BaseModel)

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


def canonical_json(model: BaseModel) -> bytes:
    """The one way a model is written: keys sorted, no blanks, UTF-8, no NaN."""
    return json.dumps(model.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False,
                      allow_nan=False).encode()


def parse_json(data: bytes, where: str, *, limit_bytes: int) -> Any:
    """Parsed JSON; ShardError where it is too long, too deep, not UTF-8, not JSON, or names a key twice."""
    if len(data) > limit_bytes:
        raise ShardError(f"{where}: {len(data):,} bytes of JSON, at most {limit_bytes:,} are read")
    if _depth(data) > MAX_JSON_DEPTH:
        raise ShardError(f"{where}: JSON nested deeper than {MAX_JSON_DEPTH}")
    try:
        parsed = json.loads(data.decode("utf-8"), object_pairs_hook=_distinct, parse_constant=_no_constant,
                            parse_float=_finite)
        if b"\\ud" in data or b"\\uD" in data:
            json.dumps(parsed, ensure_ascii=False).encode()  # half of a surrogate pair is no text: it cannot be written
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{where}: not valid JSON ({str(error)[:200]}); the file is damaged, fetch or make it "
                         "again") from None
    return parsed


def parse_model(model: type[ModelT], data: bytes, where: str, *, limit_bytes: int) -> ModelT:
    """`parse_json`, then validation against `model`."""
    parsed = parse_json(data, where, limit_bytes=limit_bytes)
    try:
        return model.model_validate(parsed)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        at = ".".join(str(part) for part in first["loc"])[:200]
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        # A stranger's text may be in it: no control characters on a terminal, nothing that cannot be encoded.
        told = f"{at + ': ' if at else ''}{first['msg'][:300]}".encode("unicode_escape").decode()
        raise ShardError(f"{where}: not a valid {model.__name__}: {told}{more}; docs/shard-format.md has the "
                         "schema") from None


def _depth(data: bytes) -> int:
    """Deepest nesting of brackets outside strings, found without recursion and in time linear in the bytes."""
    depth = deepest = 0
    # `\Z` ends an unterminated string, or a hostile file would be scanned again from every quote in it.
    for byte in _STRING.sub(b"", data).translate(None, delete=_NOT_BRACKETS):
        depth += 1 if byte in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) != len(pairs):
        raise ValueError("an object names a key twice")
    return parsed


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is no finite number")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
