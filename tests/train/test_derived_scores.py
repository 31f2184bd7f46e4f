"""The scores of a set, of every set that is made out of it, and of its file of answers are one and the same.

A real set: four videos, one that is missing, one that is no video, windows past and outside of the clips' real ends,
a row that the linter drops; two splits, difficulties, some lengths annotated and some not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from taro.metrics.answers import AnswerRow, read_answers, score_rows
from taro.metrics.scores import Prediction
from taro.models.load import load_policy
from taro.shards.manifest import build_manifest, read_manifest, read_skipped, write_manifest, write_skipped
from taro.shards.ops.filter import Selection, filter_set
from taro.shards.ops.merge import merge_sets
from taro.shards.ops.split import split_by_fraction, split_by_split
from taro.shards.reader import ShardSet, open_shards
from taro.shards.store_local import LocalStore
from taro.train.evaluate import Questions, missing_predictions
from taro.train.keep import validate
from taro.train.open import open_run
from tests.helpers_video import write_video
from tests.train.conftest import Tiny

for library in ("av", "pyarrow"):
    pytest.importorskip(library)


def annotation(qid: str, video: str, window: list[float], split: str, **more: Any) -> dict[str, Any]:
    return {"qid": qid, "video": video, "query": f"ab {qid}", "windows": [window], "split": split, **more}


ROWS = [
    annotation("a", "v0.mp4", [0.5, 2.0], "train", difficulty=1.0), annotation("b", "v0.mp4", [1.0, 99.0], "val"),
    annotation("c", "v1.mp4", [2.0, 30.0], "val", duration=3.6), annotation("d", "v1.mp4", [0.0, 1.0], "train"),
    annotation("e", "v2.mp4", [90.0, 95.0], "val"),  # outside of the real clip: no query, and no miss
    annotation("f", "v2.mp4", [1.0, 3.0], "val", difficulty=3.0), annotation("g", "v3", [2.0, 4.0], "train"),
    annotation("h", "gone.mp4", [2.0, 5.0], "train", duration=9.0), annotation("i", "gone.mp4", [1.0, 2.0], "val"),
    annotation("j", "bad.mp4", [3.0, 8.0], "val", duration=7.0, difficulty=2.0),
    annotation("k", "bad.mp4", [0.0, 1.0], "train"), {**annotation("l", "v0.mp4", [0.0, 1.0], "val"), "query": "  "},
    annotation("m", "v3.mp4", [90.0, 91.0], "val", duration=99.0)]
QUERIES = {"a", "b", "c", "d", "f", "g"}
MISSES = {"h", "i", "j", "k"}
BY_ID = {row["qid"]: row for row in ROWS}


@dataclass(frozen=True)
class World:
    root: Path
    policy: Path
    answers: dict[str, AnswerRow]

    @property
    def whole(self) -> ShardSet:
        return open_shards(self.root / "whole")

    def scores(self, shard_set: ShardSet, split: str | None = None, protocol: str = "taro") -> dict[str, Any]:
        """As `taro eval` and validation score it, with the answers that the policy gave in the whole set."""
        rows = [self.answers[ref.query.id] for ref in Questions(split).of(shard_set)]
        return score_rows(rows, protocol=protocol, missing=missing_predictions(shard_set, split)).as_dict()

    def expected(self, ids: Iterable[str], protocol: str = "taro") -> dict[str, Any]:
        """Scores of the queries named, from the whole set, in any order."""
        names = sorted(ids, reverse=True)
        missed = {one.query_id: one for one in missing_predictions(self.whole, None)}
        return score_rows([self.answers[one] for one in names if one in self.answers], protocol=protocol,
                          missing=[missed[one] for one in names if one in missed]).as_dict()


@pytest.fixture(scope="module")
def world(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> World:
    from taro.preprocess.config import PreprocessConfig
    from taro.preprocess.run import preprocess

    root = tmp_path_factory.mktemp("world")
    (root / "videos").mkdir()
    for number in range(4):
        write_video(root / "videos" / f"v{number}.mp4", 30 + 7 * number, size=(56, 56))
    (root / "videos" / "bad.mp4").write_text("not a video")
    (root / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    preprocess(PreprocessConfig.model_validate({
        "videos": root / "videos", "annotations": root / "annotations.jsonl", "dataset": "jsonl", "out": root / "whole",
        "policy": str(tiny.policy), "caption": {"method": "none"}, "segment": {"method": "uniform"},
        "clip_model": None, "paths": {"count": 0}, "slice_clips": 2, "device": "cpu", "workers": 1,
        "max_skipped": 1.0}))
    command(["eval", "--policy", str(tiny.policy), "--shards", str(root / "whole"), "--out",
             str(root / "answers.jsonl"), "--max-new-tokens", "96", "--device", "cpu"])
    answers = {row.query_id: row for row in read_answers(root / "answers.jsonl")}
    assert set(answers) == QUERIES
    # The policy knows the form and not the moments: some answers are made right, so that the scores are no zeros.
    for name in "acf":
        moment = answers[name].windows[0]
        text = f"<think>\nab\n</think>\n<answer>{moment.start_s:.1f}s to {moment.end_s - 0.2:.1f}s</answer>"
        answers[name] = with_text(answers[name], text)
    return World(root, tiny.policy, answers)


def with_text(row: AnswerRow, text: str, protocol: str = "taro") -> AnswerRow:
    from dataclasses import replace

    from taro.grounding.answers import parse_answer

    return replace(row, text=text, predicted=parse_answer(text, protocol=protocol))


def command(words: list[str]) -> str:
    from typer.testing import CliRunner

    from taro.cli.app import app

    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return result.output


def no_ids(scores: dict[str, Any]) -> dict[str, Any]:
    """Lists of ids apart, which are in the order of the queries."""
    return {name: sorted(value) if name.endswith("_ids") else value for name, value in scores.items()}


def of(rule: Callable[[dict[str, Any]], bool]) -> set[str]:
    return {name for name in QUERIES | MISSES if rule(BY_ID[name])}


SELECTIONS = {
    "split": (Selection(split="val"), of(lambda row: row["split"] == "val")),
    "difficulty": (Selection(difficulty=(1.5, 9.0)), of(lambda row: row.get("difficulty", 0) >= 1.5)),
    "queries": (Selection(queries=frozenset("af")), {"a", "f"}),
    "text": (Selection(text="[bcij]$"), set("bcij")),
    "both": (Selection(split="val", text="[abfhij]$"), set("bfij")),
}  # fmt: skip


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_filtered_set_scores_as_its_queries_in_the_whole_set(world: World, tmp_path: Path, name: str) -> None:
    selection, ids = SELECTIONS[name]
    part = open_shards(filter_set(world.whole, tmp_path / "part", selection).root)
    for protocol in ("taro", "time-r1", "union"):
        assert no_ids(world.scores(part, protocol=protocol)) == no_ids(world.expected(ids, protocol))
    for split in ("train", "val"):
        mine = {one for one in ids if BY_ID[one]["split"] == split}
        if mine & QUERIES:
            assert no_ids(world.scores(part, split)) == no_ids(world.expected(mine))
    one = Selection(queries=frozenset(sorted(ids & QUERIES)[:1]))
    again = open_shards(filter_set(part, tmp_path / "again", one).root)
    assert world.scores(again)["missing"] == 0, "a filter of a filter"


@pytest.mark.parametrize("split", [None, "train", "val"])
def test_a_set_and_its_copy_count_the_misses_of_the_split(world: World, tmp_path: Path, split: str | None) -> None:
    ids = of(lambda row: split in (None, row["split"]))
    shutil.copytree(world.root / "whole", tmp_path / "copy")
    for found in (world.whole, open_shards(tmp_path / "copy")):
        scores = world.scores(found, split)
        assert no_ids(scores) == no_ids(world.expected(ids)) and set(scores["missing_ids"]) == ids & MISSES
        assert scores["baselines"]["whole video"]["miou"] > 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("by", ["split", "fraction"])
def test_the_parts_of_a_split_share_out_every_query_and_miss(world: World, tmp_path: Path, by: str, seed: int) -> None:
    parts = (split_by_split(world.whole, tmp_path / "parts") if by == "split" else
             split_by_fraction(world.whole, tmp_path / "parts", {"a": 0.5, "b": 0.5}, seed=seed))
    asked: list[str] = []
    for made in parts.values():
        part = open_shards(made.root)
        ids = {ref.query.id for ref in part.queries()} | {one.query_id for one in missing_predictions(part, None)}
        assert no_ids(world.scores(part)) == no_ids(world.expected(ids))
        asked += ids
        if by == "split":
            assert {BY_ID[one]["split"] for one in ids} == {made.root.name}
    assert sorted(asked) == sorted(QUERIES | MISSES), "each in one part"
    joined = open_shards(merge_sets([open_shards(one.root) for one in parts.values()], tmp_path / "joined").made.root)
    assert world.scores(joined) == world.scores(world.whole)
    assert read_skipped(joined.store) == read_skipped(world.whole.store)


def test_a_merged_set_scores_as_its_queries_in_the_whole_set(world: World, tmp_path: Path) -> None:
    first = open_shards(filter_set(world.whole, tmp_path / "a", Selection(text="[abcij]$")).root)
    second = open_shards(filter_set(world.whole, tmp_path / "b", Selection(text="[cdjk]$")).root)
    both = open_shards(merge_sets([first, second], tmp_path / "both").made.root)
    assert no_ids(world.scores(both)) == no_ids(world.expected(set("abcdijk")))


def test_what_another_set_holds_is_no_miss_of_the_merged_one(world: World, tmp_path: Path) -> None:
    """One set lacks a video that the other has: a query of it is missed there and answered here."""
    lacks = Path(shutil.copytree(filter_set(world.whole, tmp_path / "most", Selection(text="[acdfgh]$")).root,
                                 tmp_path / "lacks"))
    rows = read_skipped(lacks)
    lost = next(row for row in rows if row["row_id"] == "b")
    lost |= {"stage": "plan", "reason": "missing", "key": "", "video": "videos/v0", "line": 2}
    write_skipped(lacks, rows)
    held = read_manifest(LocalStore(lacks))
    fields = {name: getattr(held, name) for name in type(held).model_fields
              if name not in ("counts", "shards", "skipped_sha256", "format", "format_version")}
    write_manifest(lacks, build_manifest(lacks, inputs=held.counts.inputs, skipped=len(rows), captions=0, **fields))
    assert {one.query_id for one in missing_predictions(open_shards(lacks), None)} == {"b", "h"}
    only = filter_set(world.whole, tmp_path / "only", Selection(text="[bh]$")).root
    both = open_shards(merge_sets([open_shards(lacks), open_shards(only)], tmp_path / "both").made.root)
    assert no_ids(world.scores(both)) == no_ids(world.expected(set("abcdfgh")))


def test_training_validates_with_the_score_of_eval(world: World, tiny: Tiny, tmp_path: Path) -> None:
    part = filter_set(world.whole, tmp_path / "part", Selection(text="[abcdfgij]$")).root
    lines: list[dict[str, Any]] = []
    settings = {"shards": str(part), "validation": {"split": "val", "max_new_tokens": 96, "repetition_penalty": 1.05}}
    run = open_run(tiny.config(tmp_path / "run", curriculum={"schedule": "off"}, **settings), resume=False,
                   on_step=lines.append)
    validate(run)
    run.close()
    printed = json.loads(command(["eval", "--policy", str(tiny.policy), "--shards", str(part), "--split", "val",
                                  "--json", "--max-new-tokens", "96", "--device", "cpu"]))
    found = lines[0]["eval"]
    assert {name: printed[name] for name in found if name != "split"} == {
        name: value for name, value in found.items() if name != "split"} and found["missing"] == 2


@pytest.mark.parametrize("split", [[], ["--split", "val"]])
@pytest.mark.parametrize("protocol", ["taro", "time-r1", "moment-detr", "multi-window"])
def test_a_policy_and_its_file_of_answers_have_one_score(
    world: World, tmp_path: Path, protocol: str, split: list[str]
) -> None:
    """Without lengths in the annotations for most, with names in place of digests, in another order."""
    how = ["--protocol", protocol, "--json", *split]
    asked = json.loads(command(["eval", "--policy", str(world.policy), "--shards", str(world.root / "whole"),
                                "--max-new-tokens", "96", "--device", "cpu", "--out", str(tmp_path / "a.jsonl"), *how]))
    rows = [row for row in ROWS[::-1] if not split or row["split"] == "val"]
    (tmp_path / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = json.loads(command(["eval", "--predictions", str(tmp_path / "a.jsonl"), "--annotations",
                               str(tmp_path / "annotations.jsonl"), *how]))
    same = [name for name in asked if name not in ("decoding", "no_think", "tokens") and not name.endswith("_ids")]
    assert {name: said[name] for name in same} == {name: asked[name] for name in same}
    assert asked["baselines"] and asked["intervals"]["miou"] and said["outside"] == 2
    assert asked["missing"] == (2 if split else 4) and set(said["missing_ids"]) == set(asked["missing_ids"])


def test_answers_made_right_score_alike_too(world: World, tmp_path: Path) -> None:
    """The same over answers that are worth something, in the intervals as well."""
    from taro.metrics.answers import write_answers
    from taro.metrics.predictions import Annotations, evaluate_file
    from taro.train.evaluate import unasked_rows

    write_answers(world.answers.values(), tmp_path / "a.jsonl", unasked=unasked_rows(world.whole, None))
    for protocol in ("taro", "timelens"):
        rows = [with_text(row, row.text, protocol) for row in world.answers.values()]
        told = score_rows(rows, protocol=protocol,
                          missing=missing_predictions(world.whole, None))
        found = evaluate_file(tmp_path / "a.jsonl", Annotations(world.root / "annotations.jsonl", "jsonl"),
                              protocol=protocol).scores
        assert (found.metrics, found.intervals, found.baselines, found.breakdown, found.constant_window) == (
            told.metrics, told.intervals, told.baselines, told.breakdown, told.constant_window)
        assert 0.1 < told.miou < 0.9 and told.intervals["miou"] is not None


def test_rows_of_format_1_0_are_misses_of_the_split_that_the_set_was_made_with(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import pyarrow.parquet as pq

    old = Path(shutil.copytree(world.root / "whole", tmp_path / "old"))
    table = pq.read_table(old / "skipped.parquet")
    pq.write_table(table.select(table.column_names[:8]), old / "skipped.parquet")
    found = open_shards(old)
    assert {one.query_id for one in missing_predictions(found, "train")} == MISSES
    assert "do not say their split" in caplog.text and missing_predictions(found, "val") == []
    assert isinstance(missing_predictions(found, None)[0], Prediction)
    part = open_shards(filter_set(found, tmp_path / "part", Selection(split="val")).root)
    assert missing_predictions(part, None) == []


def test_columns_reach_the_videos_of_an_evaluation(world: World, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("file,sentence,from,to\nv0.mp4,ab a,0.5,2\nv1.mp4,ab d,0,1\n")
    words = ["--annotations", str(tmp_path / "table.csv"), "--dataset", "hf", "--column", "video=file", "--column",
             "query=sentence", "--column", "start=from", "--column", "end=to", "--json"]
    asked = json.loads(command(["eval", "--policy", str(world.policy), "--videos", str(world.root / "videos"), "--out",
                                str(tmp_path / "a.jsonl"), "--max-new-tokens", "96", "--device", "cpu", *words]))
    said = json.loads(command(["eval", "--predictions", str(tmp_path / "a.jsonl"), *words]))
    assert asked["queries"] == 2 and said["miou"] == asked["miou"] and said["intervals"] == asked["intervals"]


def test_scores_do_not_depend_on_the_order_of_the_queries(world: World) -> None:
    """To the last digit, intervals too: sums are exactly rounded."""
    rows = list(world.answers.values())
    missing = missing_predictions(world.whole, None)
    first = no_ids(score_rows(rows, missing=missing).as_dict())
    for turn in range(1, len(rows)):
        turned = score_rows(rows[turn:] + rows[:turn], missing=missing[::-1]).as_dict()
        assert no_ids(turned) == first


def test_the_policy_of_these_tests_answers(world: World) -> None:
    assert load_policy(world.policy) and sum(row.predicted is not None for row in world.answers.values()) >= 3
