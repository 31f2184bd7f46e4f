"""The engines by name: `engine`, one row each. Another engine is a file beside this one and a row."""

from __future__ import annotations

from collections.abc import Callable

from taro.preprocess.config import EngineName
from taro.preprocess.engines.base import Engine
from taro.preprocess.engines.local import LocalEngine

__all__ = ["ENGINES"]

ENGINES: dict[EngineName, Callable[[], Engine]] = {"local": LocalEngine}
