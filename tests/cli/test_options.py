"""A command that takes its options as one dataclass: typer sees each field as an option, the command gets one value."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from taro.cli.eval import EvalOptions, evaluate
from taro.cli.ground import GroundOptions, ground
from taro.cli.options import Json, takes_options
from taro.cli.preprocess import PreprocessOptions, preprocess
from taro.cli.sensitivity import SensitivityOptions, sensitivity


@dataclass(frozen=True)
class Given:
    """Options of a command of this test."""

    name: Annotated[str, typer.Argument(help="A name.")]
    times: Annotated[int, typer.Option(min=1, help="How often.")] = 2
    tag: Annotated[list[str] | None, typer.Option(help="Repeatable.")] = None
    as_json: Json = False


GOT: list[Given] = []


@takes_options
def command(options: Given) -> None:
    """Keeps its options."""
    GOT.append(options)


def run(*words: str) -> Any:
    """Runs the command of this test."""
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(words))


def test_the_command_gets_one_value_of_all_its_options() -> None:
    GOT.clear()
    assert run("a").exit_code == 0 and run("b", "--times", "3", "--tag", "x", "--tag", "y", "--json").exit_code == 0
    command(name="c", times=5)
    assert [Given("a"), Given("b", 3, ["x", "y"], True), Given("c", 5)] == GOT


def test_typer_checks_and_shows_each_option() -> None:
    assert run().exit_code == 2 and run("a", "--times", "0").exit_code == 2 and run("a", "--nothing").exit_code == 2
    page = run("--help").output
    assert all(text in page for text in ("Keeps its options.", "A name.", "How often.", "Repeatable.", "--json"))


@pytest.mark.parametrize(("function", "options"), [
    (evaluate, EvalOptions), (ground, GroundOptions), (preprocess, PreprocessOptions),
    (sensitivity, SensitivityOptions)])
def test_every_field_is_a_documented_option(function: Any, options: type[Any]) -> None:
    parameters = inspect.signature(function).parameters
    assert list(parameters) == [field.name for field in fields(options)]
    for parameter in parameters.values():
        (info,) = parameter.annotation.__metadata__
        assert info.help, parameter.name
