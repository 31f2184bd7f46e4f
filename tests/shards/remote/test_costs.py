"""What docs/sharing.md says that sharing costs, counted: requests grow with the shards that move, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.shards.remote.helpers_counts import costs, make_set

pytest.importorskip("obstore")
pytest.importorskip("pyarrow")
pytestmark = [pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # of the client's upload
              pytest.mark.filterwarnings("ignore:hf_xet.*is deprecated:DeprecationWarning")]  # of 1.5's
SLICES = 3
ALL, READ, ADDED = 3 * SLICES, 2 * SLICES, SLICES
"""shards of the set; of paths and one tower; of the other tower"""
MOST = {
    "s3": {
        "first push": {"LIST": 2, "HEAD": 2 * READ + 6, "PUT": 2 * READ + 4},
        "push of one more kind": {"LIST": 2, "GET": 1, "HEAD": 2 * ADDED + 3, "PUT": 2 * ADDED + 2},
        "push again, unchanged": {"LIST": 1, "GET": 1, "HEAD": 2},
        "pull": {"LIST": 1, "HEAD": 1, "GET": 2 * ALL + 3},
        "pull again, unchanged": {"LIST": 1, "HEAD": 1, "GET": 1},
        "open": {"HEAD": 1, "GET": 2},
        "an epoch of training": {"HEAD": READ + 1, "GET": 2 * READ + 1},
        "an epoch, all in the cache": {"HEAD": 1, "GET": 1},
    },
    "http": {
        "pull": {"HEAD": ALL + 2, "GET": 2 * ALL + 3},
        "pull again, unchanged": {"HEAD": ALL + 2, "GET": 1},
        "open": {"HEAD": 1, "GET": 2},
        "an epoch of training": {"HEAD": READ + 1, "GET": 2 * READ + 1},
        "an epoch, all in the cache": {"HEAD": 1, "GET": 1},
    },
    "hub": {
        "first push": {"hub": 2 * READ + 10, "content": READ + 2},
        "push of one more kind": {"hub": 2 * ADDED + 8, "content": ADDED},
        "push again, unchanged": {"hub": 4},
        "pull": {"hub": 3 * ALL + 6, "content": ALL + 2},
        "pull again, unchanged": {"hub": 4},
        "open": {"hub": 5, "content": 1},
        "an epoch of training": {"hub": 3 * READ + 4, "content": READ},
        "an epoch, all in the cache": {"hub": 4},
    },
}
"""the table of docs/sharing.md: requests at most"""


@pytest.mark.parametrize("place", MOST)
def test_requests_are_those_of_the_page(place: str, tmp_path: Path) -> None:
    make_set(tmp_path / "set", SLICES, 1)
    shards = {path.name: path.stat().st_size for path in (tmp_path / "set").rglob("*.tar")}
    found = dict(costs(place, tmp_path))
    assert found["pull"].requests.total() > ALL
    assert [*found] == [*MOST[place]]
    for what, cost in found.items():
        most = MOST[place][what]
        assert all(cost.requests[kind] <= count for kind, count in most.items()), (what, cost)
        assert cost.requests.keys() <= most.keys(), (what, cost)
    size = sum(path.stat().st_size for path in (tmp_path / "set").rglob("*") if path.is_file())
    for what in ("push again, unchanged", "pull again, unchanged", "an epoch, all in the cache"):
        assert what not in found or found[what].bytes < min(shards.values()), "no shard moves"
    assert found["pull"].bytes < 1.1 * size
