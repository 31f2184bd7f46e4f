"""`taro config preprocess` and `taro config train`: every setting of a stage with its meaning, value and source.

The pages of settings in docs/ are what these two print. Nothing is run, no model and no data are looked at."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taro.cli.options import Json, Overrides, preprocess_recipes, preprocess_settings, train_recipes, train_settings
from taro.cli.output import examples, say, say_json

if TYPE_CHECKING:
    from taro.core.config import Config

__all__ = ["app", "preprocess", "train"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
RECIPE = "A shipped recipe or a .yaml file; without one, the defaults."


@app.callback()
def _config() -> None:
    """Show every setting of a stage: its meaning, its value and where the value comes from."""


@app.command(epilog=examples(("taro config preprocess", "taro config preprocess sandbox --set workers=8")))
def preprocess(
    recipe: Annotated[str | None, typer.Argument(help=RECIPE, autocompletion=preprocess_recipes)] = None,
    overrides: Annotated[Overrides, typer.Option("--set", metavar="KEY=VALUE", autocompletion=preprocess_settings,
                                                 help="Replace a setting; repeatable.")] = None,
    as_json: Json = False,
) -> None:
    """Every setting of taro preprocess."""
    from taro.preprocess.config import PreprocessConfig

    _show("preprocess", PreprocessConfig, recipe, overrides or [], as_json=as_json)


@app.command(epilog=examples(("taro config train taro-7b", "taro config train my.yaml --set optimizer.lr=2e-6 --json")))
def train(
    recipe: Annotated[str | None, typer.Argument(help=RECIPE, autocompletion=train_recipes)] = None,
    overrides: Annotated[Overrides, typer.Option("--set", metavar="KEY=VALUE", autocompletion=train_settings,
                                                 help="Replace a setting; repeatable.")] = None,
    as_json: Json = False,
) -> None:
    """Every setting of taro train."""
    from taro.train.config import TrainConfig

    _show("train", TrainConfig, recipe, overrides or [], as_json=as_json)


def _show(stage: str, model: type[Config], recipe: str | None, overrides: list[str], *, as_json: bool) -> None:
    rows = _rows(model, recipe, overrides, f"taro.{stage}.recipes")
    if as_json:
        say_json({"stage": stage, "recipe": recipe, "settings": rows})
        return
    name = recipe or "no recipe"
    for row in rows:
        shown = "must be given" if row["source"] == "nowhere" else json.dumps(row["value"], ensure_ascii=False)
        origin = {"recipe": f"  ({name})", "--set": "  (--set)"}.get(row["source"], "")
        say(f"{row['name']}: {shown}{origin}", f"    {row['meaning']}")


def _rows(model: type[Config], recipe: str | None, overrides: list[str], package: str) -> list[dict[str, Any]]:
    """Each setting as JSON shows it; those of the items of a list have no value unless the list has items."""
    from taro.core.config import load_config, missing_of, read_recipe
    from taro.core.settings import settings_of, source_of, value_at

    missing = missing_of(model, recipe, overrides, package=package)
    given = [*overrides, *(f"{path}=given" for path in missing)]
    values: dict[str, Any] | None = None
    if recipe is not None or overrides:  # the defaults alone need not fit together: a captioner has no default model
        values = load_config(model, recipe, given, package=package).model_dump(mode="json")
    read = read_recipe(model, recipe, package=package)
    rows = []
    for setting in settings_of(model):
        source, value = source_of(setting.path, read, overrides), None
        if setting.path in missing:
            source = "nowhere"
        elif values is None or ".N." in setting.path:
            source, value = "default", None if setting.default is None else json.loads(setting.default)
        else:
            try:
                value = value_at(values, setting.path)
            except KeyError:  # of a section that is null
                value = None if setting.default is None else json.loads(setting.default)
        rows.append({"name": setting.path, "value": value, "source": source, "meaning": setting.meaning,
                     "default": None if setting.default is None else json.loads(setting.default)})
    return rows
