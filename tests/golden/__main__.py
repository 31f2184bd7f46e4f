"""Runs the golden jobs in a process of their own, with the environment that their record was made in; see jobs.py."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from tests.golden.jobs import PINNED, RECORD, differences, run_jobs


def main() -> int:
    """`--record` writes the record, `--out FILE` what was found; neither compares."""
    if any(os.environ.get(name) != value for name, value in PINNED.items()):
        os.execve(sys.executable, [sys.executable, "-m", "tests.golden", *sys.argv[1:]], {**os.environ, **PINNED})
    record, out = "--record" in sys.argv, sys.argv[sys.argv.index("--out") + 1] if "--out" in sys.argv else None
    target = None if out is None else Path(out).absolute()
    with tempfile.TemporaryDirectory() as folder:
        found = json.loads(json.dumps(run_jobs(Path(folder))))
    if record or target is not None:
        (RECORD if target is None else target).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        return 0
    changed = differences(found, json.loads(RECORD.read_text()))
    print("\n".join(changed[:40]) or "equal")
    return int(bool(changed))


if __name__ == "__main__":
    sys.exit(main())
