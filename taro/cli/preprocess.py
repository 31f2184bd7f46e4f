"""`taro preprocess`: reads a recipe, shows the job as it goes, prints the ledger.

Thin: the work is `taro.preprocess.run.preprocess`. Left out: engines other than `local`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from taro.cli.options import Json, Overrides, as_overrides, preprocess_recipes, preprocess_settings, takes_options
from taro.cli.output import say, say_block, say_json
from taro.cli.progress import progress

if TYPE_CHECKING:
    from taro.preprocess.config import PreprocessConfig

__all__ = ["PreprocessOptions", "preprocess"]

Retry = Literal["transient"] | None
Only = Literal["features", "variants"] | None


@dataclass(frozen=True)
class PreprocessOptions:
    """Which job, which part of it, and settings of the recipe that have an option of their own."""

    recipe: Annotated[str, typer.Argument(help="A shipped recipe (sandbox, charades-sta, jsonl) or a .yaml file.",
                                          autocompletion=preprocess_recipes)]
    overrides: Annotated[
        Overrides, typer.Option("--set", metavar="KEY=VALUE", autocompletion=preprocess_settings,
                                help="Replace a setting, e.g. segment.method=uniform; repeatable."),
    ] = None
    partition: Annotated[str, typer.Option(metavar="I/N", help="Make every N-th slice, from the I-th.")] = "1/1"
    retry: Annotated[Retry, typer.Option(help="Make slices again whose skipped rows may pass now.")] = None
    only: Annotated[Only, typer.Option(help="Add this policy's features, or frame variants.")] = None
    policy: Annotated[str | None, typer.Option(help="Model whose tower encodes; as --set policy=.")] = None
    out: Annotated[Path | None, typer.Option(help="Folder of the shard set; as --set out=.")] = None
    engine: Annotated[str | None, typer.Option(help="Where slices run: local; as --set engine=.")] = None
    max_skipped: Annotated[float | None, typer.Option(min=0, max=1, help="Share of rows that may be skipped.")] = None
    thumbnails: Annotated[bool | None, typer.Option(help="Contact sheets in the set.", show_default=False)] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done; write nothing.")] = False
    as_json: Json = False


@takes_options
def preprocess(options: PreprocessOptions) -> None:
    """Stage 1: videos and annotations to shards. Run it again to resume: finished slices are kept."""
    from taro.core.config import load_config
    from taro.preprocess.config import PreprocessConfig

    named = as_overrides({key: getattr(options, key)
                          for key in ("policy", "out", "engine", "max_skipped", "thumbnails")})
    config = load_config(PreprocessConfig, options.recipe, [*(options.overrides or []), *named],
                         package="taro.preprocess.recipes")
    if options.dry_run:
        if options.retry is not None or options.partition != "1/1":
            raise typer.BadParameter("--dry-run counts all that is left to do; leave --retry and --partition out")
        with progress("estimating", quiet=options.as_json):
            from taro.preprocess.estimate import estimate

            report = estimate(config, only=options.only)
        say_json(report.as_dict()) if options.as_json else say_block(report.table())
        return
    _run(config, options, _parse_partition(options.partition))


def _run(config: PreprocessConfig, options: PreprocessOptions, partition: tuple[int, int]) -> None:
    with progress("planning", quiet=options.as_json) as shown:
        from taro.preprocess.run import preprocess as run

        report = run(config, progress=lambda at: shown.update(at.done, at.total, at.label), partition=partition,
                     retry=options.retry, only=options.only)
    if options.as_json:
        say_json(report.as_dict())
        return
    say_block(report.table())
    if report.complete:
        say(f"next: taro shards verify {report.out}")


def _parse_partition(text: str) -> tuple[int, int]:
    part, slash, parts = text.partition("/")
    if not slash or not part.isdecimal() or not parts.isdecimal() or not 1 <= int(part) <= int(parts):
        raise typer.BadParameter(f"{text}: expected I/N with 1 <= I <= N, such as 3/16", param_hint="--partition")
    return int(part), int(parts)
