"""The parsers of a shard set under structure-aware lies: right checksums, wrong content (benchmarks/fuzz.py, in small).

An example is a number that seeds one input of the fuzzer, so that a failure found by hand is a test by its number.
What a parser accepts is checked against the format's promises; the long run is by hand.
"""

from __future__ import annotations

import hashlib
import json
import random
import tarfile
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks import fuzz_mutations as change
from benchmarks.fuzz_shards import shard_targets
from benchmarks.fuzz_targets import Target
from taro.core.errors import ShardError
from taro.core.json import parse_model
from taro.shards.format import (
    BLOCK,
    MAX_JSON_BYTES,
    MAX_MANIFEST_BYTES,
    MEMBERS,
    Manifest,
    Sidecar,
    shard_path,
    split_kind,
)
from taro.shards.format import sidecar_path as sidecar_name
from taro.shards.reader import open_shards
from taro.shards.tar import member_header, read_tar
from taro.shards.tensors import pack_features, unpack_features, unpack_tensors
from taro.shards.variants import pack_variants, unpack_variants
from taro.shards.verify import verify
from tests.shards.helpers_sets import features, record, variants, write_set

NUMBERS = st.integers(0, 2**32)
many = settings(max_examples=150, derandomize=True, deadline=None)
few = settings(max_examples=12, derandomize=True, deadline=None)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return {target.name: target for target in shard_targets(tmp_path_factory.mktemp("seeds"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    write_set(root, [[1, 2]], clip=True)
    return root


def feed(target: Target, number: int, folder: Path) -> None:
    """One input; anything but an answer or a ShardError fails."""
    at = folder / f"{target.name}-{number}"
    at.mkdir(exist_ok=True)
    try:
        target.run(target.make(random.Random(number)), at)
    except ShardError as error:
        assert 0 < len(str(error)) < 20_000


@pytest.mark.parametrize("name", ["tar", "tensors", "record", "sidecar", "manifest", "skipped", "index"])
def test_a_parser_answers_or_refuses(name: str, targets: dict[str, Target], tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp(name)

    @many
    @given(NUMBERS)
    def answers(number: int) -> None:
        feed(targets[name], number, folder)

    answers()


def test_a_set_that_lies_with_right_digests_is_read_or_refused(
    targets: dict[str, Target], tmp_path_factory: Any
) -> None:
    """Opened, iterated, verified, counted, drawn, compared, filtered, split, merged, streamed; what verify calls right
    reads, and what is derived from it is right."""
    folder = tmp_path_factory.mktemp("set")

    @few
    @given(NUMBERS)
    def answers(number: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a newer minor version is a warning
            feed(targets["set"], number, folder)

    answers()


@many
@given(NUMBERS)
def test_what_a_sidecar_may_say(whole: Path, number: int) -> None:
    """Members inside the shard, in order, apart by a header, at block boundaries, of the kind's own sorts."""
    data = change.json_file(random.Random(number), (whole / sidecar_name("paths", 0)).read_bytes())
    try:
        sidecar = parse_model(Sidecar, data, "x", limit_bytes=MAX_MANIFEST_BYTES)
    except ShardError:
        return
    end = 0
    for one in sidecar.records:
        assert {member.ext for member in one.members} <= set(MEMBERS[split_kind(sidecar.kind)[0]])
        needed = MEMBERS[split_kind(sidecar.kind)[0]][-1]
        assert one.members[-1].ext == needed
        for member in one.members:
            assert member.offset >= end + BLOCK and member.offset % BLOCK == 0 and member.size >= 0
            end = member.offset + member.size
    assert end <= sidecar.bytes


@many
@given(NUMBERS)
def test_no_manifest_names_a_file_outside(whole: Path, number: int) -> None:
    data = change.json_file(random.Random(number), (whole / "manifest.json").read_bytes())
    try:
        manifest = parse_model(Manifest, data, "x", limit_bytes=MAX_MANIFEST_BYTES)
    except ShardError:
        return
    for entry in manifest.shards:
        path = (whole / entry.path).resolve()
        assert path.is_relative_to(whole.resolve()) and path.name.endswith(".tar") and len(path.name) < 100


@many
@given(NUMBERS, st.booleans())
@example(4, True)
def test_tensors_are_no_larger_than_their_bytes(number: int, frames: bool) -> None:
    packed = pack_variants(variants(record(1))) if frames else pack_features(features(1, levels=1))
    data = change.tensors(random.Random(number), packed)
    try:
        tensors, _ = unpack_tensors(data, "x")
    except ShardError:
        return
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) <= len(data)


def test_a_paths_record_without_its_json_is_refused(tmp_path: Path) -> None:
    """`taro shards diff` and others count on the JSON of every clip."""
    write_set(tmp_path, [[1]])
    sidecar = json.loads((tmp_path / sidecar_name("paths", 0)).read_text())
    members = sidecar["records"][0]["members"]
    for wrong in (members[:1], members[::-1], [members[1], members[1]], [members[0], members[0]]):
        sidecar["records"][0]["members"] = wrong
        with pytest.raises(ShardError, match=r"record .* is \.json"):
            parse_model(Sidecar, json.dumps(sidecar).encode(), "x", limit_bytes=MAX_MANIFEST_BYTES)


LYING = {
    "tar": lambda: list(read_tar(_Lying(member_header("a.safetensors", 2**32) + b"short"), "x")),
    "header": lambda: unpack_tensors((2**40).to_bytes(8, "little") + b"{}", "x"),
    "shape": lambda: unpack_tensors(_with("a", [2**24] * 3, 2**33), "x"),
    "features": lambda: unpack_features(_with("main", [1, 1, 2**24], 2**26), "x"),
    "variants": lambda: unpack_variants(_with("rows", [2**24, 5], 8), "x"),
    "sidecar": lambda: parse_model(Sidecar, b'{"records":' + b"[" * 10**5, "x", limit_bytes=MAX_MANIFEST_BYTES),
}


class _Lying:
    """A file that gives what it has and says so; `read(n)` allocates no `n`."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, size: int) -> bytes:
        assert size <= 2**24, f"{size:,} bytes asked for at once"
        piece, self.data = self.data[:size], self.data[size:]
        return piece


def _with(name: str, shape: list[int], end: int) -> bytes:
    text = json.dumps({name: {"dtype": "F64", "shape": shape, "data_offsets": [0, end]}}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(64)


@pytest.mark.parametrize("name", LYING)
def test_a_size_that_lies_allocates_nothing(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ShardError):
            LYING[name]()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * 2**20, f"{peak:,} bytes"


def test_a_member_whose_size_lies_in_every_place_allocates_nothing(tmp_path: Path) -> None:
    """Sidecar, manifest and tar header agree that the JSON has more than 64 MiB, and the file has them."""
    write_set(tmp_path, [[1]], clip=False)
    shard = tmp_path / shard_path("paths", 0)
    sidecar = json.loads((tmp_path / sidecar_name("paths", 0)).read_text())
    size = MAX_JSON_BYTES + 1
    with shard.open("r+b") as file:
        member = sidecar["records"][0]["members"][1]
        file.seek(member["offset"] - BLOCK)
        info = tarfile.TarInfo(f"{sidecar['records'][0]['key']}.json")
        info.size, info.mode, info.mtime = size, 0o644, 0
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(member["offset"] + size + 2**20)
    member["size"] = size
    sidecar["bytes"] = shard.stat().st_size
    text = json.dumps(sidecar).encode()
    (tmp_path / sidecar_name("paths", 0)).write_bytes(text)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    entry = next(one for one in manifest["shards"] if one["kind"] == "paths")
    entry |= {"bytes": sidecar["bytes"], "sidecar_sha256": hashlib.sha256(text).hexdigest()}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    tracemalloc.start()
    try:
        with pytest.raises(ShardError, match="at most"):
            open_shards(tmp_path).clip(record(1).key)
        assert any("at most" in problem for problem in verify(tmp_path).problems)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * 2**20, f"{peak:,} bytes"
