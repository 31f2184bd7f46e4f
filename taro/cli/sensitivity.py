"""`taro sensitivity`: how a policy's reasonings depend on the order of a video, by kind, radius and boundary of
disruption.

Thin: `taro.train.sensitivity.measure` samples and scores, `taro.train.sensitivity.report` sums up and draws."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from taro.cli.options import Adapter, Device, Json, NoThink, Policy, Template, takes_options
from taro.cli.output import say_block, say_json
from taro.cli.progress import load_libraries, progress

if TYPE_CHECKING:
    from taro.grounding.prompts import Asking

__all__ = ["SensitivityOptions", "sensitivity"]

Over = Literal["reasoning", "response"]


@dataclass(frozen=True)
class SensitivityOptions:
    """Which policy and queries, under which disruptions, and how responses are drawn and counted."""

    policy: Policy
    shards: Annotated[str, typer.Option(help="Shard set whose queries are asked.")]
    split: Annotated[str | None, typer.Option(help="Only queries of this split.")] = None
    limit: Annotated[int | None, typer.Option(min=1, help="Ask this many queries, drawn by --seed.")] = None
    kinds: Annotated[str, typer.Option(help="Disruptions, comma-separated.")] = "patch,reverse,elsewhere,noise"
    radius: Annotated[str, typer.Option(help="Seconds around a boundary, comma-separated.")] = "1,3,5"
    boundary: Annotated[str, typer.Option(help="Which boundaries, comma-separated.")] = "both,start,end"
    group: Annotated[int, typer.Option(min=2, help="Rollouts a query.")] = 8
    seed: Annotated[int, typer.Option(min=0, help="Of rollouts, disruptions, --limit and the intervals.")] = 0
    over: Annotated[str | None, typer.Option(help="Tokens that count: reasoning, or response (default where answers "
                                             "come alone).")] = None
    adapter: Adapter = None
    no_think: NoThink = None
    template: Template = None
    max_new_tokens: Annotated[int, typer.Option(min=1, max=32_768, help="Longest response.")] = 1024
    batch: Annotated[int, typer.Option(min=1, help="Prompts decoded at once.")] = 16
    device: Device = "auto"
    html: Annotated[Path | None, typer.Option(help="Write a page with charts to this file.")] = None
    as_json: Json = False


@takes_options
def sensitivity(options: SensitivityOptions) -> None:
    """Measure the log-probability drop of a policy's sampled reasonings under broken videos."""
    load_libraries(quiet=options.as_json)
    from taro.core.errors import ConfigError
    from taro.models.asking import asking_of
    from taro.models.resolve import resolve_place
    from taro.pages.render import write_page
    from taro.shards.reader import open_shards
    from taro.train.sensitivity.measure import conditions
    from taro.train.sensitivity.report import sensitivity_page, sensitivity_table, summarise

    if options.over not in (None, "reasoning", "response"):
        raise ConfigError(f"--over {options.over}: expected reasoning or response")
    conditions(_words(options.kinds), _seconds(options.radius), _words(options.boundary))
    place = resolve_place(options.policy, options.adapter)
    asking = asking_of(place.asked, template=options.template, no_think=options.no_think)
    over: Over = "response" if options.over == "response" or (asking.no_think and options.over is None) else "reasoning"
    found = _measure(options, place.base, asking, over=over)
    summary = {"policy": options.policy, "shards": options.shards, "split": options.split, "seed": options.seed,
               "group": options.group, "over": over, "no_think": asking.no_think, **summarise(found, seed=options.seed)}
    if options.html is not None:
        write_page(options.html, sensitivity_page(
            found, summary, title=f"Sensitivity of {options.policy}", made_by=_command(options, summary),
            sets=[open_shards(options.shards)]))
    say_json(summary) if options.as_json else say_block(sensitivity_table(summary))


def _measure(options: SensitivityOptions, folder: Path, asking: Asking, *, over: Over) -> Any:
    from taro.models.load import open_policy
    from taro.train.config import RolloutConfig
    from taro.train.evaluate import Questions
    from taro.train.sensitivity.measure import conditions, measure_sensitivity
    from taro.train.sets import open_encoded_shards, with_variants

    shard_set, frame_s = open_encoded_shards(options.shards, folder), None
    if "frame" in _words(options.kinds):
        shard_set, settings = with_variants(shard_set)
        frame_s = settings.dt_s
    under = conditions(_words(options.kinds), _seconds(options.radius), _words(options.boundary), frame_s=frame_s)
    with progress("loading the policy", quiet=options.as_json) as shown:
        policy = open_policy(options.policy, options.device, options.adapter)  # the weights, once all else is right
        shown.stage("measuring")
        return measure_sensitivity(
            policy, shard_set, asking, under, questions=Questions(options.split, options.limit, options.seed),
            over=over, progress=shown.update,
            rollout=RolloutConfig(group=options.group, max_new_tokens=options.max_new_tokens,
                                  batch_prompts=options.batch))


def _command(options: SensitivityOptions, summary: dict[str, Any]) -> str:
    """The command that makes a page again."""
    given = {name: summary[name] for name in ("policy", "shards", "split", "group", "seed", "over")}
    given |= {name: getattr(options, name)
              for name in ("kinds", "radius", "boundary", "limit", "template", "max_new_tokens")}
    words = [word for name, value in given.items() if value is not None
             for word in (f"--{name.replace('_', '-')}", str(value))]
    return shlex.join(["taro", "sensitivity", *words, "--no-think" if summary["no_think"] else "--think"])


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _seconds(text: str) -> list[float]:
    from taro.core.errors import ConfigError
    from taro.core.numbers import read_number

    found = [read_number(word) for word in _words(text)]
    seconds = [number for number in found if number is not None]
    if len(seconds) != len(found):
        raise ConfigError(f"--radius {text}: expected seconds, comma-separated, such as 1,3,5")
    return seconds
