"""A set as a whole: what is written is read, equal input gives equal bytes, a killed job resumes, libraries open it."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from taro.core.errors import ShardError
from taro.shards.encoders import check_encoder
from taro.shards.format import MANIFEST, shard_path, sidecar_path
from taro.shards.index_build import add_index
from taro.shards.manifest import build_manifest, read_skipped
from taro.shards.reader import open_shards
from taro.shards.stream import stream
from taro.shards.verify import verify
from taro.shards.writer import SliceWriter, slice_done
from tests.shards.helpers_sets import FINGERPRINT, SHEET, features, fingerprint, record, write_set

KINDS = ("paths", f"features/{FINGERPRINT.name}")


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_set(tmp_path, [[1, 2], [3]], clip=True)
    shard_set = open_shards(tmp_path)
    assert shard_set.keys == sorted(record(number).key for number in (1, 2, 3))
    for number in (3, 1, 2):
        key = record(number).key
        assert shard_set.clip(key) == record(number)
        assert shard_set.thumbnail(key) == SHEET
        assert shard_set.clip_features(key).eq(number).all()
        read = shard_set.features(key)
        assert torch.equal(read.main_SND, features(number).main_SND)
        assert np.array_equal(read.times_S, features(number).times_S) and read.grid_thw == (4, 4, 4)
    assert verify(tmp_path).problems == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_features_of_every_dtype_and_level_come_back_bit_by_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    written = features(1, levels=3, dtype=dtype)
    with SliceWriter(tmp_path, 0, kinds=KINDS) as writer:
        writer.add_clip(record(1), None, {FINGERPRINT.name: written}, {})
        writer.commit()
    manifest = build_manifest(tmp_path, inputs=2, skipped=0, captions=3, encoders=[FINGERPRINT])
    (tmp_path / MANIFEST).write_text(manifest.model_dump_json())
    read = open_shards(tmp_path).features(record(1).key)
    pairs = zip((read.main_SND, *read.deepstack_LSND), (written.main_SND, *written.deepstack_LSND), strict=True)
    for one, other in pairs:
        assert one.dtype == dtype and torch.equal(one, other)


def test_a_safetensors_reader_of_others_opens_the_features(tmp_path: Path) -> None:
    from safetensors.torch import load

    write_set(tmp_path, [[5]])
    with tarfile.open(tmp_path / shard_path(KINDS[1], 0)) as tar:
        member = tar.extractfile(f"{record(5).key}.safetensors")
        assert member is not None
        assert torch.equal(load(member.read())["main"], features(5).main_SND)


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    write_set(tmp_path / "a", [[1, 2], [3]], clip=True)
    write_set(tmp_path / "b", [[1, 2], [3]], clip=True)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_filters_pick_what_they_say(tmp_path: Path) -> None:
    write_set(tmp_path, [[1, 2], [3]])
    shard_set = open_shards(tmp_path)
    assert len(shard_set.queries()) == 6
    assert {ref.query.id for ref in shard_set.queries(split="val")} == {"1.1", "2.1", "3.1"}
    assert {ref.query.id for ref in shard_set.queries(ids=["1.0", "3.1"])} == {"1.0", "3.1"}
    assert {ref.query.id for ref in shard_set.queries(difficulty=(20, 30))} == {"2.1", "3.1"}
    sample = shard_set.sample(shard_set.queries(ids=["2.1"])[0])
    assert sample.clip == record(2) and sample.query.id == "2.1" and float(sample.features.main_SND[0, 0, 0]) == 2000


def test_a_set_travels_to_a_worker(tmp_path: Path) -> None:
    write_set(tmp_path, [[1]])
    shard_set = pickle.loads(pickle.dumps(open_shards(tmp_path)))  # noqa: S301
    assert shard_set.clip(record(1).key) == record(1)


class Killed(BaseException):
    """Stands for a signal."""


def test_a_slice_is_all_or_nothing(tmp_path: Path) -> None:
    with pytest.raises(Killed), SliceWriter(tmp_path, 0, kinds=KINDS) as writer:
        writer.add_clip(record(1), SHEET, {FINGERPRINT.name: features(1)}, {})
        raise Killed
    assert files(tmp_path) == {} and not slice_done(tmp_path, 0, KINDS)


def test_a_slice_counts_only_once_its_sidecars_verify(tmp_path: Path) -> None:
    write_set(tmp_path, [[1, 2], [3]])
    assert slice_done(tmp_path, 0, KINDS) and slice_done(tmp_path, 1, KINDS) and not slice_done(tmp_path, 2, KINDS)
    shard = tmp_path / shard_path(KINDS[1], 0)
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    assert not slice_done(tmp_path, 0, KINDS) and slice_done(tmp_path, 0, KINDS[:1])
    (tmp_path / sidecar_path("paths", 1)).unlink()
    assert not slice_done(tmp_path, 1, KINDS)


def test_a_slice_without_clips_is_done_and_harmless(tmp_path: Path) -> None:
    write_set(tmp_path, [[], [3]])
    assert slice_done(tmp_path, 0, KINDS)
    assert verify(tmp_path).problems == [] and open_shards(tmp_path).keys == [record(3).key]


def test_another_encoder_joins_without_touching_what_is_there(tmp_path: Path) -> None:
    write_set(tmp_path, [[1], [2]])
    before = files(tmp_path)
    other = fingerprint("1", "bfloat16")
    for index, number in ((0, 1), (1, 2)):
        with SliceWriter(tmp_path, index, kinds=[f"features/{other.name}"]) as writer:
            writer.add_clip(record(number), None, {other.name: features(number, dtype=torch.bfloat16)}, {})
            writer.commit()
    manifest = build_manifest(tmp_path, inputs=5, skipped=1, captions=6, encoders=[FINGERPRINT, other])
    (tmp_path / MANIFEST).write_text(manifest.model_dump_json())
    after = files(tmp_path)
    assert all(after[name] == data for name, data in before.items() if name != MANIFEST)
    assert verify(tmp_path).problems == []
    with pytest.raises(ShardError, match="name one of them"):
        open_shards(tmp_path).features(record(1).key)
    assert open_shards(tmp_path, other.name).features(record(1).key).main_SND.dtype == torch.bfloat16
    assert check_encoder(open_shards(tmp_path), other) == other.name


def test_another_tower_is_refused_with_both_fingerprints_and_the_way_out(tmp_path: Path) -> None:
    write_set(tmp_path, [[1]])
    shard_set = open_shards(tmp_path)
    renamed = FINGERPRINT.model_copy(update={"model_id": "the same tower under another name"})
    assert check_encoder(shard_set, renamed) == FINGERPRINT.name
    other = fingerprint("2")
    with pytest.raises(ShardError) as error:
        check_encoder(shard_set, other)
    for part in (other.name, FINGERPRINT.name, "differs in tower_sha256", "--only features --policy"):
        assert part in str(error.value)


def test_features_that_do_not_fit_their_clip_are_not_written(tmp_path: Path) -> None:
    with SliceWriter(tmp_path, 0, kinds=KINDS) as writer:
        with pytest.raises(ShardError, match="3 patches, its JSON says 4"):
            writer.add_clip(record(1), None, {FINGERPRINT.name: features(1, patches=3)}, {})
        writer.add_clip(record(1), None, {FINGERPRINT.name: features(1)}, {})
        assert [entry.records for entry in writer.commit()] == [1, 1]


def test_rows_are_never_lost_between_input_and_counts(tmp_path: Path) -> None:
    write_set(tmp_path, [[1]], skipped=3)
    assert len(read_skipped(tmp_path)) == 3
    with pytest.raises(ShardError, match="a row is lost or counted twice"):
        build_manifest(tmp_path, inputs=4, skipped=3, captions=3)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux shows them")
def test_reading_skipped_rows_leaves_no_thread_that_could_abort_at_exit(tmp_path: Path) -> None:
    write_set(tmp_path, [[1]], skipped=3)
    code = ("import os, sys; import pyarrow.parquet; from taro.shards.manifest import read_skipped; "
            "threads = lambda: set(os.listdir('/proc/self/task')); before = threads(); "
            "assert len(read_skipped(sys.argv[1])) == 3; print(len(threads() - before))")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr


def test_the_stream_joins_media_and_labels(tmp_path: Path) -> None:
    write_set(tmp_path, [[1, 2], [], [3]])
    found = {sample["__key__"]: sample for sample in stream(tmp_path)}
    assert set(found) == {record(number).key for number in (1, 2, 3)}
    for number in (1, 2, 3):
        sample = found[record(number).key]
        assert sample["clip"] == record(number) and sample["jpg"] == SHEET
        assert torch.equal(sample["features"].main_SND, features(number).main_SND)


@pytest.mark.parametrize(("kind", "member"), [("paths", 0), ("paths", 1), (f"features/{FINGERPRINT.name}", 0)])
def test_the_stream_compares_every_member_with_the_sidecar(tmp_path: Path, kind: str, member: int) -> None:
    write_set(tmp_path, [[1]])
    listed = open_shards(tmp_path).listed(kind, record(1).key)
    assert listed is not None
    path = tmp_path / shard_path(kind, 0)
    data = bytearray(path.read_bytes())
    data[listed.members[member].offset + listed.members[member].size - 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=rf"sha256 of {record(1).key}\.{listed.members[member].ext} is not"):
        list(stream(tmp_path))


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_itself_reads_the_shards(tmp_path: Path) -> None:
    import webdataset as wds

    write_set(tmp_path, [[1, 2]])
    # webdataset leaves closing the file to the garbage collector, hence the two exceptions above.
    keys = [one["__key__"] for one in wds.WebDataset(str(tmp_path / shard_path("paths", 0)), shardshuffle=False)]
    assert keys == open_shards(tmp_path).keys


def test_datasets_opens_a_shard_of_each_kind_and_what_the_card_names(tmp_path: Path) -> None:
    from datasets import get_dataset_config_names, load_dataset

    folder, cache = str(tmp_path / "set"), str(tmp_path / "cache")
    write_set(tmp_path / "set", [[1, 2], [3]])
    # The contact sheets here are no images; datasets only decodes them when asked for the column.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind, column in ((KINDS[0], "json"), (KINDS[1], "safetensors")):
            data = load_dataset("webdataset", data_files=str(tmp_path / "set" / shard_path(kind, 0)), split="train",
                                cache_dir=cache)  # fmt: skip
            assert data.num_rows == 2 and column in data.column_names
        assert get_dataset_config_names(folder) == ["paths"]  # a set without index
        of_card = load_dataset(folder, "paths", split="train", cache_dir=cache)
        add_index(folder)
        assert get_dataset_config_names(folder) == ["queries"]
        queries = load_dataset(folder, "queries", split="train", cache_dir=cache)
        assert load_dataset(folder, split="train", cache_dir=cache).column_names == queries.column_names  # the viewer's
        clips = load_dataset(folder, data_files="paths/paths-*.tar", split="train", cache_dir=cache)
    assert sorted(clips["__key__"]) == sorted(of_card["__key__"]) == sorted({*queries["key"]})
    assert sorted(clips["__key__"]) == open_shards(folder).keys
    assert queries.num_rows == 6 and {*queries["text"]} == {"the 0 event", "the 1 event"}
    for one in of_card, clips:
        texts = {query["text"] for clip in one["json"] for query in clip["queries"]}
        assert texts == {"the 0 event", "the 1 event"}


def test_datasets_has_one_reader_for_all_configurations_of_a_card(tmp_path: Path) -> None:
    """Why the card names either the index or tars. Where this fails, `datasets` can do both: change the card."""
    from datasets import load_dataset

    write_set(tmp_path / "set", [[1], [2]])
    add_index(str(tmp_path / "set"))
    both = [{"config_name": "queries", "data_files": "queries.parquet"},
            {"config_name": "paths", "data_files": "paths/paths-*.tar"}]  # fmt: skip
    for configs in both, both[::-1]:
        (tmp_path / "set" / "README.md").write_text(f"---\nconfigs: {configs}\n---\n")
        first, second = (str(one["config_name"]) for one in configs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert load_dataset(str(tmp_path / "set"), first, cache_dir=str(tmp_path / "cache"))
            with pytest.raises(Exception, match=r"magic bytes|invalid header"):
                load_dataset(str(tmp_path / "set"), second, cache_dir=str(tmp_path / "cache"))


def test_the_stream_splits_over_workers_and_shuffles(tmp_path: Path) -> None:
    import webdataset as wds
    from torch.utils.data import DataLoader

    write_set(tmp_path, [[1], [2], [3]])
    pipeline = stream(tmp_path).compose(wds.shuffle(10, seed=0))
    loader = DataLoader(pipeline, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    assert sorted(sample["__key__"] for sample in loader) == open_shards(tmp_path).keys
