"""`taro preprocess`: reads a recipe, shows the job as it goes, prints the ledger.

Thin: the work is `taro.preprocess.run.preprocess`. Left out: engines other than `local`.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taro.cli.output import say

if TYPE_CHECKING:
    from taro.preprocess.config import PreprocessConfig

__all__ = ["preprocess"]


class _Retry(StrEnum):
    transient = "transient"


class _Only(StrEnum):
    features = "features"
    variants = "variants"


def preprocess(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (sandbox, charades-sta, jsonl) or a .yaml file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting, e.g. segment.method=uniform; repeatable."),
    ] = None,
    partition: Annotated[str, typer.Option(metavar="I/N", help="Make every N-th slice, from the I-th.")] = "1/1",
    retry: Annotated[_Retry | None, typer.Option(help="Make slices again whose skipped rows may pass now.")] = None,
    only: Annotated[_Only | None, typer.Option(help="Add this policy's features, or frame variants.")] = None,
    policy: Annotated[str | None, typer.Option(help="Model folder whose tower encodes; as --set policy=.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the shard set; as --set out=.")] = None,
    max_skipped: Annotated[float | None, typer.Option(min=0, max=1, help="Share of rows that may be skipped.")] = None,
    thumbnails: Annotated[bool | None, typer.Option(help="Contact sheets in the set.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done; write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end, nothing else.")] = False,
) -> None:
    """Stage 1: videos and annotations to shards. Run it again to resume: finished slices are kept."""
    from taro.core.config import load_config
    from taro.preprocess.config import PreprocessConfig
    from taro.preprocess.estimate import estimate

    named = {"policy": policy, "out": out, "max_skipped": max_skipped, "thumbnails": thumbnails}
    extra = [f"{key}={json.dumps(str(value) if isinstance(value, Path) else value)}"
             for key, value in named.items() if value is not None]  # fmt: skip
    config = load_config(PreprocessConfig, recipe, [*(overrides or []), *extra], package="taro.preprocess.recipes")
    if dry_run:
        if retry is not None or partition != "1/1":
            raise typer.BadParameter("--dry-run counts all that is left to do; leave --retry and --partition out")
        report = estimate(config, only=None if only is None else only.value)
        say(json.dumps(report.as_dict()) if as_json else report.table())
        return
    _run(config, _parse_partition(partition), retry, only, as_json=as_json)


def _run(
    config: PreprocessConfig, partition: tuple[int, int], retry: _Retry | None, only: _Only | None, *, as_json: bool
) -> None:
    from taro.cli.progress import progress
    from taro.preprocess.run import preprocess as run

    with progress("planning", quiet=as_json) as shown:
        report = run(config, progress=lambda at: shown.update(at.done, at.total, at.label), partition=partition,
                     retry="transient" if retry else None, only=None if only is None else only.value)  # fmt: skip
    if as_json:
        say(json.dumps(report.as_dict()))
        return
    say(report.table())
    if report.complete:
        say(f"next: taro shards verify {report.out}")


def _parse_partition(text: str) -> tuple[int, int]:
    part, slash, parts = text.partition("/")
    if not slash or not part.isdecimal() or not parts.isdecimal() or not 1 <= int(part) <= int(parts):
        raise typer.BadParameter(f"{text}: expected I/N with 1 <= I <= N, such as 3/16", param_hint="--partition")
    return int(part), int(parts)
