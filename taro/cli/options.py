"""The options of a command as one frozen dataclass, and the options that several commands share.

A command with many options takes them as one value, which it hands down whole. typer reads a function's parameters, so
`takes_options` makes a function that has one parameter for each field: the field's `Annotated` metadata (help, names,
bounds) and its default are the parameter's. `taro COMMAND --help` and the tables of docs/ read that signature. A
command with few options takes them as parameters."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

__all__ = ["Columns", "Device", "Json", "MaxNewTokens", "NoThink", "Policy", "Protocol",
           "RepetitionPenalty", "Template", "as_overrides", "takes_options"]

Policy = Annotated[str, typer.Option(help="Model folder, hub id or sandbox:NAME.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Template = Annotated[str | None, typer.Option(help="Prompt template (name or file); default: the policy's own.")]
NoThink = Annotated[bool | None, typer.Option("--no-think/--think", show_default=False, help="Ask for the answer "
                                              "alone, or for a reasoning; default: as trained.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest response.")]
RepetitionPenalty = Annotated[float, typer.Option(min=0.1, help="Of greedy decoding.")]
Protocol = Annotated[str, typer.Option(help="How answers are read and scored, see docs/evaluation.md.")]
Columns = Annotated[list[str] | None, typer.Option(help="For hf, FIELD=COLUMN, such as query=sentence; repeatable.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def takes_options(command: Callable[[Any], None]) -> Callable[..., None]:
    """The command, which takes one dataclass, as a function whose keyword parameters are the dataclass's fields."""
    (options,) = (kind for name, kind in get_type_hints(command).items() if name != "return")
    hints = get_type_hints(options, include_extras=True)

    def run(**given: Any) -> None:
        command(options(**given))

    run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
    run.__annotations__ = {**hints, "return": None}
    run.__signature__ = inspect.Signature([  # type: ignore[attr-defined]
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, annotation=hints[field.name],
                          default=inspect.Parameter.empty if field.default is MISSING else field.default)
        for field in fields(options)])
    return run


def as_overrides(values: dict[str, Any]) -> list[str]:
    """Settings as `--set` takes them, None left out; JSON texts are YAML texts, so that any path survives.

    >>> as_overrides({"out": Path("a: b"), "seed": 1, "policy": None})
    ['out="a: b"', 'seed=1']
    """
    return [f"{key}={json.dumps(str(value) if isinstance(value, Path) else value)}"
            for key, value in values.items() if value is not None]
