"""Requests and bytes of pushing, pulling, opening and training from a set, at S3, a web server and a hub on loopback.

    python benchmarks/costs.py --slices 10 --clips 4            # shards that come whole, of up to 32 MiB
    python benchmarks/costs.py --slices 10 --clips 4 --ranges   # as of larger shards: records come as ranges

A set of S slices has 4 S shard files with the features of one tower (paths and features, each with its sidecar), and
6 S with two. The servers count; bytes are of bodies, of a hub those of large files."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from taro.shards.remote import store
from tests.shards.remote.helpers_counts import PLACES, costs, make_set


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=10)
    parser.add_argument("--clips", type=int, default=4, help="of each slice")
    parser.add_argument("--ranges", action="store_true", help="no shard comes whole")
    asked = parser.parse_args()
    logging.getLogger("taro").setLevel(logging.ERROR)
    for place in PLACES:
        with tempfile.TemporaryDirectory() as folder, patch.object(
                store, "WHOLE_BYTES", 0 if asked.ranges else store.WHOLE_BYTES):
            root = make_set(Path(folder) / "set", asked.slices, asked.clips)
            files = [path for path in root.rglob("*") if path.is_file()]
            print(f"{place}: {asked.slices} slices of {asked.clips} clips, {len(files)} files, "
                  f"{sum(path.stat().st_size for path in files):,} bytes")
            for what, cost in costs(place, Path(folder)):
                kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(cost.requests.items()))
                print(f"  {what}: {kinds or 'no request'}; {cost.bytes:,} bytes", flush=True)


if __name__ == "__main__":
    main()
