"""How a policy's folder says that it wants to be asked: taro.json, which an export of `taro train` holds.

Left out: the templates (`taro.grounding.prompts`) and the chat template, which stays inside a prompt."""

from __future__ import annotations

from pathlib import Path

from taro.core.errors import ConfigError
from taro.core.json import read_json
from taro.grounding.prompts import Asking, load_template
from taro.models.folder import template_name

__all__ = ["asking_of"]


def asking_of(folder: Path, *, template: str | None = None, no_think: bool | None = None,
              protocol: str = "taro") -> Asking:
    """What is given counts; else what the folder's taro.json says; else the template "taro", with reasoning.

    Raises ConfigError: no such template, or a taro.json whose no_think is neither true nor false."""
    if no_think is None:
        no_think = read_json(folder / "taro.json").get("no_think", False)
        if not isinstance(no_think, bool):
            raise ConfigError(f"{folder / 'taro.json'}: no_think is {str(no_think)[:40]!r}; expected true or false")
    return Asking(load_template(template or template_name(folder) or "taro"), no_think, protocol)
