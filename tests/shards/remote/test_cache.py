"""The cache of remote sets: one fetch for all processes, nothing half is taken as whole, the limit, damage."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taro.core.errors import ConfigError, ShardError
from taro.shards.reader import open_shards
from taro.shards.remote import store as remote_store
from taro.shards.remote.cache import Cache, default_cache, range_key, whole_key
from taro.shards.remote.http import HttpBucket
from taro.shards.remote.store import RemoteStore
from taro.shards.store import Expected, Wanted
from tests.shards.helpers_http import Web, answer, serving
from tests.shards.helpers_sets import write_set

NAME, SIZE = "paths/paths-000000.tar", 33 * 2**20
"""larger than what is fetched whole"""
READ = """
import sys
from pathlib import Path
from taro.shards.remote.cache import Cache
from taro.shards.remote.http import HttpBucket
from taro.shards.remote.store import RemoteStore
from taro.shards.store import Expected, Wanted
url, folder, name, size, sha256, whole = sys.argv[1:]
store = RemoteStore(HttpBucket(url), Cache(Path(folder), 10**9))
store.expect({name: Expected(int(size), sha256)})
if whole == "whole":
    print(len(store.open(name).read()))
else:
    store.prefetch([Wanted(name, at * 3_000_000, at * 3_000_000 + 1_000_000) for at in range(10)])
    print(sum(len(store.read_range(name, at * 3_000_000, 1_000_000)) for at in range(10)))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A folder with one large file, and its bytes."""
    folder, content = tmp_path_factory.mktemp("served"), os.urandom(SIZE)
    (folder / "paths").mkdir()
    (folder / NAME).write_bytes(content)
    return folder, content


@pytest.fixture
def web(data: tuple[Path, bytes]) -> Iterator[Web]:
    """A server of it."""
    with serving(data[0]) as served:
        yield served


def opened(web: Web, cache: Cache, content: bytes) -> RemoteStore:
    """A store that expects the file."""
    store = RemoteStore(HttpBucket(web.url, waits_s=(0.01,)), cache)
    store.expect({NAME: Expected(len(content), hashlib.sha256(content).hexdigest())})
    return store


def command(web: Web, cache: Path, content: bytes, what: str) -> list[str]:
    """A process that reads the file, or ten ranges of it."""
    return [sys.executable, "-c", READ, web.url, str(cache), NAME, str(SIZE), hashlib.sha256(content).hexdigest(), what]


def test_ranges_that_lie_close_are_one_request(web: Web, data: tuple[Path, bytes], tmp_path: Path) -> None:
    store = opened(web, Cache(tmp_path, 10**9), data[1])
    wanted = [(100, 5000), (5000, 9000), (200_000, 300_000), (30_000_000, 30_000_100), (100, 5000)]
    store.prefetch([Wanted(NAME, *one) for one in wanted])
    assert sorted(web.fetched(NAME)) == ["bytes=100-299999", "bytes=30000000-30000099"]
    for start, stop in wanted:
        assert store.read_range(NAME, start, stop - start) == data[1][start:stop]
    assert len(web.asked) == 2, "all of it came from the cache"
    assert store.read_range(NAME, SIZE - 5, 100) == data[1][-5:] and store.read_range(NAME, SIZE, 5) == b""


@pytest.mark.parametrize("what", ["whole", "ranges"])
def test_processes_fetch_a_file_once(web: Web, data: tuple[Path, bytes], tmp_path: Path, what: str) -> None:
    running = [subprocess.Popen(command(web, tmp_path, data[1], what), stdout=subprocess.PIPE, text=True)
               for _ in range(2)]
    said = [int(process.communicate(timeout=600)[0]) for process in running]
    assert said == [SIZE if what == "whole" else 10_000_000] * 2
    assert web.sent == said[0], "each byte was sent once"


def test_what_a_killed_process_left_is_not_taken_as_whole(web: Web, data: tuple[Path, bytes], tmp_path: Path) -> None:
    web.rate = 5e6
    process = subprocess.Popen(command(web, tmp_path, data[1], "whole"), stdout=subprocess.PIPE)
    until = time.monotonic() + 120
    while not any(path.stat().st_size for path in tmp_path.glob("??/*/*.part")) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = list(tmp_path.glob("??/*/*"))
    assert [path.name for path in left] == ["whole.part"] and left[0].stat().st_size < SIZE
    web.rate = None
    cache = Cache(tmp_path, 10**9)
    with opened(web, cache, data[1]).open(NAME) as file:
        assert file.read() == data[1]
    assert [path.name for path in tmp_path.glob("??/*/*")] == ["whole"]
    (left[0].parent / "5-9.part").write_bytes(b"left")
    cache.shrink()
    assert [path.name for path in tmp_path.glob("??/*/*")] == ["whole"], "nobody writes it, so it goes"


def test_the_limit_is_kept_and_the_last_used_stay(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)
    for at in range(30):
        key = range_key(f"{at:064x}", 0, 100)
        with cache.filling([key]) as lacking, cache.new(lacking[0]) as file:
            file.write(b"x" * 100)
        os.utime(tmp_path / key, ns=(at, at))
        first = cache.open(range_key(f"{0:064x}", 0, 100))
        assert first is not None, "it is used all the time"
        first.close()
        assert sum(path.stat().st_size for path in tmp_path.glob("??/*/*")) <= 1000
    assert cache.open(range_key(f"{1:064x}", 0, 100)) is None
    assert not cache.takes(501) and cache.takes(500)


def test_nothing_is_kept_with_a_limit_of_0(web: Web, data: tuple[Path, bytes], tmp_path: Path) -> None:
    store = opened(web, Cache(tmp_path / "none", 0), data[1])
    store.prefetch([Wanted(NAME, 0, 100), Wanted(NAME)])
    assert web.asked == []
    assert store.read_range(NAME, 7, 100) == data[1][7:107]
    with store.open(NAME) as file:
        assert (file.seek(-9, 2), file.read()) == (SIZE - 9, data[1][-9:])
        assert (file.seek(5), file.read(10)) == (5, data[1][5:15])
    assert not (tmp_path / "none").exists()


def test_a_damaged_cache_is_fetched_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TARO_CACHE", str(tmp_path / "cache"))
    write_set(tmp_path / "set", [[1, 2], [3]])
    local = open_shards(tmp_path / "set")
    with serving(tmp_path) as web:
        for whole in (2**25, 0):
            monkeypatch.setattr(remote_store, "WHOLE_BYTES", whole)
            for ref in open_shards(f"{web.url}/set").queries():
                open_shards(f"{web.url}/set").sample(ref)
            entries = list((tmp_path / "cache").glob("shards/??/*/*"))
            for path in entries:
                path.write_bytes(bytes(len(path.read_bytes())))
            there = open_shards(f"{web.url}/set")
            for ref in there.queries():
                assert there.sample(ref).clip == local.clip(ref.key)
            assert len(entries) >= 8


def test_a_shard_that_is_wrong_at_the_place_is_said_to_be(web: Web, data: tuple[Path, bytes], tmp_path: Path) -> None:
    store = opened(web, Cache(tmp_path, 10**9), data[1])
    store.expect({NAME: Expected(SIZE, "0" * 64)})
    with pytest.raises(ShardError, match="its sha256 is not the manifest's; the set was replaced"):
        store.open(NAME)
    assert len(web.fetched(NAME)) == 2 and not list(tmp_path.glob("??/*/*"))


def test_a_server_without_ranges_gives_whole_files(data: tuple[Path, bytes], tmp_path: Path) -> None:
    with serving(data[0], ranges=False) as web:
        store = opened(web, Cache(tmp_path, 10**9), data[1])
        assert store.read_range(NAME, 10**6, 100) == data[1][10**6 : 10**6 + 100]
        assert store.read_range(NAME, 10**7, 100) == data[1][10**7 : 10**7 + 100] and len(web.asked) == 2


def test_threads_and_failures_share_locks(web: Web, data: tuple[Path, bytes], tmp_path: Path) -> None:
    """A failure in one fetch leaves no lock behind."""
    store = opened(web, Cache(tmp_path, 10**9), data[1])
    web.faults = [answer(403)] * 2
    failed: list[ShardError] = []

    def read() -> None:
        try:
            assert store.read_range(NAME, 0, 1000) == data[1][:1000]
        except ShardError as error:
            failed.append(error)

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(failed) == 2 and len(web.fetched(NAME)) == 3


def test_the_environment_names_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TARO_CACHE", str(tmp_path))
    monkeypatch.setenv("TARO_CACHE_GB", "1.5")
    assert (default_cache().folder, default_cache().limit_bytes) == (tmp_path / "shards", 1_500_000_000)
    monkeypatch.setenv("TARO_CACHE_GB", "a lot")
    with pytest.raises(ConfigError, match="expected gigabytes"):
        default_cache()
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardError, match="the cache of remote sets cannot be used"), \
            Cache(tmp_path / "file", 10**9).filling([whole_key("0" * 64)]):
        pass


@pytest.mark.parametrize("what", ["link", "pipe", "link as part"])
def test_what_is_no_file_is_neither_read_nor_written(web: Web, data: tuple[Path, bytes], tmp_path: Path,
                                                     what: str) -> None:
    """Whoever else may write into the cache's folder: no link is followed, no pipe is waited for."""
    store = opened(web, Cache(tmp_path / "cache", 10**9), data[1])
    store.read_range(NAME, 100, 50)
    [entry] = (tmp_path / "cache").glob("??/*/*")
    (tmp_path / "mine").write_bytes(b"mine")
    entry.unlink()
    if what == "pipe":
        os.mkfifo(entry)
    else:
        entry.with_name(entry.name + ".part" * (what == "link as part")).symlink_to(tmp_path / "mine")
    assert store.read_range(NAME, 100, 50) == data[1][100:150]
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert entry.is_file() and not entry.is_symlink() and entry.read_bytes() == data[1][100:150]
