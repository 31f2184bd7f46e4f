"""--profile: traces of bounded length, a split that adds up, and the numbers of a run without it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from taro.core.jsonl import read_jsonl
from taro.train.loop import train
from taro.train.tracing import LONGEST, busy_seconds, split_lines
from tests.train.conftest import Tiny

CLOCKS = {"tokens_per_s", "memory_gib", "seconds", "phases", "tokens_per_s_by_phase"}


def test_traces_and_a_split_that_adds_up_and_the_same_numbers(tiny: Tiny, tmp_path: Path) -> None:
    plain, traced = (tiny.config(tmp_path / name, length={"amount": 2}, checkpoint={"every": 2})
                     for name in ("plain", "traced"))
    assert train(plain).profile is None and not (plain.out / "profile").exists()
    heard = []
    report = train(traced, profile=1, on_phase=lambda name, begins: heard.append((name, begins)))
    rows, with_traces = ([{key: value for key, value in row.items() if key not in CLOCKS}
                          for row in read_jsonl(config.out / "metrics.jsonl")] for config in (plain, traced))
    assert rows == with_traces and len(rows) == 2
    assert heard[:4] == [("samples", True), ("samples", False), ("rollouts", True), ("rollouts", False)]
    files = {path.name for path in (traced.out / "profile").glob("*.gz")}
    assert files == {f"step-000001-{phase}.json.gz" for phase in ("rollouts", "scores", "update")}
    with gzip.open(traced.out / "profile" / "step-000001-rollouts.json.gz") as file:
        events = json.load(file)["traceEvents"]
    heads = [event for event in events if event.get("name") == "aten::searchsorted"]  # one a token that is drawn
    assert LONGEST - 2 <= len(heads) <= LONGEST, "the trace ends, though up to 96 tokens are drawn"
    split = json.loads((traced.out / "profile" / "split.json").read_text())
    assert split == report.profile and split["steps"] == 1
    assert {"samples", "rollouts", "scores", "update", "between"} <= set(split["phases"])
    assert sum(one["share"] for one in split["phases"].values()) == pytest.approx(1)
    assert sum(one["seconds"] for one in split["phases"].values()) == pytest.approx(split["seconds"])
    lines = read_jsonl(traced.out / "metrics.jsonl")[1:]
    for name in ("rollouts", "update"):
        one = split["phases"][name]
        assert 0 < one["seconds"] <= sum(line["phases"][name] for line in lines) and one["gpu_busy"] is None
        assert one["tokens_per_s"] * one["seconds"] == pytest.approx(
            sum(line["tokens_per_s_by_phase"][name] * line["phases"][name] for line in lines))
    assert any("mm" in top["name"] for top in split["phases"]["update"]["top"])
    said = split_lines(split)
    assert said[1].split() == ["phase", "seconds", "share", "tokens/s"] and max(map(len, said[:7])) <= 80
    assert any(line.startswith("rollouts ") and line.count("%") == 1 for line in said)


def test_a_run_of_one_step_is_traced_without_a_warm_up(tiny: Tiny, tmp_path: Path) -> None:
    report = train(tiny.config(tmp_path / "run", length={"amount": 1}, curriculum={"schedule": "off"},
                               rollout={"prompts": 1, "group": 2, "max_new_tokens": 24}), profile=5)
    assert report.profile is not None and report.profile["steps"] == 1


def test_busy_time_counts_overlaps_once_and_gaps_never() -> None:
    assert busy_seconds([]) == 0
    assert busy_seconds([(5e6, 6e6), (0, 2e6), (1e6, 1.5e6), (1e6, 3e6)]) == 4
