"""Pushes to a hub on loopback, killed with SIGKILL at random requests and bytes; each is pushed again.

    python benchmarks/kill_hub.py --kills 25 --seed 0

Between kill and second push the main branch holds the old set, the new one, or none that has a manifest; after it the
new one, and no file that had arrived was sent twice. The client is real, the hub is `tests/shards/helpers_hub*.py`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.shards.helpers_hub_kill import kill_once
from tests.shards.helpers_hub_server import serving


def main() -> None:
    """Prints a line for each kill, and how many recovered."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    asked, killed, seed = parser.parse_args(), 0, 0
    with tempfile.TemporaryDirectory() as folder, serving() as hub:
        while killed < asked.kills:
            where = kill_once(hub, Path(folder), 1000 * asked.seed + seed)
            seed, killed = seed + 1, killed + where.endswith("killed")
            print(where, flush=True)
    print(f"{killed} of {asked.kills} killed pushes recovered; {seed - killed} had finished before")


if __name__ == "__main__":
    main()
