"""Settings explained: unknown keys, what other libraries call them, `taro config`, and what the shell completes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from taro.annotations import DATASETS
from taro.cli import app as cli
from taro.core.config import Config, load_config, recipe_names
from taro.core.errors import ConfigError
from taro.core.settings import settings_of, source_of
from taro.grounding.protocols import PROTOCOLS
from taro.preprocess.config import PreprocessConfig
from taro.train.config import TrainConfig
from taro.train.other_names import OTHER_NAMES

GIVEN = ["policy=sandbox:policy", "shards=shards", "out=run"]


def run(*words: str) -> Any:
    return CliRunner().invoke(cli.app, list(words), prog_name="taro")


@pytest.mark.parametrize("model", [PreprocessConfig, TrainConfig])
def test_every_setting_has_a_meaning_and_a_default_that_holds(model: type[Config]) -> None:
    settings = list(settings_of(model))
    assert len(settings) > 40 and len({setting.path for setting in settings}) == len(settings)
    assert [setting.path for setting in settings if not setting.meaning] == []


@pytest.mark.parametrize(("key", "said"), [
    ("lr", "did you mean optimizer.lr?"), ("optimizer.learning_rate", "here it is optimizer.lr"),
    ("lenght.amount", "did you mean length.amount?"), ("rolout", "did you mean rollout?"),
    ("num_generations", "here it is rollout.group"), ("per_device_train_batch_size", "here it is rollout.prompts,"),
    ("max_completion_length", "here it is rollout.max_new_tokens"), ("beta", "here it is loss.kl,"),
    ("epochs", "here it is length.amount with length.unit=epochs"), ("learning_rate", "here it is optimizer.lr"),
    ("actor_rollout_ref.rollout.n", "actor_rollout_ref.rollout.n: unknown key; here it is rollout.group"),
    ("warmup", "did you mean optimizer.warmup_steps?"), ("split.name", "split.name: unknown key"),
    ("gradient_checkpointing", "here it is optimizer.checkpoint_activations"), ("zzz", "zzz: unknown key"),
])
def test_an_unknown_key_is_answered_with_a_whole_path(key: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(TrainConfig, "taro-7b", [*GIVEN, f"{key}=1"], package="taro.train.recipes")
    assert f"{key}: unknown key" in str(refused.value) and said in str(refused.value)


def test_what_others_call_a_setting_is_no_setting_here_and_its_answer_is_one() -> None:
    paths = {setting.path for setting in settings_of(TrainConfig)}
    assert not {word for word in OTHER_NAMES if word in paths}
    for word, here in OTHER_NAMES.items():
        named = here.partition(",")[0].partition("=")[0].split(" ")[0]
        assert named in paths or here == "the command's --resume", (word, here)


def test_an_item_of_a_list_is_named_by_its_place() -> None:
    with pytest.raises(ConfigError, match=r"shards\.0\.wight: unknown key; did you mean shards\.N\.weight\?"):
        load_config(TrainConfig, "taro-7b", [*GIVEN, "shards=[{path: a, wight: 2}]"], package="taro.train.recipes")


@pytest.mark.parametrize("recipe", recipe_names("taro.train.recipes"))
def test_what_a_recipe_lacks_is_asked_for(recipe: str) -> None:
    result = run("train", recipe)
    assert result.exit_code == 1
    assert "shards must be given: --set shards=..., or in the recipe (the folder of a shard set" in result.stderr
    assert "SHARDS" not in result.stderr


def test_config_prints_every_setting_with_its_source(tmp_path: Path) -> None:
    for stage, model in (("preprocess", PreprocessConfig), ("train", TrainConfig)):
        for recipe in (None, *recipe_names(f"taro.{stage}.recipes")):
            words = [] if recipe is None else [recipe]
            found = json.loads(run("config", stage, *words, "--json").stdout)
            assert [row["name"] for row in found["settings"]] == [setting.path for setting in settings_of(model)]
            text = run("config", stage, *words).stdout
            assert all(row["meaning"] in text for row in found["settings"])
    (tmp_path / "mine.yaml").write_text("optimizer: {eps: 1.0e-7}\nlength: {amount: 9}\n")
    found = json.loads(run("config", "train", str(tmp_path / "mine.yaml"), "--set", "optimizer.lr=2e-6", "--set",
                           "length={amount: 4}", "--json").stdout)
    rows = {row["name"]: (row["value"], row["source"]) for row in found["settings"]}
    assert rows["optimizer.lr"] == (2e-6, "--set") and rows["optimizer.eps"] == (1e-7, "recipe")
    assert rows["length.amount"] == (4, "--set") and rows["loss.kl"] == (0.01, "default")
    assert rows["shards"] == (None, "nowhere")
    assert run("config", "train", "--set", "lr=1").exit_code == 1


@pytest.mark.parametrize(("path", "overrides", "source"), [
    ("a.b", [], "recipe"), ("a.c", [], "default"), ("a.c", ["a.c=1"], "--set"), ("a", ["a.c=1"], "--set"),
    ("l", ["l.0.x=1"], "--set")])
def test_the_source_of_a_value(path: str, overrides: list[str], source: str) -> None:
    assert source_of(path, {"a": {"b": 1}, "l": [1]}, overrides) == source


@pytest.mark.parametrize(("line", "found"), [
    ("taro train ta", ["taro-3b", "taro-7b", "taro-7b-lora", "taro-8b", "taro-8b-lora"]),
    ("taro config preprocess ", recipe_names("taro.preprocess.recipes")),
    ("taro eval --protocol ", list(PROTOCOLS)), ("taro annotations lint a --dataset ", list(DATASETS)),
    ("taro train x --set optimizer.w", ["optimizer.weight_decay=", "optimizer.warmup_steps="]),
    ("taro sensitivity --policy sandbox:c", ["sandbox:captioner", "sandbox:clip"])])
def test_the_shell_completes(line: str, found: list[str]) -> None:
    env = {**os.environ, "_TARO_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    code = "import sys; sys.argv[0] = 'taro'; from taro.cli.app import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == found, done.stderr


def leaves() -> list[tuple[str, Any]]:
    """Every command that does something, with its name."""
    found = []
    for name in cli.COMMANDS:
        command = cli._load(name)
        inner = getattr(command, "commands", {})
        found += [(f"{name} {one}", sub) for one, sub in inner.items()] or [(name, command)]
    return found


HELP_MAY_DIFFER = {"--out", "--seed", "--split", "--limit", "--shards", "--no-think", "--policy", "--key", "--set",
                   "--videos", "--device", "--json", "--max-new-tokens", "--html", "--steps"}
"""what these name is the same thing (a folder, a number of draws), said with what the command does with it"""
NO_JSON = {"sandbox build"}
"""prints its log as it goes, and writes it as training-log.jsonl"""


def test_one_name_means_one_thing_in_every_command() -> None:
    seen: dict[str, tuple[str, str, bool]] = {}
    for name, command in leaves():
        for option in command.params:
            if option.param_type_name != "option":
                continue
            assert option.help, f"taro {name} {option.opts}"
            flag = option.opts[0]
            known = seen.setdefault(flag, (name, option.help, option.multiple))
            if flag not in HELP_MAY_DIFFER:
                assert known[1:] == (option.help, option.multiple), f"{flag}: {known[0]} and {name}"
    assert {"--limit", "--key", "--html", "--lint"} <= set(seen) and not {"--n", "--keys"} & set(seen)


def test_every_command_has_json_and_no_flag_shows_a_type() -> None:
    for name, command in leaves():
        flags = {flag for option in command.params for flag in option.opts}
        assert "--json" in flags or name in NO_JSON, name
        page = run(*name.split(), "--help").output
        assert "<bool>" not in page and "-h" in page, page
