"""Transfers killed at random moments: a few of what benchmarks/kill_transfers.py does by the dozen."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.kill_transfers import campaign


@pytest.mark.slow
def test_killed_transfers_leave_no_half_set_and_go_on(tmp_path: Path) -> None:
    left = campaign(3, tmp_path, ways=("push s3", "pull http", "push folder"), slices=6, sheet_bytes=500_000)
    assert sum(left.values()) == 6
