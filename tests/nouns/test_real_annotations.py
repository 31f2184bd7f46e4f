"""Real Charades-STA files: the faults that are known to be in them are found, all of them and no other.

They are not part of the project: the folder is named by TARO_REAL_DATA.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from taro.annotations import Dropped, LintReport, Repaired, import_annotations
from taro.metrics import Prediction, evaluate_predictions
from taro.moment import Moment

ROOT = os.environ.get("TARO_REAL_DATA")
pytestmark = pytest.mark.skipif(not ROOT, reason="TARO_REAL_DATA is not set: real annotations are not here")

CLIPPED = "repair: window clipped to the duration"
FAR = "repair: window clipped to the duration, over by more than 1 s"


def read(split: str) -> LintReport:
    folder = Path(ROOT or "") / "annotations"
    lengths = folder / f"Charades_v1_{split}.lengths.csv"
    return import_annotations(
        folder / f"charades_sta_{split}.txt", dataset="charades-sta", split=split, lengths=lengths
    )


def test_charades_train() -> None:
    """1,805 windows end past their video: 1,802 are clipped; 3, reversed ones, start past it too and are dropped, which
    takes two of the 5,338 videos with them."""
    report = read("train")
    counts = report.counts
    assert counts["lines"] == 12_408 == counts["kept"] + counts["repaired"] + counts["dropped"]
    assert len({row.video for row in report.rows}) == 5_338 - 2
    assert counts["repair: window swapped"] == 4
    assert counts["dropped"] == counts["drop: window starts at or past the duration"] == 3
    assert counts[FAR] == 734
    assert counts[CLIPPED] + counts[FAR] + counts["dropped"] == 1_805
    swapped = [
        outcome.line if isinstance(outcome, Dropped) else outcome.row.line
        for outcome in report.outcomes
        if isinstance(outcome, Repaired | Dropped) and "window swapped" in outcome.repairs
    ]
    assert swapped == [8252, 8440, 9623, 9624]
    assert [outcome.line for outcome in report.outcomes if isinstance(outcome, Dropped)] == [8252, 9623, 9624]


def test_charades_test() -> None:
    report = read("test")
    counts = report.counts
    assert (counts["lines"], counts["kept"], counts["dropped"]) == (3_720, 3_720 - 562, 0)
    assert (counts[FAR], counts[CLIPPED]) == (228, 562 - 228)
    assert len({row.video for row in report.rows}) == 1_334


def test_predicting_the_whole_video_on_charades() -> None:
    """Published: 27.1 | 35.0 / 0.2 / 0.0. With the lengths of this csv R1@0.5 is 0.4: 16 queries, all of whose windows
    cover between 50.0 and 50.4 % of their video, so lengths that differ by a frame or two decide it."""
    rows = read("test").rows
    whole = [
        Prediction(row.row_id, row.video, Moment(0.0, row.duration_s or 0.0), row.windows, row.duration_s)
        for row in rows
    ]
    scores = evaluate_predictions(whole)
    percents = [round(100 * value, 1) for value in scores.metrics.values()]
    assert percents == [27.1, 35.0, 0.4, 0.0]
    assert scores.baselines["whole video"] == pytest.approx(scores.metrics)
    covered = [row.windows[0].duration_s / (row.duration_s or 1.0) for row in rows]
    assert len([share for share in covered if share >= 0.5]) == 16 == round(3_720 * scores.r1[0.5])
    assert max(covered) < 0.504
