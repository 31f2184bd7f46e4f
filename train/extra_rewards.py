"""Rewards of the user's own: `reward.extra` names functions of a response, each with its weight in the total.

    def short(response):                       # rewards.py, in the folder where `taro train` is started
        return 1.0 if response.tokens < 80 else 0.0

    taro train sandbox --set 'reward.extra=[["rewards:short", 0.1]]' ...

A function is imported by the name that the settings give: from the folder where one stands, as for `python -m`, and
from installed packages, which come first. No shard set or model folder can name code. It must be a pure function of
what it is given: it is called again, in another order, on examples before anything is loaded and on a group of every
step, and a run ends where it answers otherwise. Left out: models that judge, whose answers change, and
functions of a whole group.
Legend: B prompts, G rollouts of a group, E functions."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from taro.core.errors import ConfigError
from taro.core.text import one_line

__all__ = ["ExtraReward", "Response", "RewardFunction", "check_extra", "extra_values", "load_extra", "overlong"]

Extra = Sequence[tuple[str, float]]
"""("module:function", weight) of each, as `reward.extra` has them"""


@dataclass(frozen=True)
class Response:
    """What a function is given: plain values, times in seconds. text: the whole response, the guided prefix counted in;
    tokens: its length; finished: it ended before `rollout.max_new_tokens`; guided: it opens with a guided prefix;
    predicted: the window that it answers, None where it has none; windows: the ground truth; iou, tiou: of the two, as
    the run measures them."""

    text: str
    query: str
    key: str
    query_id: str
    duration_s: float
    windows: tuple[tuple[float, float], ...]
    predicted: tuple[float, float] | None
    iou: float
    tiou: float
    tokens: int
    finished: bool
    guided: bool


class RewardFunction(Protocol):
    """A finite number for a response, the same whenever it is asked."""

    def __call__(self, response: Response, /) -> float:
        """See the class."""


@dataclass(frozen=True)
class ExtraReward:
    """A function and its name, "module:function"."""

    name: str
    function: RewardFunction

    def value(self, response: Response) -> float:
        """What it gives a response. Raises ConfigError: the function fails, or gives no finite number."""
        of = f"the reward {self.name} of clip {response.key}, query {response.query_id}"
        try:
            value = self.function(response)
        except Exception as error:  # the user's code may raise anything
            raise ConfigError(f"{of} raised {type(error).__name__}: {one_line(str(error)[:200])}; the response was "
                              f"{_shown(response)}. Fix the function, or take it out of reward.extra") from error
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"{of} is {one_line(repr(value)[:80])}; expected a finite float. The response was "
                              f"{_shown(response)}. Return a float for every response")
        return float(value)


def load_extra(extra: Extra) -> list[ExtraReward]:
    """The functions, imported. Raises ConfigError where a name leads to none."""
    if extra and str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.append(str(Path.cwd()))  # last, so that no file of a folder takes the place of an installed module
    return [ExtraReward(name, _imported(name)) for name, _ in extra]


def _imported(name: str) -> RewardFunction:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # a module of the user's may raise anything while it is imported
        raise ConfigError(f"reward.extra: {name} cannot be imported from {Path.cwd()} or the installed packages "
                          f"({type(error).__name__}: {one_line(str(error)[:200])}); expected module:function, the "
                          "module a .py file in the folder where taro is started") from error
    if not callable(found):
        where = one_line(str(getattr(sys.modules[module], "__file__", module)))
        raise ConfigError(f"reward.extra: {where} has no function {attribute}; expected the name of one")
    function: RewardFunction = found
    return function


def check_extra(extra: Extra) -> None:
    """Loads the functions and tries them on examples. Raises ConfigError where one cannot be used."""
    for reward in load_extra(extra):
        _check_pure(reward, EXAMPLES, [reward.value(one) for one in EXAMPLES])


def extra_values(responses_BG: Sequence[Sequence[Response]], extra: Extra) -> np.ndarray:
    """What each function gives each response [B, G, E], before its weight. The first group is asked twice."""
    rewards = load_extra(extra)
    values = [[[reward.value(one) for reward in rewards] for one in responses_G] for responses_G in responses_BG]
    for e, reward in enumerate(rewards if responses_BG else ()):
        _check_pure(reward, responses_BG[0], [given[e] for given in values[0]])
    return np.array(values, dtype=np.float64)


def _check_pure(reward: ExtraReward, responses: Sequence[Response], values: Sequence[float]) -> None:
    for response, before in reversed(list(zip(responses, values, strict=True))):
        again = reward.value(response)
        if again != before:
            raise ConfigError(f"the reward {reward.name} gave {before:g} and then {again:g} for one response, "
                              f"{_shown(response)}; expected a pure function of the response: no chance, no clock, no "
                              "count of calls")


def _shown(response: Response) -> str:
    return one_line(repr(response.text[:120]))


def overlong(tokens: int, *, longest: int, cache: int) -> float:
    """Soft overlong punishment of a response of `tokens`: 0 up to `longest - cache`, then down to -1 at `longest`.

    Source: DAPO (arXiv 2503.14476), eq. 13, with L_max = longest and L_cache = cache.

    >>> [overlong(tokens, longest=100, cache=20) for tokens in (80, 85, 100)]
    [0.0, -0.25, -1.0]
    """
    return -min(1.0, max(0.0, (tokens - (longest - cache)) / cache))


def _example(text: str, predicted: tuple[float, float] | None, iou: float, tokens: int) -> Response:
    return Response(text, "the light goes on", "example", "example", 10.0, ((2.0, 6.0),), predicted, iou, iou, tokens,
                    predicted is not None, False)


EXAMPLES = (
    _example("<think>\nFrom 2.0s to 6.0s, the light goes on.\n</think>\n<answer>2.00s to 6.00s</answer>", (2.0, 6.0),
             1.0, 40),
    _example("<think>\nFrom 0.0s to 3.0s, a man sits.\n</think>\n<answer>0.00s to 3.00s</answer>", (0.0, 3.0), 1 / 6,
             38),
    _example("", None, 0.0, 0))
"""what a function is tried on before a run begins: a right answer, a wrong one, none"""
