"""How fast this machine was: seconds of each phase in runs that ended here, in one small file in the user's cache.

Rollouts are counted by response tokens, scores and updates by tokens of packed rows. A plan takes the newest entry of
its model's shape and kind of training; without one it takes what was measured on an H100, and says so.
Left out: how speed changes with batch, lengths and settings; an estimate is for planning a day, not a minute."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["mean_response"]

LINES = 50
"""steps of a run, its last ones, over which a response's length is a mean"""
MAX_BYTES = 64 << 20


def mean_response(folder: Path) -> float | None:
    """Mean tokens of a response in the last steps of the run in a folder; None where it holds none."""
    path = folder / "metrics.jsonl"
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        return None
    lengths = list[float]()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[-4 * LINES:]:
        try:
            value = json.loads(line).get("length")
        except (ValueError, AttributeError):
            continue
        lengths += [float(value)] if isinstance(value, int | float) else []
    return sum(lengths[-LINES:]) / len(lengths[-LINES:]) if lengths else None
