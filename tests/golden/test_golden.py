"""The golden jobs give what was recorded: shards byte for byte, metrics, rollouts and weights bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.golden.jobs import FAMILIES, RECORD, STEPS, differences, versions

EARLY_STEPS, TOLERANCE = 2, 1e-3
"""Elsewhere than where the record was made (another processor or library) the last bit differs, and a run parts from
its record within steps: there the first steps are compared, within this."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("golden") / "found.json"
    subprocess.run([sys.executable, "-m", "tests.golden", "--out", str(out)], check=True, capture_output=True)
    return json.loads(out.read_text())


def test_the_golden_jobs_give_what_was_recorded(found: dict[str, Any]) -> None:
    recorded = json.loads(RECORD.read_text())
    if recorded["versions"] == versions():
        changed = differences(found, recorded)
        assert not changed, "\n".join([f"{len(changed)} places differ from tests/golden/golden.json", *changed[:20]])
        return
    assert sorted(found["shards"]) == sorted(recorded["shards"])
    for family in FAMILIES:
        rows, wanted = (data["runs"][family]["metrics"] for data in (found, recorded))
        for row, other in zip(rows[:EARLY_STEPS], wanted[:EARLY_STEPS], strict=True):
            for name in ("reward", "loss", "grad_norm", "drop_mean", "length"):
                assert row.get(name) == pytest.approx(other.get(name), rel=TOLERANCE, abs=TOLERANCE), (family, name)


def test_the_golden_run_covers_what_it_is_for(found: dict[str, Any]) -> None:
    """A record of a run in which nothing happens would hold nothing still."""
    for run in found["runs"].values():
        steps = [row for row in run["metrics"] if "eval" not in row]
        assert [row["step"] for row in steps] == list(range(STEPS))
        assert {row["phase"] for row in steps} == {"guided", "free"}
        assert sum("eval" in row for row in run["metrics"]) == 4
        assert any(row["kl"] > 0 for row in steps) and any(row["zero_variance"] < 1 for row in steps)
        assert all(abs(row["drop_mean"]) > 1e-4 for row in steps) and len(run["rollouts"]) == STEPS
    assert any(row.get("bonus", 0) > 0 for run in found["runs"].values() for row in run["metrics"])
    assert any(name.startswith("variants/") for name in found["shards"])
