"""How a policy's folder says that it wants to be asked: taro.json, which an export of `taro train` holds.

Left out: the templates (`taro.grounding.prompts`) and the chat template, which stays inside a prompt: but for the
`<think>` that it may open, which an answer without reasoning cannot do with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from taro.core.errors import ConfigError
from taro.core.json import read_json
from taro.grounding.prompts import Asking, load_template
from taro.models.folder import template_name
from taro.models.resolve import base_of, is_adapter

if TYPE_CHECKING:
    from taro.models.features import VideoFeatures
    from taro.models.policy import Policy
    from taro.models.prompt import Prompt

__all__ = ["ask", "asking_of", "check_asking"]


def asking_of(folder: Path, *, template: str | None = None, no_think: bool | None = None,
              protocol: str = "taro") -> Asking:
    """What is given counts; else what the folder's taro.json says, of an adapter's without one its base's; else the
    template "taro", with reasoning.

    Raises ConfigError: no such template, or a taro.json whose no_think is neither true nor false."""
    if is_adapter(folder) and not (folder / "taro.json").exists():
        folder = base_of(folder)
    if no_think is None:
        no_think = read_json(folder / "taro.json").get("no_think", False)
        if not isinstance(no_think, bool):
            raise ConfigError(f"{folder / 'taro.json'}: no_think is {str(no_think)[:40]!r}; expected true or false")
    return Asking(load_template(template or template_name(folder) or "taro"), no_think, protocol)


def check_asking(policy: Policy, asking: Asking) -> None:
    """Raises ConfigError where an answer without reasoning is asked of a policy whose chat template opens one."""
    if asking.no_think and policy.prompts.opened:
        raise ConfigError(f"{policy.folder}: its chat template opens <think> itself, so every response reasons; "
                          "expected no no_think (--think), or a chat template that leaves the opening to the response")


def ask(policy: Policy, asking: Asking, features: VideoFeatures, query: str) -> Prompt:
    """The prompt of a query. Raises ConfigError as `check_asking`, ModelError as `Policy.prompt`."""
    check_asking(policy, asking)
    return policy.prompt(features, asking.text(query))
