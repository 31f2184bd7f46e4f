"""Relative paths of a recipe file count from its folder, others from where one stands; names that are no paths stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from taro.core.config import load_config
from taro.core.errors import ModelError
from taro.core.places import paths_for, paths_from, real_paths
from taro.models.resolve import resolve_model
from taro.preprocess.config import PreprocessConfig
from taro.train.config import TrainConfig

TRAIN = """
policy: start
shards: [a, {path: ../b, name: second, queries: ["@ids.txt", q1]}, {path: "hf://datasets/acme/c"}]
out: /runs/x
template: mine.yaml
"""


def train(source: Path | str, *overrides: str) -> TrainConfig:
    return load_config(TrainConfig, source, overrides, package="taro.train.recipes")


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe in a folder beside the one where the command is run."""
    for name in ("here", "recipes"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = Path("../recipes/run.yaml")
    path.write_text(TRAIN)
    return path


def test_paths_of_a_recipe_count_from_its_folder(recipe: Path) -> None:
    config = train(recipe)
    assert (config.policy, config.out, config.template) == ("../recipes/start", Path("/runs/x"), "../recipes/mine.yaml")
    first, second, third = config.sources
    assert [first.path, second.path, third.path] == ["../recipes/a", "../b", "hf://datasets/acme/c"]
    assert second.queries == ("@../recipes/ids.txt", "q1")


def test_paths_of_the_command_line_count_from_where_one_stands(recipe: Path) -> None:
    config = train(recipe, "shards=a", "out=run", "policy=./start", "template=taro", "data.queries=['@ids.txt']")
    assert (config.shards, config.out, config.policy) == ("a", Path("run"), "./start")
    assert config.template == "taro" and config.data.queries == ("@ids.txt",)
    assert train("sandbox", "shards=a", "out=RUN").out == Path("RUN"), "shipped recipes have no folder"


@pytest.mark.parametrize("name", ["sandbox:policy", "acme/model", "acme/model@v1", "/models/start", "~/start"])
def test_names_that_are_no_relative_paths_stay(recipe: Path, name: str) -> None:
    recipe.write_text(f"{{policy: '{name}', shards: a, out: b}}")
    assert train(recipe).policy == name
    (recipe.parent / "acme/model").mkdir(parents=True)
    assert train(recipe).policy == ("../recipes/acme/model" if name == "acme/model" else name)


def test_the_home_is_known_and_a_url_keeps_its_slashes(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home-of-tests")
    recipe.write_text("{policy: sandbox:policy, shards: 's3://bucket//a/', out: ~/run}")
    config = train(recipe)
    assert (config.shards, config.out) == ("s3://bucket//a/", Path("/home-of-tests/run"))


def test_preprocessing_knows_its_places(recipe: Path) -> None:
    recipe.write_text("""{videos: v, annotations: data/a.jsonl, dataset: jsonl, out: o, policy: acme/model,
                          clip_model: ViT-B-32/laion, caption: {method: file, file: c.jsonl}, lengths: l.csv}""")
    config = load_config(PreprocessConfig, recipe, package="taro.preprocess.recipes")
    assert (config.policy, config.clip_model) == ("acme/model", "ViT-B-32/laion")
    assert [config.videos, config.annotations, config.out, config.caption.file, config.lengths] == [
        Path("../recipes") / name for name in ("v", "data/a.jsonl", "o", "c.jsonl", "l.csv")]
    recipe.write_text("{videos: v, annotations: acme/rows, dataset: hf, out: o, policy: p, caption: {method: none}}")
    assert load_config(PreprocessConfig, recipe, package="taro.preprocess.recipes").annotations == Path("acme/rows")


def test_settings_written_into_a_folder_are_a_recipe_there(recipe: Path, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    config = train(recipe, "out=run")
    written = paths_for(config.model_dump(mode="json"), TrainConfig, config.out)
    assert (written["out"], written["policy"]) == (".", "../../recipes/start")
    config.out.mkdir()
    (config.out / "config.yaml").write_text(yaml.safe_dump(written))
    assert train(config.out / "config.yaml") == config
    moved = tmp_path.rename(tmp_path.with_name(tmp_path.name + "-moved"))
    monkeypatch.chdir(moved)
    again = train("here/run/config.yaml")
    assert (again.out, again.policy, again.sources[0].path) == (Path("here/run"), "recipes/start", "recipes/a")


def test_links_on_the_way_are_followed_as_the_system_follows_them(recipe: Path, tmp_path: Path) -> None:
    """`link/../x` is a sibling of what the link points to, not of the link."""
    far = tmp_path / "far" / "disk"
    far.mkdir(parents=True)
    link = tmp_path / "here" / "link"
    link.symlink_to(far)
    (far / "run.yaml").write_text("{policy: ./start, shards: ../set, out: ../run}")
    config = train(Path("link/run.yaml"))
    assert Path(config.sources[0].path).resolve() == tmp_path / "far/set"
    assert config.out.resolve() == tmp_path / "far/run"
    near = train("sandbox", "shards=set", "out=link/run")
    near.out.mkdir()
    (near.out / "config.yaml").write_text(yaml.safe_dump(
        paths_for(near.model_dump(mode="json"), TrainConfig, near.out)))
    for folder in (near.out, near.out.resolve()):
        assert Path(train(folder / "config.yaml").sources[0].path).resolve() == tmp_path / "here/set"


def test_a_place_is_one_place_however_it_is_spelt(recipe: Path) -> None:
    def real(**places: str) -> dict[str, str]:
        return dict(real_paths({"policy": "sandbox:policy", "shards": "hf://datasets/a/b", **places}, TrainConfig))

    here = str(Path.cwd())
    for spelt in ("set", "./set", "set/", "other/../set", f"{here}/set", f"{here}/../here/set"):
        assert real(shards=spelt, policy=f"./{spelt}" if spelt[0] != "/" else spelt) == {
            "policy": f"{here}/set", "shards": f"{here}/set"}
    assert real() == {"policy": "sandbox:policy", "shards": "hf://datasets/a/b"}
    assert real(policy="acme/model@v1")["policy"] == "acme/model@v1"


def test_the_home_of_nobody_is_a_folder_of_that_name(recipe: Path) -> None:
    config = train("sandbox", "shards=~no-such-user/a", "out=~no-such-user/b", "policy=~no-such-user/c")
    assert (config.shards, config.out) == ("~no-such-user/a", Path("~no-such-user/b"))
    with pytest.raises(ModelError, match="no such model folder"):
        resolve_model(config.policy)
    with pytest.raises(ModelError, match="no such model folder"):
        resolve_model("x" * 5000)


def test_whatever_a_recipe_holds_it_is_left_to_the_model_to_refuse() -> None:
    for data in (None, [], {"shards": 3}, {"shards": [[["a"]]]}, {"data": "x"}, {1: 2}, {"policy": ["p"]}):
        assert paths_from(data, TrainConfig, Path("x")) in (data, {"shards": [[["a"]]]})
