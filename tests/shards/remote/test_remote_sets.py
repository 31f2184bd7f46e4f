"""A set gives the same from a folder, a web server and two makes of S3, in as few requests as are needed."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from taro.core.errors import ShardError
from taro.shards.manifest import read_skipped
from taro.shards.ops.diff import diff
from taro.shards.ops.filter import Selection, filter_set
from taro.shards.ops.stats import stats
from taro.shards.reader import open_shards
from taro.shards.remote.objects import ObjectBucket
from taro.shards.verify import verify
from tests.shards.helpers_http import serving
from tests.shards.helpers_sets import FINGERPRINT, add_variants, record, write_set
from tests.shards.remote.helpers_remote import moto_s3, rclone_s3


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test alone."""
    monkeypatch.setenv("TARO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def local(tmp_path: Path) -> str:
    """A set of three clips in two slices."""
    write_set(tmp_path / "set", [[1, 2], [3]], clip=True)
    add_variants(tmp_path / "set")
    return str(tmp_path / "set")


@contextlib.contextmanager
def placed(local: str, kind: str, tmp_path: Path) -> Iterator[str]:
    """The URL of a copy of the set at a place of that kind."""
    with contextlib.ExitStack() as stack:
        if kind == "http":
            yield stack.enter_context(serving(tmp_path)).url + "/set"
            return
        server = moto_s3() if kind == "moto" else rclone_s3(tmp_path / "rclone")
        url = stack.enter_context(server) + "/team/set"
        bucket = ObjectBucket(url)
        for path in sorted(Path(local).rglob("*")):
            if path.is_file():
                assert bucket.put(path.relative_to(local).as_posix(), path, absent=True)
                assert not bucket.put(path.relative_to(local).as_posix(), path, absent=True)
        yield url


@pytest.mark.parametrize("kind", ["http", "moto", "rclone"])
def test_a_set_reads_alike_from_everywhere(local: str, kind: str, tmp_path: Path) -> None:
    here = open_shards(local)
    with placed(local, kind, tmp_path) as url:
        there = open_shards(url)
        assert there.place == url and there.keys == here.keys
        travelled = pickle.loads(pickle.dumps(there.reading(FINGERPRINT.name, variants=True)))  # noqa: S301
        for ref in here.queries():
            one, other = here.reading(FINGERPRINT.name, variants=True).sample(ref), travelled.sample(ref)
            assert one.clip == other.clip and one.query == other.query
            assert torch.equal(one.features.main_SND, other.features.main_SND)
            assert one.variants is not None and other.variants is not None
            assert torch.equal(one.variants.main_MND, other.variants.main_MND)
            assert here.thumbnail(ref.key) == there.thumbnail(ref.key)
            assert here.features_shape(ref.key) == there.features_shape(ref.key)
        assert stats(here) == stats(there) and read_skipped(local) == read_skipped(url) != []
        assert diff(here, there).lines() == ["3 clips are the same in both; nothing differs"]
        report, of_here = verify(url), verify(local)
        assert report.ok and (report.bytes, report.records) == (of_here.bytes, of_here.records)
        made = []
        for number, source in enumerate((here, there)):
            out = tmp_path / f"from-{number}"
            filter_set(source, out, Selection(keys=frozenset({record(1).key, record(3).key})))
            made.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()})
        assert made[0] == made[1] and len(made[0]) > 8
        with pytest.raises(ShardError, match="no manifest"):
            open_shards(f"{url}-of-another")


def test_verify_reads_what_lies_there_and_not_the_cache(local: str, cache: Path, tmp_path: Path) -> None:
    with serving(tmp_path) as web:
        assert verify(f"{web.url}/set").ok and list(cache.iterdir()) == [], "what was fetched is gone"
        read = open_shards(f"{web.url}/set")
        for ref in read.queries():
            read.sample(ref)
        shard = tmp_path / "set" / "paths" / "paths-000001.tar"
        shard.write_bytes(shard.read_bytes()[:-2000] + bytes(1999) + b"x")
        assert read.sample(read.queries()[0]) and not verify(local).ok
        (problem, *_) = verify(f"{web.url}/set").problems
        assert "paths-000001.tar: its sha256 is not the manifest's" in problem


def test_a_set_is_read_in_few_requests(local: str, tmp_path: Path) -> None:
    """Each small file is fetched once, and nothing but the manifest when the set is opened again."""
    with serving(tmp_path) as web:
        for attempt in range(2):
            there = open_shards(f"{web.url}/set")
            refs = there.queries()
            there.prefetch(refs)
            for ref in refs:
                there.sample(ref)
            again = ["/set/manifest.json"] * (attempt + 1)
            assert [path for method, path, _ in web.asked if method == "GET" and "manifest" in path] == again
            others = [path for method, path, _ in web.asked if method == "GET" and "manifest" not in path]
            assert len(others) == len(set(others)) == 8 + 4, "8 sidecars, 2 shards of paths and 2 of features"
