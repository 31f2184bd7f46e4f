"""The contract of a store, checked on the local folder and on a second implementation that keeps files in memory; and
that a set gives the same from both, whatever is done with it."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from taro.core.errors import ShardError
from taro.shards.format import MANIFEST, SKIPPED, shard_path, sidecar_path
from taro.shards.manifest import read_skipped
from taro.shards.ops.diff import diff
from taro.shards.ops.filter import Selection, filter_set
from taro.shards.ops.merge import merge_sets
from taro.shards.ops.split import split_by_split
from taro.shards.ops.stats import stats
from taro.shards.places import STORES, local_folder, open_store
from taro.shards.reader import open_shards
from taro.shards.store import MissingFileError, Store, Uncached, check_name
from taro.shards.store_local import LocalStore
from taro.shards.stream import stream
from taro.shards.verify import verify
from tests.shards.helpers_sets import FINGERPRINT, add_variants, record, write_set


class MemoryStore(Uncached):
    """Files as bytes under their names; shares no code with `LocalStore`."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.files: dict[str, bytes] = {}

    def describe(self, name: str) -> str:
        return f"{self.place}/{name}"

    def size(self, name: str) -> int:
        return len(self._file(name))

    def read(self, name: str, *, limit_bytes: int) -> bytes:
        data = self._file(name)
        if len(data) > limit_bytes:
            raise ShardError(f"{self.describe(name)}: {len(data):,} bytes, at most {limit_bytes:,} are read")
        return data

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        return self._file(name)[offset : offset + size]

    def open(self, name: str) -> BinaryIO:
        return io.BytesIO(self._file(name))

    def list(self) -> Sequence[str]:
        return sorted(self.files)

    def put_if_absent(self, name: str, data: BinaryIO) -> bool:
        check_name(self.place, name)
        if name in self.files:
            return False
        self.files[name] = data.read()
        return True

    def _file(self, name: str) -> bytes:
        check_name(self.place, name)
        if name not in self.files:
            raise MissingFileError(f"{self.describe(name)}: missing")
        return self.files[name]


def copied(source: Store, to: Store) -> None:
    """Every file of one store put into another."""
    for name in source.list():
        with source.open(name) as data:
            assert to.put_if_absent(name, data)


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The places of one set, in a folder and in memory: the second kind of place is one row of the table."""
    write_set(tmp_path / "set", [[1, 2], [3]], clip=True)
    add_variants(tmp_path / "set")
    memory = MemoryStore("memory://set")
    copied(LocalStore(tmp_path / "set"), memory)
    monkeypatch.setitem(STORES, "memory", lambda place: {"memory://set": memory}[place])
    return str(tmp_path / "set"), "memory://set"


def make_folder(folder: Path) -> Store:
    return LocalStore(folder)


def make_memory(folder: Path) -> Store:
    return MemoryStore(f"memory://{folder.name}")


@pytest.mark.parametrize("make", [make_folder, make_memory])
def test_a_store_keeps_its_contract(tmp_path: Path, make: Callable[[Path], Store]) -> None:
    store = make(tmp_path)
    name, other = shard_path("paths", 0), sidecar_path("features/x", 12)
    assert list(store.list()) == [] and isinstance(store.place, str) and store.describe(name).endswith(name)
    data = io.BytesIO(b"..0123456789")
    data.seek(2)
    assert store.put_if_absent(name, data) and store.put_if_absent(other, io.BytesIO(b"{}"))
    assert not store.put_if_absent(name, io.BytesIO(b"another"))
    assert list(store.list()) == [other, name] and store.size(name) == 10
    assert store.read(name, limit_bytes=10) == b"0123456789"
    assert [store.read_range(name, *where) for where in ((0, 3), (8, 5), (10, 5), (99, 5), (2, 0))] == [
        b"012", b"89", b"", b"", b""]
    with pytest.raises(ShardError, match="at most 9 are read"):
        store.read(name, limit_bytes=9)
    for read in (store.size, store.open, lambda name: store.read(name, limit_bytes=9),
                 lambda name: store.read_range(name, 0, 1)):
        with pytest.raises(MissingFileError, match=MANIFEST):
            read(MANIFEST)
        for wrong in ("../secret", "/etc/passwd", "paths/../manifest.json", "paths/x.tar", ""):
            with pytest.raises(ShardError, match="is not a file of a shard set"):
                read(wrong)
    with pytest.raises(ShardError, match="is not a file of a shard set"):
        store.put_if_absent("../secret", io.BytesIO(b""))
    with store.open(name) as file:
        assert (file.read(4), file.seek(-2, io.SEEK_END), file.read(9), file.seek(1), file.read(1)) == (
            b"0123", 8, b"89", 1, b"1")
    again = pickle.loads(pickle.dumps(store))  # noqa: S301
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda at: again.read_range(name, at, 1), range(10))) == [b"%d" % at for at in range(10)]


def test_a_put_that_fails_leaves_nothing(tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise ShardError("the source broke off")

    store = LocalStore(tmp_path)
    with pytest.raises(ShardError, match="broke off"):
        store.put_if_absent(shard_path("paths", 0), Broken())
    assert list(store.list()) == []
    (tmp_path / "features").write_text("a file where a folder should be")
    with pytest.raises(ShardError, match="cannot be written"):
        store.put_if_absent(shard_path("features/x", 0), io.BytesIO(b""))
    (tmp_path / "clip").symlink_to(tmp_path / "paths")
    with pytest.raises(ShardError, match="symbolic link"):
        store.put_if_absent(shard_path("clip/x", 0), io.BytesIO(b""))


def test_a_set_reads_alike_from_everywhere(both: tuple[str, str]) -> None:
    local, memory = (open_shards(place) for place in both)
    assert (local.place, memory.place) == both
    assert repr(memory) == f"ShardSet('memory://set': 3 clips, 6 queries, features of {FINGERPRINT.name})"
    travelled = pickle.loads(pickle.dumps(memory.reading(FINGERPRINT.name, variants=True)))  # noqa: S301
    for ref in local.queries():
        one = local.reading(FINGERPRINT.name, variants=True).sample(ref)
        other = travelled.sample(ref)
        assert one.clip == other.clip == memory.clip(ref.key) and one.query == other.query
        assert torch.equal(one.features.main_SND, other.features.main_SND)
        assert one.variants is not None and other.variants is not None
        assert torch.equal(one.variants.main_MND, other.variants.main_MND)
        assert local.thumbnail(ref.key) == memory.thumbnail(ref.key)
        assert torch.equal(local.clip_features(ref.key), memory.clip_features(ref.key))
    assert stats(local) == stats(memory) and read_skipped(both[0]) == read_skipped(both[1]) != []
    assert diff(local, memory).lines() == ["3 clips are the same in both; nothing differs"]
    streamed = [[(one["__key__"], one["clip"], one["jpg"], one["features"].main_SND.sum()) for one in stream(place)]
                for place in both]
    assert streamed[0] == streamed[1] and len(streamed[0]) == 3


def test_parts_of_a_set_in_memory_are_the_same_to_the_byte(both: tuple[str, str], tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    made, sources = [], [open_shards(place) for place in both]
    monkeypatch.delitem(STORES, "memory")  # an open set is read through its store, its place is not asked again
    for number, source in enumerate(sources):
        out = tmp_path / f"from-{number}"
        filter_set(source, out / "filtered", Selection(keys=frozenset({record(1).key, record(3).key})))
        split_by_split(source, out / "split")
        merge_sets([open_shards(out / "split" / "train"), source], out / "merged")
        made.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert made[0] == made[1] and len(made[0]) > 30


def test_what_is_wrong_is_found_alike_everywhere(both: tuple[str, str]) -> None:
    folder, memory = Path(both[0]), open_store(both[1])
    assert isinstance(memory, MemoryStore)

    def found() -> list[str]:
        reports = [verify(place) for place in both]
        problems = [[text.replace(report.root, "SET") for text in report.problems] for report in reports]
        assert problems[0] == problems[1] and [report.root for report in reports] == list(both)
        return problems[0]

    def put(name: str, data: bytes) -> None:
        (folder / name).write_bytes(data)
        memory.files[name] = data

    assert found() == []
    whole = memory.files[shard_path("paths", 0)]
    put(shard_path("paths", 0), whole[:1024] + b"x" + whole[1025:])
    assert any("sha256 is not the manifest's" in text for text in found())
    put(shard_path("paths", 0), whole[:-512])
    assert any("damaged" in text or "truncated" in text for text in found())
    put(shard_path("paths", 0), whole)
    put(shard_path("paths", 7), whole)
    assert found() == [f"SET/{shard_path('paths', 7)}: not in the manifest; remove it, or run `taro preprocess` again"]
    put(SKIPPED, b"no parquet")
    assert any(text.startswith(f"SET/{SKIPPED}: its sha256") for text in found())


def test_places_are_folders_or_urls(both: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path(both[0]).parent))
    assert open_shards("~/set").place == both[0] and local_folder(both[1]) is None
    assert local_folder("~nobody-of-this-name/set") == Path("~nobody-of-this-name/set")
    store = open_store(both[1])
    assert open_store(store) is store and open_shards(store).keys == open_shards(both[0]).keys
    with pytest.raises(ShardError, match=r"^ftp://\.\.\.: no place that .* begins with http://, https://, s3://"):
        open_shards("ftp://user:password@host/set")
    with pytest.raises(ShardError, match="no such folder"):
        open_shards("memory:/set")
