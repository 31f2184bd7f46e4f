"""Configuration: recipes and overrides mean what they say, and what they do not say is refused."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Self

import pytest
from pydantic import model_validator

import taro
from taro.core.config import Config, digest, load_config, missing_of, read_yaml, recipe_names
from taro.core.errors import ConfigError


class Inner(Config):
    rate: float = 1.0
    mode: str = "on"


class Outer(Config):
    inner: Inner = Inner()
    flag: bool = False

    @model_validator(mode="after")
    def _slow_where_flagged(self) -> Self:
        if self.flag and self.inner.rate > 9:
            raise ValueError("flag and inner.rate > 9 exclude each other")
        return self


def load(source: Path | None = None, *overrides: str) -> Outer:
    return load_config(Outer, source, overrides, package="taro.train.recipes")


def test_an_override_reaches_its_key_and_no_other() -> None:
    assert load(None, "inner.rate=2.5").inner == Inner(rate=2.5)


@pytest.mark.parametrize("word", ["off", "on", "yes", "no", "2026-11-25"])
def test_words_that_yaml_1_1_takes_for_booleans_or_dates_stay_words(word: str) -> None:
    assert load(None, f"inner.mode={word}").inner.mode == word


def test_true_is_a_boolean(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("flag: true\n")
    assert load(file).flag is True


def test_an_unknown_key_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match=r"inner\.rat: unknown key; did you mean inner\.rate\?"):
        load(None, "inner.rat=1")


@pytest.mark.parametrize("wrong", ["inner.rate", "=1", "inner.rate.deep=1", "inner.rate={"])
def test_a_malformed_override_is_named(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"inner|expected key=value"):
        load(None, "inner.rate=1", wrong)


@pytest.mark.parametrize("text", ["- a list", "!!python/object/apply:os.system [echo]", "a: [", "\x00"])
def test_a_recipe_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        load(file)


def test_a_recipe_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"flag: \xff")
    with pytest.raises(ConfigError, match=r"mine\.yaml, line 1: not UTF-8 \(Latin-1, perhaps\)"):
        load(tmp_path / "mine.yaml")


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e999"])
def test_no_setting_is_infinite(value: str) -> None:
    with pytest.raises(ConfigError, match=r"inner\.rate: .*finite number"):
        load(None, f"inner.rate={value}")


def test_a_missing_recipe_names_those_that_ship() -> None:
    with pytest.raises(ConfigError, match=r"no such recipe; .* one of: quickstart, sandbox, taro-3b, taro-7b"):
        load(Path("nonsense"))


def test_a_rule_between_keys_says_so_in_its_own_words() -> None:
    with pytest.raises(ConfigError, match=r"^defaults: flag and inner\.rate > 9 exclude each other$"):
        load(None, "flag=true", "inner.rate=10")


def test_a_key_of_too_many_names_is_one_message() -> None:
    with pytest.raises(ConfigError, match=r"3,001 names between points; expected at most 32$") as error:
        load(None, "a." * 3000 + "b=1")
    assert len(str(error.value)) < 400


def test_the_digest_follows_the_values() -> None:
    assert digest(Outer()) == digest(Outer(flag=False)) != digest(Outer(flag=True))


@pytest.mark.parametrize("text", [
    "a0: &a0 [x, x]\n" + "\n".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]" for i in range(25)),
    "a: &a [*a]", "a: &a {b: *a}", "a: &a " + "x" * 60_000 + "\nb: [" + "*a, " * 9_000 + "]",
    "[" * 5000, "- " * 5000, "a: " + "9" * 5000, 'a: !!int ""', "a: !!bool maybe", "a: !!timestamp 2001-99-99",
    "a: !!python/object/apply:os.system [true]", 'a: "\\ud800"', "a: \x00", "? [a]\n: b", "a: " + "x" * 200_000,
], ids=lambda text: text[:20])  # fmt: skip
def test_hostile_yaml_is_one_message(tmp_path: Path, text: str) -> None:
    """Aliases of aliases are a few bytes that stand for terabytes."""
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    began = time.monotonic()
    with pytest.raises(ConfigError) as error:
        load_config(Outer, path, package="taro.train.recipes")
    assert time.monotonic() - began < 10 and len(str(error.value)) < 6000


def test_plain_aliases_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &a [1, 2]\nb: [*a, *a]\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": [1, 2], "b": [[1, 2], [1, 2]]}


@pytest.mark.parametrize(("stage", "recipe"), [(stage, name) for stage in ("preprocess", "train")
                                               for name in recipe_names(f"taro.{stage}.recipes")])
def test_a_recipe_is_one_call(stage: Any, recipe: str, tmp_path: Path) -> None:
    model: Any = {"preprocess": taro.PreprocessConfig, "train": taro.TrainConfig}[stage]
    package = f"taro.{stage}.recipes"
    given = [f"{name}=given" for name in missing_of(model, recipe, package=package)]
    found: Any = taro.load_recipe(recipe, stage, given)
    assert type(found) is model and found == load_config(model, recipe, given, package=package)
    mine = tmp_path / "mine.yaml"
    mine.write_text("workers: 7\ncaption: {method: none}" if stage == "preprocess" else "seed: 7")
    needed = [f"{name}=given" for name in missing_of(model, mine, package=package)]
    assert 7 in taro.load_recipe(mine, stage, needed).model_dump().values()
    with pytest.raises(ConfigError, match=r"no such recipe; give a \.yaml file or one of: .*sandbox"):
        taro.load_recipe("sandbx", stage)


@pytest.mark.parametrize(("stage", "overrides", "said"), [
    ("quickstart", [], r"stage 'quickstart': no stage with recipes; expected preprocess or train"),
    ("shards", [], "no stage with recipes"), (None, [], "stage None: no stage"),
    ("train", "seed=1", r"overrides 'seed=1': one text; expected a list"),
    ("train", ["sed=1"], "sed: unknown key; did you mean seed"), ("train", ["seed"], "expected key=value"),
    ("train", [], "shards must be given")])
def test_a_recipe_that_cannot_be_read_says_why(stage: Any, overrides: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        taro.load_recipe("quickstart", stage, overrides)
