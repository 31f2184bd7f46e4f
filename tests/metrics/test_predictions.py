"""Predictions files against annotations: the annotations are the denominator, and wrong files are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taro.cli.app import main
from taro.core.errors import AnnotationError, ConfigError
from taro.grounding.moment import Moment
from taro.metrics.examples import Example, choose
from taro.metrics.predictions import Annotations, FileEvaluation, compare_files, evaluate_file
from taro.metrics.scores import PROTOCOLS, Prediction, evaluate_predictions
from taro.pages.answers import answers_page
from taro.pages.render import write_page

RESPONSE = "<think>From 0.0s to 5.0s, here</think><answer>{}</answer>"


def written(path: Path, *rows: Any) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def evaluated(folder: Path, *rows: Any, split: str | None = None, **knobs: Any) -> FileEvaluation:
    annotations = written(
        folder / "a.jsonl",
        {"qid": "a", "video": "v", "query": "One.", "windows": [[0, 5]], "duration": 10, "split": "val"},
        {"qid": 2, "video": "v", "query": "two", "windows": [[0, 5]], "duration": 10, "split": "val"},
        {"qid": "c", "video": "w", "query": "three", "windows": [[0, 5]], "duration": 10, "split": "test"},
        {"qid": "d", "video": "w", "query": "", "windows": [[0, 5]], "duration": 10},
    )
    return evaluate_file(written(folder / "p.jsonl", *rows), Annotations(annotations, "jsonl", split), **knobs)


def test_all_ways_to_answer(tmp_path: Path) -> None:
    result = evaluated(
        tmp_path,
        {"video": "v", "query": " One", "text": RESPONSE.format("0.00s to 5.00s")},
        "",
        {"qid": 2, "predicted": [0, 10]},
        {"query_id": "c", "predicted": None, "reasoning": "at 3.0s"},
        {"query_id": "x", "predicted": [0, 10]},
    )
    assert result.scores.miou == pytest.approx((1 + 0.5 + 0) / 3)
    assert result.scores.unparsable == ("c",) and result.scores.missing == () and result.unknown == ("x",)
    assert result.scores.timestamps == pytest.approx(2 / 3)
    assert "1 predictions answer no query of these annotations: x" in result.table()
    assert "4 lines, 3 kept, 0 repaired, 1 dropped" in result.table()
    assert json.loads(json.dumps(result.as_dict()))["annotations"]["dropped"] == 1


def test_what_is_not_answered_stays_in_the_denominator(tmp_path: Path) -> None:
    scores = evaluated(tmp_path, {"qid": "a", "predicted": [0, 5]}).scores
    assert scores.miou == pytest.approx(1 / 3) and scores.missing == ("2", "c")


def test_a_split_limits_the_denominator(tmp_path: Path) -> None:
    assert evaluated(tmp_path, {"qid": "a", "predicted": [0, 5]}, split="val").scores.miou == 0.5
    with pytest.raises(AnnotationError, match="expected queries of split dev"):
        evaluated(tmp_path, {"qid": "a", "predicted": [0, 5]}, split="dev")


def test_the_protocol_reads_the_text(tmp_path: Path) -> None:
    row = {"qid": "a", "text": RESPONSE.format("0.0 and 5.0"), "predicted": [9, 10]}
    assert evaluated(tmp_path, row, split="val").scores.unparsable == ("a",)
    assert evaluated(tmp_path, row, split="val", protocol="time-r1").scores.miou == 0.5


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"qid": "a", "predicted": [0, 5]}, {"query_id": "a", "predicted": [1, 5]}], "line 2: answers id a again"),
        (["{"], "line 1: expected a JSON object"),
        (["[" * 100_000], "line 1: expected a JSON object"),
        (["7"], "expected a JSON object, got a int"),
        ([{"predicted": [0, 5]}], 'expected "query_id"'),
        ([{"qid": "a"}], 'expected "text"'),
        ([{"qid": "a", "predicted": [0]}], "in seconds, or null"),
        ([{"qid": "a", "predicted": ["0", "5"]}], "in seconds, or null"),
        ([{"qid": "a", "predicted": [0, 10**400]}], "in seconds, or null"),
        ([{"qid": "z", "predicted": [0, 5]}], "expected ids such as a, got z"),
    ],
)
def test_a_wrong_file_is_one_message(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(AnnotationError, match=message.replace("[", r"\[")):
        evaluated(tmp_path, *rows)


def test_an_unknown_protocol_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected one of"):
        evaluated(tmp_path, {"qid": "a", "predicted": [0, 5]}, protocol="best")


@pytest.mark.parametrize(
    ("protocol", "miou"), [("taro", 1.0), ("time-r1", 0.8), ("taro-official", 0.8), ("timelens", 0.8), ("union", 0.8)]
)
def test_ground_truth_is_clipped_by_taro_alone(tmp_path: Path, protocol: str, miou: float) -> None:
    """The window [0, 10] of an 8 s video, answered by [0, 8]."""
    row = {"qid": "a", "video": "v", "query": "q", "windows": [[0, 10]], "duration": 8}
    annotations = written(tmp_path / "b.jsonl", row)
    answers = written(tmp_path / "p.jsonl", {"qid": "a", "predicted": [0, 8]})
    scores = evaluate_file(answers, Annotations(annotations, "jsonl"), protocol=protocol).scores
    assert scores.miou == pytest.approx(miou) == pytest.approx(scores.baselines["whole video"]["miou"])


def test_both_denominators_are_printed(tmp_path: Path) -> None:
    """The published evaluation leaves unanswered queries out: one of two right answers is 100 % there, 50 % here."""
    table = evaluated(tmp_path, {"qid": "a", "predicted": [0, 5]}, split="val", protocol="taro-official").table()
    assert [line.split()[-1] for line in table.splitlines() if line.startswith(("prediction", "answered only"))] == [
        "50.0", "100.0"
    ]  # fmt: skip


def test_the_command_compares_and_breaks_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated(tmp_path, {"qid": "a", "predicted": [0, 5]})
    other = written(tmp_path / "q.jsonl", {"qid": "a", "predicted": [0, 10]}, {"qid": "c", "predicted": [0, 5]})
    words = ["eval", "--predictions", str(tmp_path / "p.jsonl"), "--annotations", str(tmp_path / "a.jsonl")]
    for more, shown in [(["--compare", str(other)], "IoU higher with B in 1, equal in 1, lower in 1 queries"),
                        (["--breakdown", "--html", str(tmp_path / "new" / "x.html")], "short (0, 10] s")]:  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main([*words, *more])
        assert (ended.value.code or 0) == 0 and shown in capsys.readouterr().out
    assert "Answers under taro" in (tmp_path / "new" / "x.html").read_text(encoding="utf-8")
    for more in (["--policy", "x"], ["--limit", "2"], ["--both"], ["--compare", str(other), "--breakdown"],
                 ["--compare", str(other), "--html", str(tmp_path / "y.html")]):  # fmt: skip
        with pytest.raises(SystemExit) as ended:  # nothing that was asked for is left out in silence
            main([*words, *more])
        assert ended.value.code == 2 and "leave" in capsys.readouterr().err and not (tmp_path / "y.html").exists()


def test_a_comparison_says_what_each_file_left_unanswered(tmp_path: Path) -> None:
    """Three queries: A answers one and has a response without a moment, B answers one and a query that there is not."""
    evaluated(tmp_path, {"qid": "a", "predicted": [0, 5]}, {"qid": "c", "text": "no idea"})
    other = written(tmp_path / "q.jsonl", {"qid": "a", "predicted": [0, 10]}, {"qid": "zz", "predicted": [0, 5]})
    found = compare_files(tmp_path / "p.jsonl", other, Annotations(tmp_path / "a.jsonl", "jsonl"))
    assert (found.missing, found.unparsable, found.unknown) == ((1, 2), (1, 0), (0, 1))
    assert found.table().splitlines()[-2:] == [
        "missing 1 in A, 2 in B; unparsable 1 in A, 0 in B (counted as misses)",
        "predictions that answer no query of these annotations: 0 in A, 1 in B",
    ]
    assert found.as_dict()["missing"] == [1, 2]


def test_dropped_lines_as_misses(tmp_path: Path) -> None:
    """Four annotations, one of them without a query: two of three right, or two of four."""
    rows = [{"qid": "a", "predicted": [0, 5]}, {"qid": 2, "predicted": [0, 5]}]
    found = evaluated(tmp_path, *rows)
    assert found.scores.miou == pytest.approx(2 / 3) and found.with_dropped is not None
    assert found.with_dropped["miou"] == pytest.approx(2 / 4) and "as misses: miou 50.0, r1@0.3 50.0" in found.table()
    assert evaluated(tmp_path, *rows, split="val").with_dropped is None


def test_annotations_of_any_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("video,sentence,start,end,duration,qid\nv,a dog,0,5,10,a\n")
    answers = written(tmp_path / "p.jsonl", {"qid": "a", "predicted": [0, 10]})
    with pytest.raises(SystemExit) as ended:
        main(["eval", "--predictions", str(answers), "--annotations", str(tmp_path / "a.csv"), "--dataset", "hf",
              "--column", "query=sentence", "--json"])  # fmt: skip
    assert (ended.value.code or 0) == 0 and json.loads(capsys.readouterr().out)["miou"] == 0.5


def examples(count: int) -> list[Example]:
    """IoU i / 10 for the answer of query i."""
    return [
        Example(Prediction(f"q{i}", "v", Moment(0, i), (Moment(0, 10),), 20.0), f"query {i}", "<think>x</think>")
        for i in range(count)
    ]


def test_worst_best_and_random_are_apart() -> None:
    chosen = choose(examples(10), protocol="taro", each=3)
    names = {name: [example.query for example in found] for name, found in chosen.items()}
    assert names["worst"] == ["query 0", "query 1", "query 2"] and names["best"] == ["query 9", "query 8", "query 7"]
    assert len(names["at random"]) == 3 and len({query for found in names.values() for query in found}) == 9
    assert [len(found) for found in choose(examples(3), protocol="taro", each=5).values()] == [1, 1, 1]
    assert choose(examples(10), protocol="taro", each=3) == chosen
    assert choose(examples(10), protocol="taro", each=3, seed=1) != chosen


def test_the_page_is_safe_and_whole(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>" + chr(0x202E)
    prediction = Prediction(hostile, hostile, Moment(9, float("inf")), (Moment(0, 5),), None)
    silent = Prediction("m", "v", None, (), 0.0, missing=True)
    examples = [Example(prediction, hostile, hostile), Example(silent, "q")]
    text = answers_page(examples, scores=evaluate_predictions([prediction, silent]), table=hostile, each=1)
    assert "<script" not in text and chr(0x202E) not in text and "no answer" in text and "[U+202E]" in text
    write_page(tmp_path / "a" / "b.html", text)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.html"]
    with pytest.raises(ConfigError, match="cannot be written"):
        write_page(tmp_path / "a", text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from("text predicted reasoning video query pred_relevant_windows pred_saliency_scores".split())


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=5), st.sampled_from(sorted(PROTOCOLS)))
def test_whatever_a_line_holds_it_is_scored_or_named(tmp_path: Path, row: dict[str, Any], protocol: str) -> None:
    try:
        found = evaluated(tmp_path, {"qid": "a"} | row, protocol=protocol)
    except AnnotationError as error:
        assert "line 1" in str(error)
    else:
        assert 0 <= found.scores.miou <= 1 and json.dumps(found.as_dict()) and found.table()
        answers_page(found.examples, scores=found.scores, protocol=protocol)


def test_a_predictions_file_that_is_none_is_called_so(tmp_path: Path) -> None:
    evaluated(tmp_path)
    for path, found in ((tmp_path / "absent", "none"), (tmp_path, "a folder")):
        with pytest.raises(AnnotationError, match=f"expected a predictions file, found {found}"):
            evaluate_file(path, Annotations(tmp_path / "a.jsonl", "jsonl"))


def test_a_page_shows_which_windows_count() -> None:
    """A protocol of the first window names the others apart; one of the best window shows all as truth."""
    two = Prediction("q", "v", Moment(10, 20), (Moment(0, 5), Moment(10, 20)), 30.0)
    pages = {name: answers_page([Example(two, "q")], scores=evaluate_predictions([two], protocol=name), protocol=name,
                                each=1) for name in ("taro", "timelens")}
    assert "not counted" not in pages["taro"] and "IoU 1.00" in pages["taro"]
    assert "not counted" in pages["timelens"] and "IoU 0.00" in pages["timelens"]
