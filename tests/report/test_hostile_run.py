"""A run folder of somebody else: whatever its files hold, a report is drawn or one message says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from taro.core.errors import ConfigError
from taro.metrics.answers import read_answers
from taro.train.report.data import read_run
from taro.train.report.write import render_report
from taro.train.trackers import truncate_to_step
from tests.report.synthetic import run_folder

ROLLOUT = "rollouts/step-000003.jsonl"
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_folder(tmp_path_factory.mktemp("run") / "run", steps=4, guided=2)


def changed(good: Path, tmp_path: Path, name: str, **fields: Any) -> Path:
    """A copy of the run whose file `name` has `fields` in its first line."""
    run = tmp_path / "run"
    for path in good.rglob("*.*"):
        (run / path.relative_to(good)).parent.mkdir(parents=True, exist_ok=True)
        (run / path.relative_to(good)).write_bytes(path.read_bytes())
    lines = (run / name).read_text().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | fields)
    (run / name).write_text("\n".join(lines) + "\n")
    return run


@pytest.mark.parametrize(("name", "fields"), [
    (ROLLOUT, {"g": "<script>x</script>"}), (ROLLOUT, {"predicted": ["1", None]}), (ROLLOUT, {"windows": [[1]]}),
    (ROLLOUT, {"reward": None}), (ROLLOUT, {"text": 7}), (ROLLOUT, {"guided": "perhaps"}), (ROLLOUT, {"key": [1]}),
    ("metrics.jsonl", {"step": "0"}), ("metrics.jsonl", {"step": True}), ("metrics.jsonl", {"eval": 3}),
], ids=lambda value: str(value)[:40])  # fmt: skip
def test_a_field_of_another_kind_is_named(good: Path, tmp_path: Path, name: str, fields: dict[str, Any]) -> None:
    run = changed(good, tmp_path, name, **fields)
    with pytest.raises(ConfigError, match=name.rpartition("/")[2]):
        render_report(run, {}, [], tmp_path / "report.html")


def test_values_that_no_curve_can_show_are_passed_over(good: Path, tmp_path: Path) -> None:
    run = changed(good, tmp_path, "metrics.jsonl", kl="<evil>", tiou=10**400, grad_norm=[1], phase=["guided"])
    page = render_report(run, {}, [], tmp_path / "report.html").read_text()
    assert "<evil>" not in page and "KL to the start policy" in page  # the other steps have one
    assert read_run(run).steps[0]["phase"] is None and "kl" not in read_run(run).steps[0]


@pytest.mark.parametrize("line", [DEEP, '{"step": ' + "9" * 5000 + "}", '{"a": 1, "a": 2}', "\udcff"],
                         ids=lambda text: text[:20])  # fmt: skip
def test_json_that_breaks_parsers_is_one_message(good: Path, tmp_path: Path, line: str) -> None:
    run = changed(good, tmp_path, "metrics.jsonl")
    (run / "metrics.jsonl").write_bytes(line.encode("utf-8", "surrogateescape") + b"\n{}\n")
    for read in (lambda: read_run(run), lambda: read_answers(run / "metrics.jsonl"), lambda: truncate_to_step(run, 1)):
        with pytest.raises(ConfigError, match=r"metrics\.jsonl:1"):
            read()


def test_a_dump_with_no_number_in_its_name_is_passed_over(good: Path, tmp_path: Path) -> None:
    run = changed(good, tmp_path, "metrics.jsonl")
    (run / "rollouts" / "step-last.jsonl").write_text("{}")
    assert read_run(run).rollout_steps() == [0, 1, 2, 3]
    truncate_to_step(run, 2)
    assert read_run(run).rollout_steps() == [0, 1] and (run / "rollouts" / "step-last.jsonl").exists()
