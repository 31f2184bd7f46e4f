"""`taro sensitivity`: how a policy's reasonings depend on the order of a video, by kind, radius and boundary of
disruption.

Thin: `taro.train.sensitivity.measure` samples and scores, `taro.train.sensitivity.report` says what came out.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from taro.cli.output import say

__all__ = ["sensitivity"]


def sensitivity(
    policy: Annotated[str, typer.Option(help="Model folder, or sandbox:NAME.")],
    shards: Annotated[Path, typer.Option(help="Shard set whose queries are asked.")],
    split: Annotated[str | None, typer.Option(help="Only queries of this split.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask this many queries, drawn by --seed.")] = None,
    kinds: Annotated[str, typer.Option(help="Disruptions, comma-separated.")] = "patch,reverse,elsewhere,noise",
    radius: Annotated[str, typer.Option(help="Seconds around a boundary, comma-separated.")] = "1,3,5",
    boundary: Annotated[str, typer.Option(help="Which boundaries, comma-separated.")] = "both,start,end",
    group: Annotated[int, typer.Option(min=2, help="Rollouts a query.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of rollouts, disruptions, --limit and the intervals.")] = 0,
    over: Annotated[str | None, typer.Option(help="Tokens that count: reasoning, or response (default where answers "
                                             "come alone).")] = None,
    no_think: Annotated[bool | None, typer.Option("--no-think/--think", show_default=False, help="Ask for the answer "
                                                  "alone, or for a reasoning; default: as trained.")] = None,
    template: Annotated[str | None, typer.Option(help="Prompt template; default: the policy's own.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=32_768, help="Longest response.")] = 1024,
    batch: Annotated[int, typer.Option(min=1, help="Prompts decoded at once.")] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Write a page with charts to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the log-probability drop of a policy's sampled reasonings under broken videos."""
    from taro.cli.progress import progress
    from taro.core.errors import ConfigError
    from taro.metrics.page import write_page
    from taro.train.run_dir import open_encoded_shards, open_policy, policy_no_think, policy_template, with_variants
    from taro.train.sensitivity.measure import conditions, probe_policy
    from taro.train.sensitivity.report import probe_page, probe_table, summarise

    if over not in (None, "reasoning", "response"):
        raise ConfigError(f"--over {over}: expected reasoning or response")
    conditions(_words(kinds), _seconds(radius), _words(boundary))  # a wrong word is told before anything is loaded
    loaded = open_policy(policy, device)
    alone = policy_no_think(loaded, no_think)
    over = over or ("response" if alone else "reasoning")
    shard_set, frame_s = open_encoded_shards(shards, loaded), None
    if "frame" in _words(kinds):
        shard_set, settings = with_variants(shard_set)
        frame_s = settings.dt_s
    with progress("probing", quiet=as_json) as shown:
        found = probe_policy(
            loaded, shard_set, template=policy_template(loaded, template), split=split, limit=limit,
            asked=conditions(_words(kinds), _seconds(radius), _words(boundary), frame_s=frame_s),
            group=group, seed=seed, over="response" if over == "response" else "reasoning", no_think=alone,
            max_new_tokens=max_new_tokens, batch_prompts=batch, progress=shown.update)
    summary = {"policy": policy, "shards": str(shards), "split": split, "seed": seed, "group": group, "over": over,
               "no_think": alone, **summarise(found, seed=seed)}
    if out is not None:
        made_by = _command(summary, kinds=kinds, radius=radius, boundary=boundary, limit=limit, template=template,
                           max_new_tokens=max_new_tokens)
        write_page(out, probe_page(found, summary, title=f"Probe of {policy}", made_by=made_by))
    say(json.dumps(summary) if as_json else probe_table(summary))


def _command(summary: dict[str, Any], **asked: Any) -> str:
    """The command that makes a page again."""
    told = {name: summary[name] for name in ("policy", "shards", "split", "group", "seed", "over")} | asked
    words = [word for name, value in told.items() if value is not None
             for word in (f"--{name.replace('_', '-')}", str(value))]
    return shlex.join(["taro", "sensitivity", *words, "--no-think" if summary["no_think"] else "--think"])


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _seconds(text: str) -> list[float]:
    from taro.core.errors import ConfigError

    try:
        return [float(word) for word in _words(text)]
    except ValueError:
        raise ConfigError(f"--radius {text}: expected seconds, comma-separated, such as 1,3,5") from None
