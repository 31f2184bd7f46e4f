"""What `verify` lists is bounded, however much a manifest says that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from taro.shards.format import MANIFEST, ShardEntry
from taro.shards.manifest import read_manifest
from taro.shards.store_local import LocalStore
from taro.shards.verify import MAX_PROBLEMS, verify
from tests.shards.helpers_sets import write_set


@pytest.mark.parametrize("kinds", [3, 60])
def test_kinds_that_lack_slices_are_not_all_told_one_by_one(tmp_path: Path, kinds: int) -> None:
    """Each kind lists one shard, of a slice of its own, so that it lacks all others: kinds x slices is a square."""
    write_set(tmp_path, [[1]], skipped=0)
    held = read_manifest(LocalStore(tmp_path))
    more = [ShardEntry(kind=f"features/x{number:03}", index=number + 1, bytes=0, records=0, queries=0, sha256="0" * 64,
                       sidecar_sha256="0" * 64) for number in range(kinds)]
    shards = sorted([*held.shards, *more], key=lambda one: (one.kind, one.index))
    manifest = held.model_copy(update={"shards": shards})
    (tmp_path / MANIFEST).write_text(manifest.model_dump_json())
    found = verify(tmp_path).problems
    lacking = [problem for problem in found if " has no " in problem]
    cut = [problem for problem in found if "more kinds lack shards or records than are listed here" in problem]
    if kinds == 3:
        assert not cut and len(lacking) == 2 * 3 + 3 * 3  # the set's two kinds lack 3 slices, each new one 3 of 4
    else:
        assert len(cut) == 1 and len(lacking) <= MAX_PROBLEMS and len(found) <= MAX_PROBLEMS + 10
    assert len(found) > len(lacking), "what else is wrong is listed too"
