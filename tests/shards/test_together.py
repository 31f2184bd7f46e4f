"""Clips that are read several at once, checked once, and not copied: the same samples as one by one and by hand."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import pickle
import signal
import tarfile
import time
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch

from taro.core.errors import ShardError
from taro.models.features import VideoFeatures
from taro.shards import memory
from taro.shards import store as stores
from taro.shards.format import BLOCK, Member, shard_path
from taro.shards.members import Accepted
from taro.shards.memory import LEAST_BYTES, record_memory
from taro.shards.reader import Sample, ShardSet, open_shards
from taro.shards.remote import store as remote_store
from taro.shards.store import Piece, read_piece
from taro.shards.tar import member_header
from taro.shards.tensors import COPIED_BYTES, pack_features, unpack_features
from taro.shards.together import read_samples
from tests.shards.helpers_http import cut, serving
from tests.shards.helpers_sets import FINGERPRINT, add_variants, write_set

KIND = f"features/{FINGERPRINT.name}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set of seven clips in three slices, with frame variants."""
    monkeypatch.setenv("TARO_CACHE", str(tmp_path / "cache"))
    write_set(tmp_path / "set", [[1, 2, 5], [3], [4, 0, 6]])
    add_variants(tmp_path / "set")
    return tmp_path / "set"


def same(one: Sample, other: Sample) -> bool:
    """Whether two samples hold the same."""
    assert one.variants is not None and other.variants is not None
    return (one.ref == other.ref and one.clip == other.clip and one.query == other.query
            and torch.equal(one.features.main_SND, other.features.main_SND)
            and np.array_equal(one.features.times_S, other.features.times_S)
            and torch.equal(one.variants.main_MND, other.variants.main_MND))


def check(shard_set: ShardSet, folder: Path) -> None:
    """All queries, some twice and out of order, against one by one and against the bytes of the shards."""
    shard_set, plain = (one.reading(FINGERPRINT.name, variants=True) for one in (shard_set, open_shards(folder)))
    refs = [*shard_set.queries()]
    asked = [*refs[::3], *refs[::-1], refs[0]]
    found = [*read_samples(shard_set, asked)]
    assert [one.ref.known.id for one in found] == [ref.known.id for ref in asked] and len(found) > len(refs)
    assert all(same(one, plain.sample(ref)) for one, ref in zip(found, asked, strict=True))
    for sample in found:
        with tarfile.open(folder / shard_path(KIND, plain.shard_of(sample.ref.key))) as tar:
            data = tar.extractfile(f"{sample.ref.key}.safetensors")
            assert data is not None
            assert torch.equal(unpack_features(data.read()).main_SND, sample.features.main_SND)


def test_samples_read_together_are_those_read_alone(folder: Path) -> None:
    check(open_shards(folder), folder)
    assert [*read_samples(open_shards(folder), [])] == []


@pytest.mark.parametrize("whole", [2**25, 0])
def test_from_a_server_each_record_is_asked_for_once(folder: Path, whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a connection breaks; neighbours are one request; the next time all of it is in the cache."""
    monkeypatch.setattr(remote_store, "WHOLE_BYTES", whole)
    with serving(folder.parent) as web:
        web.faults = [cut(700, of=shard_path(KIND, 0))]
        check(open_shards(f"{web.url}/set"), folder)
        assert not web.faults and [len(web.fetched(shard_path(KIND, index))) for index in range(3)] == [2, 1, 1]
        asked = len(web.asked)
        check(open_shards(f"{web.url}/set"), folder)
        assert all("manifest" in path for _, path, _ in web.asked[asked:])


def test_nothing_is_kept_with_a_cache_of_0(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TARO_CACHE_GB", "0")
    with serving(folder.parent) as web:
        check(open_shards(f"{web.url}/set"), folder)
    assert not list(folder.parent.glob("cache/shards/??/*"))


def test_what_is_wrong_is_raised_where_it_comes(folder: Path) -> None:
    shard_set = open_shards(folder)
    refs = [*shard_set.queries()]
    bad = refs[len(refs) // 2].key
    place = shard_set.features_place(bad)
    assert place.stop is not None
    with (folder / place.name).open("r+b") as file:
        file.seek(place.stop - 1)
        last = file.read(1)
        file.seek(place.stop - 1)
        file.write(bytes([last[0] ^ 1]))
    found: list[str] = []
    with pytest.raises(ShardError, match=rf"{place.name}: record {bad} at byte {place.start + BLOCK:,}: sha256 of"):
        found.extend(sample.ref.key for sample in read_samples(shard_set, refs))
    assert found == [ref.key for ref in refs[: [ref.key for ref in refs].index(bad)]]


def test_a_digest_is_computed_once_and_again_where_the_file_changed() -> None:
    data = pack_features(VideoFeatures(torch.ones(2, 2, 4), np.array([0.5, 1.5]), (2, 2, 4), 1.0))
    header = member_header("a.safetensors", len(data))
    member = Member(ext="safetensors", offset=BLOCK, size=len(data), sha256=hashlib.sha256(data).hexdigest())
    right, wrong = memoryview(header + data), memoryview(header + data[:-1] + bytes([data[-1] ^ 1]))
    accepted = Accepted()
    for stamp in (None, (1, 2, 3)):
        assert accepted.checked(Piece(right, stamp), "shard", "a", member)[0] == data
        for other in (None, (1, 2, 4)):
            with pytest.raises(ShardError, match=r"sha256 of a\.safetensors is not the sidecar's"):
                accepted.checked(Piece(wrong, other), "shard", "a", member)
    with pytest.raises(ShardError, match="sha256"):
        accepted.checked(Piece(right, None, "0" * 64), "shard", "a", member)
    accepted.checked(Piece(wrong, (1, 2, 3)), "shard", "a", member)  # the same file says that it did not change
    with pytest.raises(ShardError, match="sha256"):
        accepted.checked(Piece(wrong, (1, 2, 3)), "shard", "a", member.model_copy(update={"sha256": "0" * 64}))
    with pytest.raises(ShardError, match="sha256"):
        pickle.loads(pickle.dumps(accepted)).checked(Piece(wrong, (1, 2, 3)), "shard", "a", member)  # noqa: S301


def test_a_file_that_changes_is_never_taken_for_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")

    def read() -> Piece:
        with path.open("rb") as file:
            return read_piece(file, 2, 7)

    assert (bytes(read().data), read().stamp) == (b"23456", None), "it changed just now"
    monkeypatch.setattr(stores, "QUIET_S", 0.05)
    time.sleep(0.1)
    first = read()
    assert first.stamp is not None and read() == first and not first.data.readonly
    facts = path.stat()
    with path.open("r+b") as file:
        file.write(b"01x")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    time.sleep(0.1)
    assert path.stat().st_mtime_ns == facts.st_mtime_ns
    changed = read()
    assert bytes(changed.data) == b"x3456" and changed.stamp not in {None, first.stamp}
    with path.open("rb") as again:
        assert [bytes(read_piece(again, *one).data) for one in ((8, 2**40), (99, 100))] == [b"89", b""]


def test_an_open_set_notices_that_its_shard_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "QUIET_S", 0.05)
    time.sleep(0.1)
    shard_set = open_shards(folder)
    ref = shard_set.queries()[0]
    first, again = shard_set.sample(ref), shard_set.sample(ref)
    assert torch.equal(first.features.main_SND, again.features.main_SND)
    place = shard_set.features_place(ref.key)
    path = folder / place.name
    facts, data = path.stat(), bytearray(path.read_bytes())
    data[(place.stop or 0) - 1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    time.sleep(0.1)
    with pytest.raises(ShardError, match=rf"record {ref.key} at byte .*: sha256"):
        shard_set.sample(ref)


def test_large_tensors_lie_in_the_record_and_small_ones_do_not() -> None:
    made = VideoFeatures(torch.randn(4, 64, 128), np.arange(4) + 0.5, (4, 16, 16), 1.0, (torch.randn(4, 64, 128),))
    assert made.main_SND.nbytes >= COPIED_BYTES
    data = pack_features(made)
    for shift in (0, 1):  # in a record that is not aligned they are copied
        room = bytearray(len(data) + 64)
        view = memoryview(room)[shift : shift + len(data)]
        view[:] = data
        found = unpack_features(view)
        assert torch.equal(found.main_SND, made.main_SND) and np.array_equal(found.times_S, made.times_S)
        assert torch.equal(found.deepstack_LSND[0], made.deepstack_LSND[0])
        view[:] = bytes(len(data))
        assert torch.equal(found.main_SND, made.main_SND) == bool(shift)
        assert np.array_equal(found.times_S, made.times_S)
    kept = unpack_features(data)
    kept.main_SND[:] = 0
    assert torch.equal(unpack_features(data).main_SND, made.main_SND), "bytes that may not be written are copied"


def test_memory_is_used_again_only_when_nothing_lies_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()  # nothing of other tests comes back later
    monkeypatch.setattr(memory, "_idle", deque())
    monkeypatch.setattr(memory, "IDLE_BYTES", 5 * LEAST_BYTES)
    first = record_memory(LEAST_BYTES + 5)
    first[:] = b"a" * len(first)
    tensor = torch.frombuffer(first[10:], dtype=torch.uint8)
    del first
    other = record_memory(LEAST_BYTES + 5)
    other[:] = b"b" * len(other)
    assert not memory._idle and bool((tensor == ord("a")).all())
    at = tensor.data_ptr() - 10
    view = tensor[5:7]
    del tensor
    assert not memory._idle, "a tensor lies there"
    del view
    assert [len(block) for block in memory._idle] == [2 * LEAST_BYTES]
    assert torch.frombuffer(record_memory(LEAST_BYTES // 2), dtype=torch.uint8).data_ptr() != at
    small = record_memory(LEAST_BYTES)
    assert torch.frombuffer(small, dtype=torch.uint8).data_ptr() == at and len(small) == LEAST_BYTES
    many = [record_memory(LEAST_BYTES) for _ in range(9)]
    del many, small, other
    assert sum(len(block) for block in memory._idle) <= 5 * LEAST_BYTES


def test_memory_is_not_shared_with_a_forked_process() -> None:
    mine = record_memory(LEAST_BYTES)
    mine[:4] = b"mine"
    child = os.fork()
    if child == 0:
        mine[:4] = b"its."
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0 and bytes(mine[:4]) == b"mine"


def test_a_range_that_is_said_to_be_long_allocates_little() -> None:
    room = remote_store._Room(2**33)
    room.add(memoryview(b"abc"))
    assert bytes(room.piece().data) == b"abc" and len(room._data) == remote_store.ROOM_BYTES
    grown = remote_store._Room(2**33)
    grown._data = memoryview(bytearray(4))
    for part in (b"abc", b"defgh", b"", b"i" * 20):
        grown.add(memoryview(part))
    assert bytes(grown.piece().data) == b"abcdefgh" + b"i" * 20 and len(grown._data) <= 2 * 28


def test_a_forked_process_reads_on(folder: Path) -> None:
    shard_set = open_shards(folder)
    refs = [*shard_set.queries()]
    wanted = [*read_samples(shard_set, refs)]
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        found = 1
        with contextlib.suppress(Exception):
            again = read_samples(shard_set, refs)
            found = not all(torch.equal(one.features.main_SND, other.features.main_SND)
                            for one, other in zip(again, wanted, strict=True))
        os._exit(found)
    assert os.waitpid(child, 0)[1] == 0
