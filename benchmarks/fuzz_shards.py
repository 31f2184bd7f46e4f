"""What of a shard set is fuzzed: each file alone, and whole sets that lie consistently.

A whole set is changed in one place, then tars, sidecars and manifest are written anew with right digests and offsets,
so that the lie is found by what reads the content, not by a checksum. On every set everything runs: open, iterate,
verify, stats, sample, view, diff, filter, split, merge, stream, card. What `verify` calls right must then read, and
what is derived from it must be right as well.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import fuzz_mutations as change
from benchmarks.fuzz_index import index_input, read_index
from benchmarks.fuzz_targets import Files, Target
from taro.core.errors import TaroError
from taro.core.json import canonical_json, parse_json, parse_model
from taro.grounding.records import ClipRecord
from taro.shards.card import card_text
from taro.shards.format import (
    INDEX,
    MANIFEST,
    MAX_ELEMENTS,
    MAX_JSON_BYTES,
    MAX_KINDS,
    MAX_MANIFEST_BYTES,
    SKIPPED,
    Manifest,
    Sidecar,
    check_version,
)
from taro.shards.index_build import add_index
from taro.shards.manifest import read_skipped
from taro.shards.ops.diff import diff
from taro.shards.ops.filter import Selection, filter_set
from taro.shards.ops.merge import merge_sets
from taro.shards.ops.split import split_by_fraction, split_by_split
from taro.shards.ops.stats import sample, stats
from taro.shards.reader import ShardSet, open_shards
from taro.shards.stream import stream
from taro.shards.tar import read_tar
from taro.shards.tensors import pack_features, pack_frames, unpack_features, unpack_frames, unpack_tensors
from taro.shards.variants import pack_variants, unpack_variants
from taro.shards.verify import verify
from taro.shards.view import view
from tests.shards.helpers_sets import add_variants, features, record, variants, write_set

MARK = b"\0taro-fuzz-special:"


def shard_targets(seeds: Path) -> list[Target]:
    """The targets of shard sets; `seeds`: a folder to make good sets in."""
    for name, clips, skipped in (("one", [[1, 2], [3]], 1), ("two", [[4], [3]], 0)):
        write_set(seeds / name, clips, clip=True, skipped=skipped)
        add_variants(seeds / name)
    shutil.copytree(seeds / "one", seeds / "indexed", dirs_exist_ok=True)
    add_index(str(seeds / "indexed"))
    indexed = _files(seeds / "indexed")
    sets = [*(_files(seeds / name) for name in ("one", "two")), indexed]
    tars = [data for files in sets for name, data in files.items() if name.endswith(".tar")]
    sidecars = [data for files in sets for name, data in files.items() if "/" in name and name.endswith(".json")]
    manifests = [files["manifest.json"] for files in sets]
    records = [canonical_json(record(number, captions=number)) for number in (1, 3)]
    import torch

    packed = [pack_features(features(1)), pack_features(features(2, levels=2, dtype=torch.bfloat16)),
              pack_frames(torch.ones(8, 3)), pack_variants(variants(record(1), levels=1))]  # fmt: skip
    tables = [files[SKIPPED] for files in sets]
    return [
        Target("tar", lambda rng: {"a.tar": _tar(rng, tars)}, lambda files, _: _read_tar(files["a.tar"]), 10),
        Target("tensors", lambda rng: {"a.safetensors": change.tensors(rng, rng.choice(packed), packed)},
               lambda files, _: _read_tensors(files["a.safetensors"]), 10),
        _json_target("record", records, lambda data: _round_trip(ClipRecord, data, MAX_JSON_BYTES)),
        _json_target("sidecar", sidecars, lambda data: _round_trip(Sidecar, data, MAX_MANIFEST_BYTES)),
        _json_target("manifest", manifests, _read_manifest),
        Target("skipped", lambda rng: {SKIPPED: _table(rng, tables)}, _read_skipped, 3),
        Target("index", lambda rng: index_input(rng, indexed), read_index, 10),
        Target("bombs", lambda rng: _bomb(rng, records[1], manifests[0], sidecars[0]), lambda files,
               _: _read_bomb(files), 0.5),
        Target("set", lambda rng: _changed_set(rng, rng.choice(sets)), lambda files, at: _use_set(files, at, seeds)),
    ]


def _json_target(name: str, seeds: list[bytes], read: Callable[[bytes], Any]) -> Target:
    return Target(name, lambda rng: {"a.json": change.json_file(rng, rng.choice(seeds), seeds)},
                  lambda files, _: read(files["a.json"]), 10)  # fmt: skip


def _bomb(rng: random.Random, record_json: bytes, manifest: bytes, sidecar: bytes) -> Files:
    """A file that is small and stands for much: paths that repeat captions, lists of nothing, thousands of kinds."""
    many = rng.choice((0, 1, 3, 99, 101, 257, 4_000, 20_000))
    kind = rng.choice(("record", "record", "manifest", "sidecar"))
    root = json.loads({"record": record_json, "manifest": manifest, "sidecar": sidecar}[kind])
    if kind == "record":
        query, captions = root["queries"][0], len(root["captions"])
        path = rng.choice((list(range(captions)), [0] * many, [0, 1] * many, list(range(many)), [1, 0],
                           [captions - 1], []))
        query["paths"][rng.choice(("random", "overlap"))] = [path] * rng.choice((1, 1, 3, 256, 257))
    elif kind == "manifest":
        entry = next(one for one in root["shards"] if one["kind"].startswith("features"))
        root["shards"] += [entry | {"kind": f"features/{rng.choice(('a', 'a.b', '<b>', '..'))}{n}"}
                           for n in range(many)]
        root["encoders"] = root["encoders"] * rng.choice((1, 1, 2, 101))
    else:
        root["records"] = root["records"] * many
    if rng.random() < 0.3:
        key = rng.choice(list(root))
        root[key] = rng.choice(([[]], [{}], [None], [0], [""])) * rng.choice((9, 10_000, 2_000_000))
    return {f"{kind}.json": change.dumped(root)}


def _read_bomb(files: Files) -> None:
    (name, data), = files.items()
    if name == "record.json":
        read = parse_model(ClipRecord, data, name, limit_bytes=MAX_JSON_BYTES, limit_elements=MAX_ELEMENTS["clip"])
        for query in read.queries:
            for path in (*query.paths.random, *query.paths.overlap):
                assert path == sorted({*path}) and all(0 <= one < len(read.captions) for one in path)
    elif name == "manifest.json":
        limits = {"limit_bytes": MAX_MANIFEST_BYTES, "limit_elements": MAX_ELEMENTS[MANIFEST]}
        assert len(parse_model(Manifest, data, name, **limits).kinds) <= MAX_KINDS
    else:
        parse_model(Sidecar, data, name, limit_bytes=MAX_MANIFEST_BYTES, limit_elements=MAX_ELEMENTS["sidecar"])


def _files(root: Path) -> Files:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def _tar(rng: random.Random, tars: list[bytes]) -> bytes:
    data = rng.choice(tars)
    if rng.random() < 0.4:
        return change.blob(rng, data, tars)
    members = [(member.name, content) for member, content in read_tar(io.BytesIO(data), "seed")]
    return change.tar(rng, members)


def _read_tar(data: bytes) -> None:
    for member, content in read_tar(io.BytesIO(data), "a.tar"):
        assert data[member.offset : member.offset + member.size] == content


def _read_tensors(data: bytes) -> None:
    refused = []
    readers = (unpack_features, unpack_frames, unpack_tensors, unpack_variants)
    for read in readers:
        try:
            read(data, "a.safetensors: record x at byte 512")
        except TaroError as error:
            refused.append(error)
    if len(refused) == len(readers):
        raise refused[0]


def _round_trip(model: type[Any], data: bytes, limit_bytes: int) -> None:
    read = parse_model(model, data, "a.json", limit_bytes=limit_bytes)
    assert parse_model(model, canonical_json(read), "again", limit_bytes=limit_bytes) == read
    if isinstance(read, ClipRecord):
        assert all(0 <= index < len(read.captions) for query in read.queries
                   for path in query.paths.random for index in path)


def _read_manifest(data: bytes) -> None:
    parsed = parse_json(data, "manifest.json", limit_bytes=MAX_MANIFEST_BYTES)
    version = parsed.get("format_version") if isinstance(parsed, dict) else None
    check_version(version if isinstance(version, str) else "", "manifest.json")
    manifest = parse_model(Manifest, data, "manifest.json", limit_bytes=MAX_MANIFEST_BYTES)
    assert all(".." not in entry.path and not entry.path.startswith("/") for entry in manifest.shards)
    assert len([encoder.name for encoder in manifest.encoders]) < 101 and card_text(manifest).isprintable() is False


def _table(rng: random.Random, tables: list[bytes]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if rng.random() < 0.7:
        return change.blob(rng, rng.choice(tables), tables)
    rows = pq.read_table(pa.BufferReader(tables[0])).to_pylist() * rng.choice((0, 1, 1, 3, 500))
    for row in rows:
        name = rng.choice(list(row))
        row[name] = rng.choice((None, 1, "x", 1.5, True, [1], {"a": 1}, b"\xff"))
    sink = io.BytesIO()
    try:
        table = pa.Table.from_pylist(rows)
        if rng.random() < 0.3:
            table = table.rename_columns([rng.choice((name, "", "row_id")) for name in table.column_names])
        pq.write_table(table, sink, compression=rng.choice(("zstd", "snappy", "gzip", "none", "brotli", "lz4")))
    except (pa.ArrowException, OSError, ValueError, TypeError):
        return rng.randbytes(64)
    return sink.getvalue()


def _read_skipped(files: Files, folder: Path) -> None:
    (folder / SKIPPED).write_bytes(files[SKIPPED])
    for row in read_skipped(folder):
        str(row)


def _changed_set(rng: random.Random, files: Files) -> Files:
    """A set with one lie; most have every digest right."""
    kind = rng.random()
    if kind < 0.12:
        name = rng.choice(sorted(files))
        return files | {name: change.blob(rng, files[name])}
    if kind < 0.2:
        name = rng.choice(sorted(files))
        return files | {name: MARK + rng.choice((b"link", b"fifo", b"socket", b"folder", b"missing", b"device"))}
    if kind < 0.3:
        return files | {"manifest.json": change.json_file(rng, files["manifest.json"])}
    signed = dict(files)
    shards = sorted(name for name in files if name.endswith(".tar"))
    if kind < 0.45:
        name = rng.choice(shards)
        sidecar = name.removesuffix(".tar") + ".json"
        signed[sidecar] = change.json_file(rng, files[sidecar])
    elif kind < 0.5:
        signed[SKIPPED] = _table(rng, [files[SKIPPED]])
    elif kind < 0.6 and INDEX in files:
        signed |= index_input(rng, files)
    else:
        for name in rng.sample(shards, rng.choice((1, 1, 2))):
            _change_shard(rng, signed, name)
    return _signed(signed)


def _change_shard(rng: random.Random, files: Files, name: str) -> None:
    members = [(member.name, content) for member, content in read_tar(io.BytesIO(files[name]), name)]
    for at in rng.sample(range(len(members)), rng.choice((1, min(2, len(members))))):
        member, content = members[at]
        changers = {"json": change.json_file, "safetensors": change.tensors, "jpg": change.blob}
        members[at] = (member, changers[member.rpartition(".")[2]](rng, content))
    if rng.random() < 0.15:
        members = members[1:] or members
    files[name] = change.tar(rng, members, right=rng.random() < 0.9)
    found, offset = {}, 0
    for member, content in members:
        key, _, ext = member.partition(".")
        where = {"ext": ext, "offset": offset + 512, "size": len(content), "sha256": _sha256(content)}
        entry = found.setdefault(key, {"key": key, "queries": 0, "members": []})
        entry["members"].append(where)
        entry["queries"] = max(entry["queries"], _queries(content) if ext == "json" else 0)
        offset += 512 + len(content) + -len(content) % 512
    sidecar = name.removesuffix(".tar") + ".json"
    files[sidecar] = json.dumps(json.loads(files[sidecar]) | {"records": list(found.values())}).encode()


def _queries(content: bytes) -> int:
    try:
        return len(json.loads(content)["queries"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0


def _signed(files: Files) -> Files:
    """The files with bytes, digests and counts of sidecars and manifest as what they name now has them."""
    manifest = copy.deepcopy(json.loads(files["manifest.json"]))
    for entry in manifest["shards"]:
        stem = f"{entry['kind']}/{entry['kind'].partition('/')[0]}-{entry['index']:06d}"
        shard, sidecar = files[f"{stem}.tar"], files[f"{stem}.json"]
        entry |= {"bytes": len(shard), "sha256": _sha256(shard)}
        try:
            read = json.loads(sidecar) | {"bytes": len(shard), "sha256": _sha256(shard)}
            sidecar = files[f"{stem}.json"] = json.dumps(read).encode()
            entry |= {"records": len(read["records"]), "queries": sum(one["queries"] for one in read["records"])}
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        entry["sidecar_sha256"] = _sha256(sidecar)
    paths = [entry for entry in manifest["shards"] if entry["kind"] == "paths"]
    queries = sum(entry["queries"] for entry in paths)
    manifest["counts"] |= {"clips": sum(entry["records"] for entry in paths), "queries": queries,
                           "inputs": queries + manifest["counts"]["skipped"]}  # fmt: skip
    manifest["skipped_sha256"] = _sha256(files[SKIPPED])
    return files | {"manifest.json": json.dumps(manifest).encode()}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def lay(files: Files, root: Path) -> None:
    """Writes a set; marked files become links, pipes, sockets, folders, or nothing."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        special = data.removeprefix(MARK) if data.startswith(MARK) else None
        if special is None:
            path.write_bytes(data)
        elif special == b"link":
            path.symlink_to("/etc/passwd")
        elif special == b"fifo":
            os.mkfifo(path)
        elif special == b"socket":
            here = Path.cwd()
            os.chdir(path.parent)  # a socket's name has 108 bytes
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(path.name)
            os.chdir(here)
        elif special == b"folder":
            path.mkdir()
        elif special == b"device":
            path.symlink_to("/dev/zero")


def _use_set(files: Files, folder: Path, seeds: Path) -> None:
    root = folder / "set"
    lay(files, root)
    right = verify(root).ok
    shard_set = open_shards(root)
    last: TaroError | None = None
    steps: list[Callable[[], Any]] = [
        lambda: _read_all(shard_set), lambda: stats(shard_set).lines(), lambda: stats(shard_set).as_dict(),
        lambda: [one.lines() for one in sample(shard_set, 3)], lambda: view(root, folder / "pages"),
        lambda: diff(shard_set, open_shards(seeds / "one")).lines(), lambda: card_text(shard_set.manifest),
        lambda: list(stream(root)), lambda: _derived(shard_set, folder, seeds, right),
    ]  # fmt: skip
    for step in steps:
        try:
            step()
        except TaroError as error:
            last = error
    if right:
        _read_all(shard_set)
    if last is not None:
        raise last


def _read_all(shard_set: ShardSet) -> None:
    for ref in shard_set.queries():
        shard_set.sample(ref)
    for key in shard_set.keys:
        shard_set.thumbnail(key)
        shard_set.clip_features(key)


def _derived(shard_set: ShardSet, folder: Path, seeds: Path, right: bool) -> None:
    last: TaroError | None = None
    makers: list[Callable[[Path], Any]] = [
        lambda out: filter_set(shard_set, out, Selection(split="train")),
        lambda out: [out / name for name in split_by_split(shard_set, out)],
        lambda out: [out / name for name in split_by_fraction(shard_set, out, {"a": 0.5, "b": 0.5})],
        lambda out: merge_sets([shard_set, open_shards(seeds / "two")], out),
    ]  # fmt: skip
    for number, maker in enumerate(makers):
        out = folder / f"made-{number}"
        try:
            made = maker(out)
        except TaroError as error:
            last = error
            assert not out.exists(), "a set that could not be made has left a folder"
            continue
        for root in made if isinstance(made, list) else [out]:
            report = verify(root)
            assert report.ok or not right, f"derived from a right set, and wrong: {report.problems[:3]}"
    if last is not None:
        raise last
