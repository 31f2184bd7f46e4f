"""Several shard sets in one run: exact shares, sets that hold the same keys kept apart, every query accounted for."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import taro.shards.members as members
from taro.core.config import load_config
from taro.core.errors import ConfigError, ModelError, ShardError
from taro.core.jsonl import read_jsonl
from taro.models.load import load_policy
from taro.train.config import TrainConfig
from taro.train.data import data_lines, sample_name
from taro.train.loop import train
from taro.train.open import open_run
from taro.train.report.data import last_rollouts, read_run, training_groups
from taro.train.report.write import render_report
from tests.helpers_models import tiny_qwen2_5_vl
from tests.train.conftest import Tiny
from tests.train.tiny import WIDTH, tiny_shards

SPEED = ("seconds", "phases", "tokens_per_s_by_phase", "tokens_per_s", "memory_gib")
FEW = ("clip-00", "clip-01")


@pytest.fixture(scope="module")
def few(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second set with two of the first one's training clips, under the same keys, and its validation clips."""
    return tiny_shards(tmp_path_factory.mktemp("few") / "few", load_policy(tiny.policy), only=(0, 1, 6, 7))


def two(tiny: Tiny, few: Path, **second: Any) -> list[dict[str, Any]]:
    return [{"path": str(tiny.shards), "name": "all", "weight": 2}, {"path": str(few), "weight": 1, **second}]


def numbers(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in SPEED} for row in read_jsonl(run / "metrics.jsonl")]


def rollouts(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "rollouts").iterdir()}


def test_one_set_is_the_same_run_however_it_is_written(tiny: Tiny, tmp_path: Path) -> None:
    for name, shards in (("path", str(tiny.shards)),
                         ("list", [{"path": str(tiny.shards), "weight": 7, "name": "mine"}])):
        train(tiny.config(tmp_path / name, shards=shards, length={"amount": 2}))
    assert numbers(tmp_path / "list") == numbers(tmp_path / "path")
    assert rollouts(tmp_path / "list") == rollouts(tmp_path / "path")
    assert "sets" not in numbers(tmp_path / "path")[0] and b'"set"' not in rollouts(tmp_path / "path").popitem()[1]


def test_a_mixed_run_is_exact_apart_and_resumed_by_its_step(tiny: Tiny, few: Path, tmp_path: Path) -> None:
    mixed: dict[str, Any] = {"shards": two(tiny, few), "data": {"draws": 6}, "rollout": {"prompts": 3},
                             "validation": {"split": "val", "every": 2, "max_new_tokens": 48}}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(tiny.config(whole, **mixed, length={"amount": 4}))
    train(tiny.config(parts, **mixed, length={"amount": 2}))
    train(tiny.config(parts, **mixed, length={"amount": 4}), resume=True)
    steps = [row for row in numbers(whole) if "reward" in row]
    # the last evaluation of the first part is done again by nobody: both runs evaluate after steps 2 and 4
    assert numbers(parts) == numbers(whole) and rollouts(parts) == rollouts(whole)
    for row in steps:
        parts_of = row["sets"].values()
        assert sum(one["prompts"] for one in parts_of) == 3
        assert row["reward"] == pytest.approx(sum(one["prompts"] * one["reward"] for one in parts_of) / 3)
    for epoch in (steps[:2], steps[2:]):  # 6 draws, weights 2 and 1
        assert Counter({name: sum(row["sets"].get(name, {"prompts": 0})["prompts"] for row in epoch)
                        for name in ("all", "few")}) == {"all": 4, "few": 2}
    evals = [row["eval"] for row in numbers(whole) if "eval" in row]
    assert [one["queries"] for one in evals] == [4, 4, 4]
    for one in evals:
        assert {name: part["queries"] for name, part in one["sets"].items()} == {"all": 2, "few": 2}
        assert one["miou"] == pytest.approx(sum(part["miou"] for part in one["sets"].values()) / 2)


def test_two_sets_with_the_same_keys_are_never_mixed_up(tiny: Tiny, few: Path, tmp_path: Path) -> None:
    config = tiny.config(tmp_path / "run", shards=two(tiny, few), data={"keys": FEW, "draws": 8},
                         rollout={"prompts": 8}, length={"amount": 1})
    train(config)
    rows = read_jsonl(tmp_path / "run" / "rollouts" / "step-000000.jsonl")
    groups = Counter((row["set"], row["key"], row.get("repeat", 0)) for row in rows)
    # 8 draws: 5 of `all`, 3 of `few`, each with two queries, so that both hold some of them again
    assert set(groups.values()) == {4} and len(groups) == 8
    assert Counter(name for name, _, _ in groups) == {"all": 5, "few": 3}
    free = {group: tuple(row["text"] for row in rows if (row["set"], row["key"], row.get("repeat", 0)) == group)
            for group in groups}
    assert len(set(free.values())) == 8  # no two prompts share their draws
    run = read_run(tmp_path / "run")
    assert sorted(len(group) for group in run.rollouts(0)) == [4] * 8
    for name, root in (("all", tiny.shards), ("few", few)):
        seen = last_rollouts(tmp_path / "run", root)
        assert seen and {row["set"] for group in seen.values() for row in group} == {name}
        assert all(len(group) == 4 for group in seen.values())
    page = render_report(tmp_path / "run", {"all": tiny.shards, "few": few}, [], tmp_path / "report.html").read_text()
    why, _, chosen = training_groups(run)[0]
    assert f"{why}, set {chosen[0]['set']}" in page and 'id="sets"' in page
    assert str(few.parent) not in page  # a page shows no local folders


def test_steps_are_functions_of_their_number_and_ranks_add_up(tiny: Tiny, few: Path, tmp_path: Path) -> None:
    config = tiny.config(tmp_path / "run", shards=two(tiny, few), rollout={"prompts": 4}, data={"draws": 12})
    run = open_run(config, resume=False)
    for step in (5, 0, 4):
        epoch, whole = run.data.samples(step)
        halves = [run.data.samples(step, rank=rank, world=2)[1] for rank in (0, 1)]
        thirds = [run.data.samples(step, rank=rank, world=3)[1] for rank in range(3)]
        for parts in (halves, thirds):
            turns = [parts[at % len(parts)][at // len(parts)] for at in range(len(whole))]
            assert [sample_name(s) for s in turns] == [sample_name(s) for s in whole]
        assert [len(part) for part in thirds] == [2, 1, 1]
        assert epoch == step // 3
    names = [sample_name(sample) for step in range(3) for sample in run.data.samples(step)[1]]
    assert Counter(name[:3] for name in names) == {"all": 8, "few": 4}
    run.close()


def test_every_query_is_accounted_for(tiny: Tiny, few: Path, tmp_path: Path) -> None:
    shards = [*two(tiny, few, split="val", text="^AB$"), {"path": str(few), "name": "checked", "weight": 0}]
    config = tiny.config(tmp_path / "run", shards=shards, data={"queries": ["q1", "q2", "q6"]}, rollout={"prompts": 2},
                         validation={"split": "val", "sets": ["checked"]})
    run = open_run(config, resume=False)
    told = json.loads((tmp_path / "run" / "data.json").read_text())
    run.close()
    by_name = {one["name"]: one for one in told["sets"]}
    assert by_name["all"]["left_out"] == {"split": 2, "queries": 4} and by_name["all"]["kept"] == 2
    assert by_name["few"]["left_out"] == {"split": 2, "queries": 1} and by_name["few"]["kept"] == 1
    for one in told["sets"]:
        assert one["queries"] == one["kept"] + sum(one["left_out"].values())
    assert [one["draws_per_epoch"] for one in told["sets"]] == [2, 1, 0]
    assert [one["validation"] for one in told["sets"]] == [False, False, True]
    assert (told["draws_per_epoch"], told["steps_per_epoch"], told["left_over_per_epoch"]) == (3, 1, 1)
    assert data_lines(told)[-1] == "an epoch: 3 draws, 1 steps of 2, 1 left over"
    assert data_lines(told)[2].endswith("for validation alone")


def test_names_that_no_set_holds_are_told(make_config: Callable[..., TrainConfig], tiny: Tiny, few: Path,
                                          caplog: pytest.LogCaptureFixture) -> None:
    # q2 is in one of the two sets that share the filter, and clip-05 in the set that is asked for it
    shards = [{"path": str(tiny.shards), "name": "all", "keys": ["clip-05", "clip-02", "clip-0\u202e"]},
              {"path": str(few)}]
    run = open_run(make_config(shards=shards, data={"queries": ["q0", "q2", "q5", "q99"]}, rollout={"prompts": 2}),
                   resume=False)
    run.close()
    told = [record.getMessage() for record in caplog.records if "chooses nothing" in record.getMessage()]
    assert len(told) == 2
    assert f"{tiny.shards}, {few}: no query named q99; the filter queries" in told[0]
    assert f"{tiny.shards}: no clip named clip-0[U+202E]; the filter keys" in told[1]


def test_a_run_begins_with_one_pass_over_its_labels(make_config: Callable[..., TrainConfig], tiny: Tiny, few: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Filters, names, validation, digests and the warning of missing captions ask the same queries."""
    parsed: list[str] = []
    real = members.clip_of
    def counted(record: Any, data: bytes, where: str) -> Any:
        parsed.append(where)
        return real(record, data, where)

    monkeypatch.setattr(members, "clip_of", counted)
    run = open_run(make_config(shards=two(tiny, few), rollout={"paths": "online"}, validation={"split": "val"}),
                   resume=False)
    run.close()
    assert parsed and max(map(parsed.count, parsed)) == 1


def test_what_does_not_fit_names_its_set(make_config: Callable[..., TrainConfig], tiny: Tiny, few: Path,
                                         tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"few \(few\): its filters leave none of its 4 queries \(text: 2, split: 2"):
        open_run(make_config(shards=two(tiny, few, text="zebra")), resume=False)
    with pytest.raises(ConfigError, match="of 8 draws an epoch set few gets none"):
        open_run(make_config(shards=two(tiny, few, weight=0.01)), resume=False)
    with pytest.raises(ConfigError, match=r"raise data\.draws"):
        open_run(make_config(shards=two(tiny, few), data={"draws": 1}), resume=False)
    with pytest.raises(ConfigError, match=r"few: no query has the split 'other'"):
        open_run(make_config(shards=two(tiny, few), validation={"split": "other", "sets": ["few"]}), resume=False)
    with pytest.raises(ConfigError, match=r"split 'trian' \(the set has train, val\) has 0 queries, a step takes"):
        open_run(make_config(data={"split": "trian"}), resume=False)
    with pytest.raises(ConfigError, match=r"few .*leave none of its 4 queries \(split: 4 \(the set has train, val\)\)"):
        open_run(make_config(shards=two(tiny, few, split="trian")), resume=False)
    with pytest.raises(ConfigError, match=r"the split 'trian' of validation.split; the set has train, val; name"):
        open_run(make_config(validation={"split": "trian"}), resume=False)
    other = load_policy(tiny_qwen2_5_vl(tmp_path / "other", width=WIDTH, seed=9))
    foreign = tiny_shards(tmp_path / "foreign", other)
    with pytest.raises(ShardError, match=r"foreign: the features were not made by this policy's vision tower(?s:.*)"
                                         rf"--policy {re.escape(str(tiny.policy))}`"):
        open_run(make_config(shards=[str(tiny.shards), str(foreign)]), resume=False)


@pytest.mark.parametrize(("settings", "said"), [
    (["shards=[{path: a}, {path: b/a}]"], "'a' does not name one of several sets"),
    (["shards=[{path: a}, {path: 'b c'}]"], "'b c' does not name one of several"),
    (["shards=[{path: a, weight: 0}]"], "weight 0; expected one at least"),
    (["shards=[]"], "at least 1 item"),
    (["shards=[{path: a, wight: 2}]"], "shards.0.wight: unknown key; did you mean shards.N.weight.$"),
    (["shards=[{path: a, text: '('}]"], "expected a regular expression"),
    (["data.text='*'"], "expected a regular expression"),
    (["data.difficulty=[80, 20]"], r"data.difficulty: expected \[low, high\], low first"),
    (["shards=[{path: a}, {path: b, split: val}]", "validation.split=val"], "split that b is trained on are both"),
    (["shards=[{path: a}, {path: b}]", "validation={split: val, sets: [c]}"], "sets names c; the sets are a, b"),
    (["shards=[{path: a}]", "shards.1.weight=2"], "1 names no item of a list of 1"),
])
def test_settings_that_make_no_sense_are_refused(settings: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(TrainConfig, "sandbox", ["out=run", *settings], package="taro.train.recipes")


def test_sets_are_settings_like_others() -> None:
    config = load_config(TrainConfig, "sandbox", ["out=run",
        "shards=[{path: a, difficulty: [0.2, 0.8]}, b]", "shards.0.weight=3", "data.split=mine"],
        package="taro.train.recipes")
    first, second = config.sources
    assert (first.name, first.weight, first.split, first.difficulty) == ("a", 3.0, "mine", (0.2, 0.8))
    assert (second.name, second.weight, second.split, second.difficulty) == ("b", 1.0, "mine", None)
    again = TrainConfig.model_validate(config.model_dump(mode="json"))
    assert again == config and again.sources == config.sources


def test_a_set_of_another_tower_is_refused_before_weights_are_loaded(
        make_config: Callable[..., TrainConfig], tiny: Tiny, tmp_path: Path) -> None:
    """The policy's language model could not even be loaded: its tensors are gone."""
    policy = Path(shutil.copytree(tiny.policy, tmp_path / "policy"))
    weights = load_file(policy / "model.safetensors")
    tower = {name: tensor + 1 for name, tensor in weights.items() if "visual" in name}
    assert 0 < len(tower) < len(weights)
    save_file(tower, policy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ShardError, match=r"fingerprint|tower"):
        open_run(make_config(policy=str(policy)), resume=False)
    with pytest.raises(ModelError, match="do not fit"):
        load_policy(policy)
