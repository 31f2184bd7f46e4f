"""`taro report`: the HTML page of a training run, with evaluations before and after where they are given.

Thin: `taro.train.report.write` reads and draws, this finds the files. Nothing is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from taro.cli.options import Json, Protocol
from taro.cli.output import say, say_json
from taro.cli.progress import progress

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(help="The run's folder (the recipe's key `out`).")],
    shards: Annotated[list[str] | None, typer.Option(
        "--shards", help="Shard sets with the clips to show; repeatable. Default: the run's own.")] = None,
    before: Annotated[Path | None, typer.Option(
        "--before", help="Answers of the start policy, from `taro eval --policy START --out FILE`.")] = None,
    after: Annotated[Path | None, typer.Option(
        "--after", help="Answers of the trained policy, from `taro eval --policy RUN/export --out FILE`.")] = None,
    protocol: Protocol = "taro",
    out: Annotated[Path | None, typer.Option("--out", help="The page; default: RUN/report.html.")] = None,
    as_json: Json = False,
) -> None:
    """Write the HTML report of a training run: curves, rollouts and, with two evaluations, what changed."""
    from taro.core.errors import ConfigError
    from taro.metrics.answers import read_answers
    from taro.train.report.data import Evaluation, read_run
    from taro.train.report.write import render_report

    if (before is None) != (after is None):
        raise ConfigError("expected --before and --after together, got one of them; write both files with "
                          "`taro eval --policy DIR --shards DIR --out FILE`, on the same queries")
    evaluations = []
    with progress("reading the run", quiet=as_json):
        if before is not None and after is not None:
            evaluations = [Evaluation("greedy", read_answers(before), read_answers(after), protocol)]
        sets = _named(shards) if shards else _own_shards(read_run(run).config)
        page = render_report(run, sets, evaluations, out or run / "report.html", title=f"Training run {run.name}",
                             commands=[f"taro train {run.name}/config.yaml --set out=again", "taro report again"])
    say_json({"page": str(page)}) if as_json else say(f"report: {page}")


def _own_shards(config: dict[str, Any]) -> dict[str, str]:
    """The run's own sets by name, those that are there."""
    from taro.shards.places import local_folder

    own = config.get("shards", "")
    found = {}
    for one in own if isinstance(own, list) else [{"path": own}]:
        place = str(one.get("path", "") if isinstance(one, dict) else one)
        name = one.get("name") if isinstance(one, dict) else None
        if _is_set(place):
            folder = local_folder(place)
            last = place.rstrip("/").rpartition("/")[2] if folder is None else folder.resolve().name
            found[str(name or last)] = place
    return found


def _is_set(place: str) -> bool:
    from taro.core.errors import ShardError
    from taro.shards.format import MANIFEST
    from taro.shards.places import open_store

    try:
        return bool(place) and open_store(place).size(MANIFEST) > 0
    except ShardError:
        return False


def _named(places: list[str]) -> dict[str, str]:
    """Sets by the last part of their place's name, numbered where two are alike."""
    named: dict[str, str] = {}
    for place in places:
        name = place.rstrip("/").rpartition("/")[2] or place
        named[name if name not in named else f"{name} ({len(named) + 1})"] = place
    return named
