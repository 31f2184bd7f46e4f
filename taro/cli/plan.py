"""`taro train RECIPE --plan`: what the run would take, printed before anything is loaded.

Thin: the numbers are `taro.train.plan`. A recipe can be planned without a shard set or a policy's folder: then prompts
of the released budget are assumed, and said to be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taro.cli.output import say, say_block, say_json

if TYPE_CHECKING:
    from taro.train.config import TrainConfig
    from taro.train.plan.make import Plan

__all__ = ["plan_run", "show_plan"]

GIB = 2**30
UNKNOWN = {"shards": ".", "out": "no-run-yet"}
"""settings that a plan can do without, and what stands there"""


def plan_run(recipe: str, overrides: list[str], *, gpus: int, memory_gib: float | None) -> Plan:
    """The plan of a recipe. Raises TaroError: settings that do not fit, a policy that is nowhere."""
    from taro.core.config import load_config, read_recipe
    from taro.train.config import TrainConfig
    from taro.train.plan.open import open_plan

    data = read_recipe(TrainConfig, recipe, package="taro.train.recipes")
    given = {*data, *(override.partition("=")[0].partition(".")[0] for override in overrides)}
    missing = [f"{name}={value}" for name, value in UNKNOWN.items() if name not in given]
    config: TrainConfig = load_config(TrainConfig, recipe, [*overrides, *missing], package="taro.train.recipes")
    return open_plan(config, gpus=gpus, memory_gib=memory_gib, shards="shards" in given)


def show_plan(plan: Plan, *, as_json: bool) -> None:
    """Prints it, and where it does not fit the settings that would."""
    from taro.train.plan.fits import ways_to_fit
    from taro.train.plan.show import fit_lines, plan_lines, plan_values, run_lines

    ways = ways_to_fit(plan)
    if as_json:
        found: list[dict[str, Any]] = [{"set": list(way.settings), "gpus": way.gpus, "peak": way.peak} for way in ways]
        say_json({**plan_values(plan), "would_fit": found})
        return
    say_block("\n".join(plan_lines(plan)))
    say(*run_lines(plan), *fit_lines(plan, ways))
