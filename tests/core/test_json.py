"""Strict JSON: what is refused, under whose error class, and that canonical JSON is read back as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import taro.core.json as strict
from taro.core.config import Config
from taro.core.errors import AnnotationError, ConfigError, ModelError, TaroError


class Box(Config):
    """A model to write and read."""

    text: str
    numbers: list[float] = []


@pytest.mark.parametrize(("data", "message"), [
    (b"{", "Expecting"), (b"\xff", "decode"), (b'{"a": 1, "a": 1}', "key 'a' stands twice"),
    (b"[NaN]", "NaN is not JSON"), (b"[-Infinity]", "-Infinity is not JSON"),
    (b"[1e999]", "no finite number"), (b'["\\ud800"]', "surrogates"),
    (b"[" * 33 + b"]" * 33, "deeper than 32"), (b"[" * 10**6, "deeper than 32"), (b"9" * 5000, "digits"),
])
@pytest.mark.parametrize("error", [AnnotationError, ConfigError])
def test_what_is_not_strict_json_is_the_callers_error(data: bytes, message: str, error: type[TaroError]) -> None:
    with pytest.raises(error, match=f"^here: not valid JSON .*{message}"):
        strict.parse_json(data, "here", limit_bytes=10**7, error=error)


def test_a_reader_that_judges_each_value_gets_each_value() -> None:
    nan, inf, half = strict.strict_json(b'[NaN, 1e999, "\\ud800"]', any_value=True)
    assert (nan != nan, inf, half) == (True, float("inf"), "\ud800")
    for refused in (b'{"a": 1, "a": 1}', b"[" * 33 + b"]" * 33, b"{"):
        with pytest.raises(ValueError):
            strict.strict_json(refused, any_value=True)


def test_bytes_and_containers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TaroError, match="here: 4 bytes of JSON, at most 3"):
        strict.parse_json(b"[  ]", "here", limit_bytes=3)
    monkeypatch.setattr(strict, "MAX_CONTAINERS", 2)
    assert strict.strict_json(b'[{"]][[{{": 1}]') == [{"]][[{{": 1}], "brackets of a text are no containers"
    with pytest.raises(ValueError, match="3 lists and objects, at most 2"):
        strict.strict_json(b"[[], {}]")


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=20), st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=4))
def test_canonical_json_is_read_back(text: str, numbers: list[float]) -> None:
    try:
        data = strict.canonical_json(Box(text=text, numbers=numbers))
    except UnicodeEncodeError:
        return  # half of a surrogate pair has no bytes
    box = strict.parse_model(Box, data, "here", limit_bytes=len(data))
    assert box == Box(text=text, numbers=numbers) and strict.canonical_json(box) == data


def test_a_file_of_a_model_folder_is_an_object_or_an_error(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    assert strict.read_json(path) == {}
    path.write_text(json.dumps({"a": 1}))
    assert strict.read_json(path) == {"a": 1}
    path.write_text("[]")
    with pytest.raises(ModelError, match=r"config\.json: expected a JSON object, got a list"):
        strict.read_json(path)
    with pytest.raises(ConfigError):
        strict.read_json(path, error=ConfigError)
