"""A setting decides what a word is: paths and names stay texts, numbers are numbers, on the line and in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from taro.core.config import Config, load_config, read_yaml
from taro.core.errors import ConfigError
from taro.core.places import LocalPath, SetPlace
from taro.core.yaml_text import parse_yaml, parse_yaml_tree, typed
from taro.preprocess.config import PreprocessConfig
from taro.train.config import TrainConfig


class Part(Config):
    path: SetPlace
    weight: float = 1.0


class All(Config):
    text: str = ""
    path: LocalPath = Path()
    maybe: str | None = "x"
    many: tuple[str, ...] = ()
    by_name: dict[str, str] = {}
    number: float = 0.0
    whole: int = 0
    pair: tuple[float, float] | None = None
    flag: bool = False
    choice: Literal["on", "off", "1"] = "on"
    mixed: str | int = ""
    parts: str | tuple[Part, ...] = ()


def load(source: Path | None = None, *overrides: str) -> All:
    return load_config(All, source, overrides, package="taro.train.recipes")


WORDS = ["a: b", "a #b", "#a", "*a", "&a", "!a", "!!python/name:os", "{a}", "{a", "[a]", "a]", "%a", "@a", "`a`", "- a",
         "? a", "| a", "> a", "a:", ":", "-", "=", "<<", "2024-11-25", "12:30", "12:30:45", "1e-6", "1e5", "007", "010",
         "0o10", "0x1F", "1_000", "0b1", "1.50", ".5", "+1", "-1", ".inf", ".nan", "on", "off", "yes", "no", "y", "N",
         "true", "False", "a, b", "a b", "a\\nb", "C:\\new", 'say "a"', "it's", "'a' b", '"a', "a/http://b?c=d&e#f",
         "v[1].csv", "x*.jsonl", "a=b", "caf\u00e9", "100%"]  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
def test_a_text_on_the_command_line_stays_as_it_was_typed(word: str) -> None:
    found = load(None, f"text={word}", f"path=/d/{word}", f"path={word}", f"maybe={word}", f"by_name.a={word}",
                 f"parts={'x' + word}")  # fmt: skip
    assert (found.text, str(found.path), found.maybe, found.by_name["a"]) == (word, str(Path(word)), word, word)
    assert found.parts == "x" + word


PLAIN = [word for word in WORDS if word[0] not in "*&!{[%@`?|>#:=<'\"-" and ": " not in word and " #" not in word
         and not word.endswith(":")]  # fmt: skip


@pytest.mark.parametrize("word", PLAIN)
def test_a_plain_word_in_a_recipe_is_the_text_that_its_setting_takes(tmp_path: Path, word: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"text: {word}\nmaybe: {word}\nby_name:\n  a: {word}\nmany:\n- {word}\n", encoding="utf-8")
    found = load(path)
    assert (found.text, found.maybe, found.by_name, found.many) == (word, word, {"a": word}, (word,))


@pytest.mark.parametrize(
    ("setting", "name", "value"),
    [
        ("number=1e-6", "number", 1e-6), ("number=1E5", "number", 1e5), ("number=.5", "number", 0.5),
        ("number=1", "number", 1.0), ("whole=010", "whole", 10), ("whole=0x1F", "whole", 31),
        ("whole=0o10", "whole", 8),
        ("whole=+3", "whole", 3), ("pair=[1e-3, 010]", "pair", (1e-3, 10.0)), ("pair=null", "pair", None),
        ("maybe=null", "maybe", None), ("maybe=~", "maybe", None), ("maybe=", "maybe", None),
        ('maybe="null"', "maybe", "null"),
        ("flag=true", "flag", True), ("choice=off", "choice", "off"), ("choice=1", "choice", "1"),
        ("mixed=7", "mixed", 7), ("mixed=7x", "mixed", "7x"), ("mixed=on", "mixed", "on"),
        ("mixed=true", "mixed", "true"),
        ('text="a: b"', "text", "a: b"), ("text='a #b'", "text", "a #b"), ('text="a" # said', "text", "a"),
        ("text= a ", "text", "a"), ("path=~", "path", Path.home()),
        ("many=[2024, 1e3, on, 007, 'a: b']", "many", ("2024", "1e3", "on", "007", "a: b")),
        ("by_name={a: 1, 2: 010, on: yes}", "by_name", {"a": "1", "2": "010", "on": "yes"}),
        ("parts=[{path: 007, weight: 2}]", "parts", (Part(path="007", weight=2.0),)),
        ("parts=[x]y", "parts", None), ("parts=- a: b", "parts", None),
    ],
)  # fmt: skip
def test_the_type_of_a_setting_decides(setting: str, name: str, value: Any) -> None:
    if value is None and name == "parts":
        with pytest.raises(ConfigError):
            load(None, setting)
    else:
        assert getattr(load(None, setting), name) == value


@pytest.mark.parametrize("setting", ["number=12:30", "whole=12:30", "whole=1.5", "flag=maybe", "text=null", "text=",
                                     "whole=*a", "whole=!!python/name:os", "pair={", "number=2024-11-25",
                                     "text=a\0b", "text=\x1b[2J", "text=\udcff"])  # fmt: skip
def test_what_a_setting_does_not_take_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError):
        load(None, setting)


def test_a_group_that_was_set_whole_can_be_set_further() -> None:
    assert load(None, "by_name={a: 007}", "by_name.b=008").by_name == {"a": "007", "b": "008"}
    assert load(None, "parts=[{path: a}]", "parts.0.path=#b").parts == (Part(path="#b"),)


@pytest.mark.parametrize("text", ["whole: 1\nwhole: 2", "by_name: {a: x, a: y}", "parts: [{path: a, path: b}]",
                                  "by_name:\n  1: x\n  '1': y"])  # fmt: skip
def test_a_key_that_stands_twice_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match="stands twice"):
        load(tmp_path / "a.yaml")


def test_merged_keys_are_not_repeated_ones(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}


def test_words_without_a_type_are_those_of_yaml_1_2() -> None:
    found = parse_yaml("[1, 010, 0o10, 0x1F, 1e-6, 1., .5, .inf, true, on, null, ~, 1_0, 12:30, 2024-01-01, =]", "x")
    assert found == [1, 10, 8, 31, 1e-6, 1.0, 0.5, float("inf"), True, "on", None, None, "1_0", "12:30", "2024-01-01",
                     "="]  # fmt: skip


SCALARS = st.text(max_size=8) | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none()


@given(st.dictionaries(st.text(max_size=5), SCALARS | st.lists(SCALARS, max_size=3), max_size=4))
def test_what_pyyaml_writes_reads_back(data: dict[str, Any]) -> None:
    """PyYAML leaves texts such as 1e5, which are numbers in YAML 1.2 alone, without quotes: a type tells."""
    tree = parse_yaml(yaml.safe_dump(data), "x")
    assert {*tree} == {*data}
    for key, value in data.items():
        pairs = zip(value, tree[key], strict=True) if isinstance(value, list) else [(value, tree[key])]
        for one, other in pairs:
            assert (type(one), one) == (type(other), other) or (isinstance(one, str) and isinstance(other, int | float))
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    assert typed(parse_yaml_tree(yaml.safe_dump(texts), "x"), dict[str, str]) == texts


def test_settings_of_both_stages() -> None:
    """As a user would type them."""
    made = load_config(PreprocessConfig, None, [
        "videos=/data/v #1", "annotations=moments[1].csv", "dataset=hf", "columns.query=1: text", "split=2024-11-25",
        "out=on", "policy=./qwen: 7b", "caption.method=none", "segment.method=uniform", "name=1e5",
        "sampling.sample_fps=2e0",
        "licences.videos=CC-BY 4.0 # see site", "clip_model=null", "caption.prompt=*Describe* {it}: now"],
        package="taro.preprocess.recipes")  # fmt: skip
    assert (str(made.videos), str(made.annotations), str(made.out)) == ("/data/v #1", "moments[1].csv", "on")
    assert (made.columns, made.split, made.name) == ({"query": "1: text"}, "2024-11-25", "1e5")
    assert made.licences.videos == "CC-BY 4.0 # see site" and made.caption.prompt == "*Describe* {it}: now"
    trained = load_config(TrainConfig, None, [
        "policy=007", "shards=set: 1", "out=2024", "optimizer.lr=1e-6", "data.split=off", "data.queries=[007, 1e5]",
        "data.text=#.*[a]", "loss.kl=1e-2"], package="taro.train.recipes")  # fmt: skip
    assert (trained.policy, trained.shards, str(trained.out)) == ("007", "set: 1", "2024")
    assert (trained.data.split, trained.data.queries, trained.data.text) == ("off", ("007", "1e5"), "#.*[a]")
    assert (trained.optimizer.lr, trained.loss.kl) == (1e-6, 0.01)
