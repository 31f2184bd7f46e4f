"""`taro annotations lint`: what an annotation file holds, what is wrong with it and what would be done about it.

Thin: `taro.annotations` reads and lints, this prints. Nothing is written."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from taro.cli.options import Columns, Dataset, Json, Lengths
from taro.cli.output import say, say_block, say_json
from taro.cli.progress import progress

__all__ = ["app", "column_mapping", "lint"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


class _Mode(StrEnum):
    repair = "repair"
    drop = "drop"
    fail = "fail"


@app.callback()
def _annotations() -> None:
    """Read annotation files as the stages do, and lint them."""


@app.command()
def lint(
    file: Annotated[str, typer.Argument(help="The annotation file; a hub id for hf.", show_default=False)],
    dataset: Dataset,
    split: Annotated[str, typer.Option(help="The split of rows that name none.")] = "train",
    lengths: Lengths = None,
    column: Columns = None,
    mode: Annotated[_Mode, typer.Option("--lint", help="What becomes of rows that are not fine.")] = _Mode.repair,
    show: Annotated[int, typer.Option(min=0, help="How many dropped and repaired lines to print.")] = 10,
    as_json: Json = False,
) -> None:
    """Count what is kept, repaired (and how) and dropped (and why); exit code 1 where no row is left."""
    with progress("reading", quiet=as_json):
        from taro.annotations import import_annotations

        report = import_annotations(file, dataset=dataset, split=split, lengths=lengths, policy=mode.value,
                                    columns=column_mapping(column or []))
    if as_json:
        say_json(report.as_dict())
    else:
        say(f"{file} as {dataset}, lint {mode.value}")
        say_block(report.table(show=show))
        if any(row.duration_s is None for row in report.rows):
            unknown = sum(row.duration_s is None for row in report.rows)
            give = "--lengths CSV" if dataset == "charades-sta" else "the field duration"
            say(f"{unknown:,} rows have no duration: their windows were not checked against it (give {give})")
    if not report.rows:
        say(f"error: no row of {file} can be used; is it a {dataset} file?", err=True)
        raise typer.Exit(1)


def column_mapping(pairs: list[str]) -> dict[str, str]:
    """FIELD=COLUMN words as a mapping."""
    split = [pair.partition("=") for pair in pairs]
    wrong = [pair for pair, (field, _, column) in zip(pairs, split, strict=True) if not field or not column]
    if wrong:
        raise typer.BadParameter(f"expected FIELD=COLUMN, got {wrong[0]}", param_hint="--column")
    fields = [field for field, _, _ in split]
    if len(twice := {field for field in fields if fields.count(field) > 1}):
        raise typer.BadParameter(f"names the field {min(twice)} twice", param_hint="--column")
    return {field: column for field, _, column in split}
