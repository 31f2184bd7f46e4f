"""Untrusted shards: whatever is changed, the only thing that comes out is a ShardError or the right answer."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from taro.core.errors import ShardError
from taro.core.json import MAX_DEPTH, canonical_json, parse_json, parse_model
from taro.grounding.moment import Moment
from taro.grounding.records import ClipRecord
from taro.shards.format import (
    BLOCK,
    MANIFEST,
    MAX_HEADER_BYTES,
    Manifest,
    Sidecar,
    clip_key,
    key_ok,
    shard_path,
)
from taro.shards.format import sidecar_path as sidecar_name
from taro.shards.manifest import read_skipped
from taro.shards.reader import ShardSet, open_shards
from taro.shards.stream import stream
from taro.shards.tar import TarMember, read_tar
from taro.shards.tensors import pack_features, pack_tensors, unpack_features, unpack_tensors
from taro.shards.verify import verify
from tests.shards.helpers_sets import CLIP_NAME, FINGERPRINT, features, record, write_set, write_tar

FEATURES = f"features/{FINGERPRINT.name}"
PACKED = pack_features(features(1, levels=1))
HEADER_END = 8 + int.from_bytes(PACKED[:8], "little")
quiet = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def read_all(shard_set: ShardSet) -> None:
    for ref in shard_set.queries():
        shard_set.sample(ref)
        shard_set.thumbnail(ref.key)
        shard_set.clip_features(ref.key)


def or_shard_error(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except ShardError as error:
        return error


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    write_set(root, [[1, 2]], clip=True)
    return root


def names(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.*") if path.suffix in {".tar", ".json"})


@quiet
@given(data=st.data())
def test_a_changed_byte_anywhere_is_noticed(whole: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(names(whole)))
    original = (whole / name).read_bytes()
    at, bit = data.draw(st.integers(0, len(original) - 1)), data.draw(st.integers(0, 7))
    changed = bytearray(original)
    changed[at] ^= 1 << bit
    try:
        (whole / name).write_bytes(changed)
        read = or_shard_error(lambda: read_all(open_shards(whole)))
        assert read is None or isinstance(read, ShardError)
        report = verify(whole)
        # The manifest has no digest of its own: a changed name or licence in it is still a valid manifest.
        assert report.problems or name == MANIFEST
        or_shard_error(lambda: list(stream(whole)))
    finally:
        (whole / name).write_bytes(original)


@quiet
@given(data=st.data())
def test_a_shard_cut_or_grown_anywhere_is_noticed(whole: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([name for name in names(whole) if name.endswith(".tar")]))
    original = (whole / name).read_bytes()
    cut = data.draw(st.integers(0, len(original) + 600).filter(lambda size: size != len(original)))
    try:
        (whole / name).write_bytes((original + bytes(600))[:cut])
        with pytest.raises(ShardError, match=r"truncated or replaced"):
            open_shards(whole)
        with pytest.raises(ShardError), (whole / name).open("rb") as file:
            list(read_tar(file, name))
        assert any(name in problem for problem in verify(whole).problems)
    finally:
        (whole / name).write_bytes(original)


def test_a_flipped_byte_is_named_with_shard_key_and_offset(tmp_path: Path) -> None:
    write_set(tmp_path, [[1]], clip=True)
    shard = tmp_path / shard_path(FEATURES, 0)
    data = bytearray(shard.read_bytes())
    data[BLOCK + 400] ^= 1
    shard.write_bytes(data)
    key = record(1).key
    with pytest.raises(ShardError) as error:
        open_shards(tmp_path).features(key)
    assert all(part in str(error.value) for part in (str(shard), key, "byte 512", "sha256"))
    assert len(verify(tmp_path).problems) >= 2


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no such folder"):
        open_shards(tmp_path / "nowhere")
    with pytest.raises(ShardError, match="has not finished"):
        open_shards(tmp_path)
    write_set(tmp_path, [[1]], clip=True)
    (tmp_path / sidecar_name("paths", 0)).unlink()
    with pytest.raises(ShardError, match=r"paths-000000\.json: missing"):
        open_shards(tmp_path)
    assert any("paths-000000.json: missing" in problem for problem in verify(tmp_path).problems)


def test_counts_of_the_manifest_are_held_against_the_records(tmp_path: Path) -> None:
    write_set(tmp_path, [[1]], clip=True)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    manifest["counts"] |= {"captions": 7, "skipped": 0, "inputs": 2}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    assert len(verify(tmp_path).problems) == 2
    manifest["counts"]["inputs"] = 9
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match="9 inputs are not 2 queries"):
        open_shards(tmp_path)


@pytest.mark.parametrize(("version", "outcome"), [("2.0", "refused"), ("1.9", "warned"), ("", "refused")])
def test_versions(tmp_path: Path, version: str, outcome: str) -> None:
    write_set(tmp_path, [[1]], clip=True)
    manifest = json.loads((tmp_path / MANIFEST).read_text()) | {"format_version": version, "new_in_1_9": 1}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    if outcome == "warned":
        with pytest.warns(UserWarning, match=r"newer than 1\.2"):
            assert open_shards(tmp_path).keys
    else:
        with pytest.raises(ShardError, match="format version"):
            open_shards(tmp_path)


@pytest.mark.parametrize("kind", ["../paths", "features/..", "/etc", "features/a/b", "paths/", ""])
def test_a_manifest_cannot_name_a_file_outside(tmp_path: Path, kind: str) -> None:
    write_set(tmp_path, [[1]], clip=True)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    manifest["shards"][0]["kind"] = kind
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match="not one of the format's"):
        open_shards(tmp_path)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_symbolic_links_are_refused(tmp_path: Path, what: str) -> None:
    write_set(tmp_path / "set", [[1]], clip=True)
    path = tmp_path / "set" / (shard_path("paths", 0) if what == "file" else "paths")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ShardError, match="symbolic link"):
        open_shards(tmp_path / "set")


def tar_bytes(*infos: tarfile.TarInfo, style: int = tarfile.USTAR_FORMAT) -> io.BytesIO:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=style) as tar:
        for info in infos:
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return io.BytesIO(file.getvalue())


def info(name: str, **changes: Any) -> tarfile.TarInfo:
    one = tarfile.TarInfo(name)
    for attribute, value in ({"size": 3, "mode": 0o644} | changes).items():
        setattr(one, attribute, value)
    return one


@pytest.mark.parametrize("hostile", [
    info("../a.json"), info("/etc/passwd"), info("a.pkl"), info("a.b.json"), info("a/b.json"),
    info("a.json", mode=0o755), info("a.json", mtime=5), info("a.json", uid=7),
    info("a.json", type=tarfile.SYMTYPE, linkname="/etc/passwd", size=0),
    info("a.json", type=tarfile.DIRTYPE, size=0), info("a.json", type=tarfile.FIFOTYPE, size=0),
    info("a.json", uname="root"), info("x" * 120 + ".json"),
], ids=lambda one: f"{one.name[:12]}-{one.mode:o}-{one.type.decode()}")  # fmt: skip
def test_a_member_that_we_would_not_write_is_refused(hostile: tarfile.TarInfo) -> None:
    for style in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT):
        assert [member.name for member, _ in read_tar(tar_bytes(info("a.json"), style=style), "x")] == ["a.json"]
    with pytest.raises(ShardError):
        list(read_tar(tar_bytes(hostile, style=tarfile.PAX_FORMAT), "x"))


def test_a_member_twice_or_out_of_order_is_refused() -> None:
    for pair in (("a.json", "a.json"), ("b.json", "a.json")):
        with pytest.raises(ShardError, match="ascend"):
            list(read_tar(tar_bytes(info(pair[0]), info(pair[1])), "x"))


def test_a_header_that_announces_gigabytes_allocates_none() -> None:
    from taro.shards.tar import member_header

    with pytest.raises(ShardError, match="ends after 5"):
        list(read_tar(io.BytesIO(member_header("a.safetensors", 2**32) + b"short"), "x"))


@given(st.lists(st.tuples(st.from_regex(r"[A-Za-z0-9_-]{1,12}\.(jpg|json)", fullmatch=True), st.binary(max_size=1500)),
                max_size=5, unique_by=lambda pair: pair[0]))  # fmt: skip
@example([("0.jpg", b"a"), ("0-.jpg", b"b")])  # names in another order than their keys
@settings(max_examples=50)
def test_any_members_come_back_from_their_offsets(members: list[tuple[str, bytes]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        digest = write_tar(path, members)
        data = path.read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest and len(data) % 10240 == 0
        found: list[tuple[TarMember, bytes]] = list(read_tar(io.BytesIO(data), "x"))
        assert {member.name: value for member, value in found} == dict(members)
        assert all(data[member.offset : member.offset + member.size] == value for member, value in found)


@settings(max_examples=300)
@given(at=st.integers(0, HEADER_END - 1), byte=st.integers(0, 255))
def test_a_changed_safetensors_header_is_noticed_or_harmless(at: int, byte: int) -> None:
    data = bytearray(PACKED)
    data[at] = byte
    read = or_shard_error(lambda: unpack_features(bytes(data)))
    assert isinstance(read, ShardError) or read.main_SND.shape == (4, 4, 6)


@settings(max_examples=100)
@given(st.binary(max_size=300))
def test_random_bytes_are_no_tensors(data: bytes) -> None:
    assert isinstance(or_shard_error(lambda: unpack_tensors(data, "x")), ShardError)
    assert isinstance(or_shard_error(lambda: unpack_tensors(len(data).to_bytes(8, "little") + data, "x")), ShardError)


def with_header(header: object, room: int = 64) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(room)


def tensor(dtype: object = "F32", shape: object = (4, 4), offsets: object = (0, 64)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("header", [
    [], {"a": 1}, {"a": {"dtype": "F32"}}, {"a": tensor("I32", (16,))}, {"a": tensor("F8_E4M3", (64,))},
    {"a": tensor(shape=(2**62, 2**62), offsets=(0, 0))}, {"a": tensor(shape=(-4, -4))}, {"a": tensor(shape=(0, 4))},
    {"a": tensor(shape=(1, 1, 1, 4, 4))}, {"a": tensor(shape=("4", 4))}, {"a": tensor(shape=(True, 16))},
    {"a": tensor(shape=(4.0, 4))}, {"a": tensor(offsets=(64, 0))}, {"a": tensor(offsets=(-64, 0))},
    {"a": tensor(offsets=(0, 64, 64))}, {"a": tensor(offsets=(8, 72))}, {"a": tensor(), "b": tensor()},
    {"a": tensor(shape=(2, 4), offsets=(0, 32))}, {"a": tensor(["F32"])}, {"a": tensor(), "__metadata__": {"x": 1}},
    {"a": tensor(), "__metadata__": []}, {str(i): tensor() for i in range(70)}, b"[" * 50_000, b'{"a":' * 20_000,
    b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff\xfe", b'{"a": ' + b"9" * 5000 + b"}", b" " * (MAX_HEADER_BYTES + 1),
], ids=lambda header: str(header)[:60])  # fmt: skip
def test_headers_that_lie_are_refused(header: object) -> None:
    with pytest.raises(ShardError):
        unpack_tensors(with_header(header), "x")


@pytest.mark.parametrize("change", [
    {"main": torch.zeros(4, 4)}, {"main": torch.zeros(3, 4, 6)}, {"main": torch.zeros(4, 5, 6)},
    {"times_s": torch.full((4,), float("nan"), dtype=torch.float64)}, {"times_s": torch.zeros(4)},
    {"main": torch.zeros(4, 4, 6, dtype=torch.float64)}, {"deepstack.1": torch.zeros(4, 4, 6)},
    {"deepstack.0": torch.zeros(4, 4, 7)}, {"other": torch.zeros(1)},
], ids=lambda change: f"{next(iter(change))}-{tuple(next(iter(change.values())).shape)}")  # fmt: skip
def test_tensors_that_are_no_features_are_refused(change: dict[str, torch.Tensor]) -> None:
    good = {"main": torch.zeros(4, 4, 6), "times_s": torch.zeros(4, dtype=torch.float64)}
    metadata = {"grid_thw": "4,4,4", "seconds_per_patch": "1.0"}
    assert unpack_features(pack_tensors(good, metadata)).grid_thw == (4, 4, 4)
    with pytest.raises(ShardError):
        unpack_features(pack_tensors(good | change, metadata))


@pytest.mark.parametrize("metadata", [
    {}, {"grid_thw": "4,4", "seconds_per_patch": "1"}, {"grid_thw": "4,4,4", "seconds_per_patch": "nan"},
    {"grid_thw": "4,4,-4", "seconds_per_patch": "1"}, {"grid_thw": "5,4,4", "seconds_per_patch": "1"},
    {"grid_thw": "4,4," + "9" * 5000, "seconds_per_patch": "1"}, {"grid_thw": "4,4,4", "seconds_per_patch": "-1"},
], ids=str)  # fmt: skip
def test_metadata_that_lies_is_refused(metadata: dict[str, str]) -> None:
    good = {"main": torch.zeros(4, 4, 6), "times_s": torch.zeros(4, dtype=torch.float64)}
    with pytest.raises(ShardError, match="grid_thw"):
        unpack_features(pack_tensors(good, metadata))


def test_json_is_bounded_without_being_slow() -> None:
    deepest = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert parse_json(b'{"text": "' + b"[" * 1000 + b'"}', "x", limit_bytes=2000)
    parse_json(deepest, "x", limit_bytes=2000)
    for hostile in (b"[" + deepest + b"]", b'"' * 300_001, b'"\\' * 300_000, b'{"a":' * 300_000):
        with pytest.raises(ShardError):
            parse_json(hostile, "x", limit_bytes=2_000_000)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
                        ["format", "format_version", "shards", "counts", "encoders", "kind"]), inner, max_size=4)))
@settings(max_examples=100)  # fmt: skip
def test_any_json_is_a_manifest_or_a_shard_error(tree: object) -> None:
    read = or_shard_error(lambda: parse_model(Manifest, json.dumps(tree).encode(), "x", limit_bytes=10**6))
    assert isinstance(read, Manifest | ShardError)


def test_untrusted_text_cannot_reach_the_terminal() -> None:
    bad = record(1).model_dump(mode="json") | {"a\x1b[2J\u202e": 1}
    with pytest.raises(ShardError) as error:
        parse_model(ClipRecord, json.dumps(bad).encode(), "x", limit_bytes=10**6)
    assert str(error.value).isascii() and str(error.value).isprintable()


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(tmp_path / "exploded"), "w"))

    bomb = pickle.dumps({"main": Bomb()})
    write_set(tmp_path, [[1]], clip=True)
    for kind, ext in ((FEATURES, "safetensors"), (f"clip/{CLIP_NAME}", "safetensors"), ("paths", "json")):
        write_tar(tmp_path / shard_path(kind, 0), [(f"{record(1).key}.{ext}", bomb)])
    assert verify(tmp_path).problems and isinstance(or_shard_error(lambda: read_all(open_shards(tmp_path))), ShardError)
    assert isinstance(or_shard_error(lambda: unpack_features(bomb)), ShardError)
    assert not (tmp_path / "exploded").exists()


moments = st.none() | st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)).map(lambda ends: Moment(*ends))


@given(st.text(max_size=300), moments)
def test_any_video_name_has_a_key(video: str, clip: Moment | None) -> None:
    assert key_ok(clip_key(video, clip))


def test_names_that_look_alike_have_keys_of_their_own() -> None:
    videos = ["a.mp4", "a.mkv", "x/a.mp4", "a", "\u00e4.mp4", "\u00f6.mp4", "A.mp4"]
    clips = [None, Moment(0, 1), Moment(0, 1.5), Moment(1, 11), Moment(11, 1)]
    keys = [clip_key(video, clip) for video in videos for clip in clips]
    assert len(set(keys)) == len(keys)


@settings(max_examples=200)
@given(model=st.sampled_from(["clip", "sidecar", "manifest"]), data=st.data())
def test_changed_json_is_valid_or_a_shard_error(whole: Path, model: str, data: st.DataObject) -> None:
    kinds: dict[str, tuple[type[Any], bytes]] = {
        "clip": (ClipRecord, canonical_json(record(1))), "manifest": (Manifest, (whole / MANIFEST).read_bytes()),
        "sidecar": (Sidecar, (whole / sidecar_name("paths", 0)).read_bytes())}  # fmt: skip
    kind, original = kinds[model]
    at, length = data.draw(st.integers(0, len(original) - 1)), data.draw(st.integers(0, 3))
    inserted = data.draw(st.sampled_from([b"", b"-", b"9", b"1e999", b"null", b"[", b"}", b'"', b"\\ud800", b"\x00"]))
    changed = original[:at] + inserted + original[at + length :]
    read = or_shard_error(lambda: parse_model(kind, changed, "x", limit_bytes=10**6))
    assert isinstance(read, kind | ShardError)
    if isinstance(read, kind):
        assert parse_model(kind, canonical_json(read), "x", limit_bytes=10**6) == read


def test_a_table_of_skipped_rows_that_is_none_is_said(tmp_path: Path) -> None:
    write_set(tmp_path, [[1]])
    for data in (b"", b"PAR1nothingPAR1", b"{}"):
        (tmp_path / "skipped.parquet").write_bytes(data)
        with pytest.raises(ShardError, match="not a readable parquet"):
            read_skipped(tmp_path)
        assert any("skipped.parquet" in problem for problem in verify(tmp_path).problems)
