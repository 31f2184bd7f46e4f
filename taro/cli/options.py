"""The options of a command as one frozen dataclass, and the options that several commands share.

A command with many options takes them as one value, which it hands down whole. typer reads a function's parameters, so
`takes_options` makes a function that has one parameter for each field: the field's `Annotated` metadata (help, names,
bounds) and its default are the parameter's. `taro COMMAND --help` and the tables of docs/ read that signature. A
command with few options takes them as parameters."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

__all__ = ["Adapter", "Columns", "Dataset", "Device", "Json", "Lengths", "MaxNewTokens", "NoThink", "OptionalPolicy",
           "Overrides", "Policy", "Protocol", "RepetitionPenalty", "Template", "as_overrides", "preprocess_recipes",
           "preprocess_settings", "takes_options", "train_recipes", "train_settings"]

def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def preprocess_recipes(incomplete: str) -> list[str]:
    """For the shell: recipes of stage 1."""
    from taro.core.config import recipe_names

    return _starting(recipe_names("taro.preprocess.recipes"), incomplete)


def train_recipes(incomplete: str) -> list[str]:
    """For the shell: recipes of stage 2."""
    from taro.core.config import recipe_names

    return _starting(recipe_names("taro.train.recipes"), incomplete)


def preprocess_settings(incomplete: str) -> list[str]:
    """For the shell: settings of stage 1, as --set takes them."""
    from taro.core.settings import settings_of
    from taro.preprocess.config import PreprocessConfig

    return _starting((f"{setting.path}=" for setting in settings_of(PreprocessConfig)), incomplete)


def train_settings(incomplete: str) -> list[str]:
    """For the shell: settings of stage 2, as --set takes them."""
    from taro.core.settings import settings_of
    from taro.train.config import TrainConfig

    return _starting((f"{setting.path}=" for setting in settings_of(TrainConfig)), incomplete)


def _formats(incomplete: str) -> list[str]:
    from taro.annotations import DATASETS

    return _starting(DATASETS, incomplete)


def _protocols(incomplete: str) -> list[str]:
    from taro.grounding.protocols import PROTOCOLS

    return _starting(PROTOCOLS, incomplete)


def _models(incomplete: str) -> list[str]:
    """What ships; folders the shell completes itself."""
    from taro.models.resolve import SANDBOX, SHIPPED

    return _starting((f"{SANDBOX}{name}" for name in SHIPPED), incomplete)


def _devices(incomplete: str) -> list[str]:
    return _starting(("auto", "cpu", "cuda"), incomplete)


Overrides = list[str] | None
Policy = Annotated[str, typer.Option(help="Model folder, hub id or sandbox:NAME.", autocompletion=_models)]
OptionalPolicy = Annotated[str | None, typer.Option(help="Model folder, hub id or sandbox:NAME.",
                                                    autocompletion=_models)]
Adapter = Annotated[str | None, typer.Option(help="Folder of an adapter over --policy.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.", autocompletion=_devices)]
Dataset = Annotated[str, typer.Option(help="Format of the annotations, see docs/annotations.md.",
                                      autocompletion=_formats)]
Lengths = Annotated[Path | None, typer.Option(help="CSV of video lengths, where the annotations have none.")]
Template = Annotated[str | None, typer.Option(help="Prompt template (name or file); default: the policy's own.")]
NoThink = Annotated[bool | None, typer.Option("--no-think/--think", show_default=False, help="Ask for the answer "
                                              "alone, or for a reasoning; default: as trained.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest response.")]
RepetitionPenalty = Annotated[float, typer.Option(min=0.1, help="Of greedy decoding.")]
Protocol = Annotated[str, typer.Option(help="How answers are read and scored, see docs/evaluation.md.",
                                       autocompletion=_protocols)]
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
