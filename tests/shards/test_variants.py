"""Frame variants in shards: named by boundaries, exact through the tar, and whatever else is written refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taro.core.errors import ShardError
from taro.grounding.moment import Moment
from taro.shards.manifest import build_manifest
from taro.shards.ops.filter import Selection, filter_set
from taro.shards.reader import open_shards
from taro.shards.tensors import pack_tensors, unpack_tensors
from taro.shards.variants import MAX_VARIANTS, pack_variants, unpack_variants, wanted_groups
from taro.shards.verify import verify
from taro.shards.writer import SliceWriter
from tests.shards.helpers_sets import FINGERPRINT, add_variants, features, record, variants, write_set

KIND = f"variants/{FINGERPRINT.name}"
PACKED = pack_variants(variants(record(1), levels=1))
HEADER_END = 8 + int.from_bytes(PACKED[:8], "little")


def test_a_variant_is_read_back_and_put_over_the_features(tmp_path: Path) -> None:
    write_set(tmp_path, [[1, 2]])
    add_variants(tmp_path, but=frozenset({2}))
    plain, source = open_shards(tmp_path), open_shards(tmp_path).reading(FINGERPRINT.name, variants=True)
    refs = {ref.query.id: ref for ref in source.queries()}
    assert plain.sample(refs["1.1"]).variants is None and source.sample(refs["2.1"]).variants is None
    assert source.kinds_of_a_sample == (*plain.kinds_of_a_sample, KIND)
    sample = source.sample(refs["1.1"])
    assert sample.variants is not None and sample.variants.boundaries == ((0.5, 1.5),)
    made, base = variants(record(1)), sample.features.main_SND
    for variant, patches, rows in ((0, [0], [3]), (1, [0, 1], [4, 5])):  # of the second query: the second three rows
        spliced = sample.variants.spliced(sample.features, variant)
        assert torch.equal(spliced.main_SND[patches], made.main_MND[rows])
        others = [patch for patch in range(4) if patch not in patches]
        assert torch.equal(spliced.main_SND[others], base[others])
        assert np.array_equal(spliced.times_S, sample.features.times_S)
    assert torch.equal(sample.features.main_SND, features(1).main_SND), "the features themselves stay"
    assert str(source.variant_settings()) == "count 2, dt_s 1, seed 0"
    assert sample.variants.of([Moment(0.5, 1.25)]) is None, "windows that changed find none"


def test_deepstack_levels_are_put_over_together() -> None:
    made = unpack_variants(PACKED).of([Moment(0.0, 1.0)])
    assert made is not None
    base = features(1, levels=1)
    spliced = made.spliced(base, 0)
    assert torch.equal(spliced.deepstack_LSND[0][0], variants(record(1), levels=1).deepstack_LMND[0][0])
    assert torch.equal(spliced.deepstack_LSND[0][1:], base.deepstack_LSND[0][1:])


def test_queries_with_the_same_boundaries_share_their_variants() -> None:
    clip = record(1)
    same = clip.queries[0].model_copy(update={"windows_s": [(0.0, 1.0), (0.0, 1.0)], "id": "same"})
    none = clip.queries[0].model_copy(update={"windows_s": [], "id": "none"})
    assert wanted_groups(clip.model_copy(update={"queries": [*clip.queries, same, none]})) == [(0.0, 1.0), (0.5, 1.5)]
    assert wanted_groups(clip.model_copy(update={"times_s": [0.1] * 8})) == [], "one frame cannot be shuffled"


def test_verify_names_what_is_stale_missing_or_of_another_making(tmp_path: Path) -> None:
    write_set(tmp_path / "whole", [[1, 2], [3]])
    add_variants(tmp_path / "whole")
    assert verify(tmp_path / "whole").problems == []
    filter_set(open_shards(tmp_path / "whole"), tmp_path / "part", Selection(split="val"))
    assert verify(tmp_path / "part").problems == [], "a cut set carries the variants of queries that it left out"
    write_set(tmp_path / "missing", [[1, 2]])
    add_variants(tmp_path / "missing", but=frozenset({2}))
    assert "hold different records" in verify(tmp_path / "missing").problems[0]
    changed = record(1).model_copy(update={"queries": [record(1).queries[0].model_copy(
        update={"windows_s": [(0.0, 1.25)]})]})
    for name, made in (("windows changed", variants(changed)), ("features have 4 patches", replace(
            variants(record(1)), rows_M5=variants(record(1)).rows_M5 + np.array([0, 0, 4, 8, 8])))):
        write_set(tmp_path / name, [[1]])
        with SliceWriter(tmp_path / name, 0, kinds=[KIND]) as writer:
            writer.add_clip(record(1), None, {}, {}, {FINGERPRINT.name: made})
            writer.commit()
        manifest = build_manifest(tmp_path / name, inputs=3, skipped=1, captions=3, encoders=[FINGERPRINT])
        (tmp_path / name / "manifest.json").write_text(manifest.model_dump_json())
        problems = verify(tmp_path / name).problems
        assert len(problems) == 1 and name in problems[0] and "--only variants" in problems[0], problems
        source = open_shards(tmp_path / name).reading(FINGERPRINT.name, variants=True)
        if "changed" in name:
            assert source.sample(source.queries()[0]).variants is None
        else:
            with pytest.raises(ShardError, match="features have 4 patches"):
                source.sample(source.queries()[0])


def test_variants_of_which_a_slice_is_missing_are_not_in_the_manifest(tmp_path: Path) -> None:
    write_set(tmp_path, [[1], [2]])
    add_variants(tmp_path)
    (tmp_path / KIND / "variants-000001.json").unlink()
    manifest = build_manifest(tmp_path, inputs=5, skipped=1, captions=6, encoders=[FINGERPRINT])
    assert manifest.kinds == [f"features/{FINGERPRINT.name}", "paths"]


def tensors() -> dict[str, torch.Tensor]:
    return unpack_tensors(PACKED, "packed")[0]


def changed(name: str, action: Callable[[torch.Tensor], Any]) -> dict[str, torch.Tensor]:
    found = tensors()
    tensor = found[name].clone()
    out = action(tensor)
    return {**found, name: tensor if out is None else out}


def put(*at: int, value: float) -> Callable[[torch.Tensor], None]:
    def action(tensor: torch.Tensor) -> None:
        tensor[at] = value

    return action


@pytest.mark.parametrize(("wrong", "found"), [
    ({"x": torch.ones(2)}, "tensors are"),
    (changed("main", lambda x: x[:-1]), "all alike"),
    (changed("deepstack.0", lambda x: x[:-1]), "all alike"),
    (changed("deepstack.0", lambda x: x.to(torch.float16)), "all alike"),
    (changed("rows", lambda x: x[:-1]), r"rows have shape \(5, 5\)"),
    (changed("rows", lambda x: x[:, :4]), r"rows have shape \(6, 4\)"),
    (changed("rows", lambda x: x.double()), "expected I64 and F64"),
    (changed("boundaries", lambda x: x.long()), "expected I64 and F64"),
    (changed("boundaries", lambda x: x[:, :1]), "boundaries"),
    (changed("boundaries", put(0, 1, value=float("nan"))), "finite"),
    (changed("boundaries", put(0, 0, value=1.0)), "listed by group"),
    (changed("boundaries", put(0, 0, value=float("inf"))), "finite"),
    (changed("boundaries", put(0, 1, value=9.0)), "listed by group"),
    (changed("boundaries", put(3, 0, value=2.0)), "expected 3 groups|has none"),
    (changed("boundaries", lambda x: x[[0, 1, 0, 1]] + torch.tensor([[0.0, 0], [0, 0], [1, 0], [1, 0]])), "distinct"),
    (changed("rows", put(5, 0, value=2)), "expected 2 groups"),
    (changed("rows", put(5, 1, value=2)), "2 variants"),
    (changed("rows", put(0, 2, value=-1)), "no negative"),
    (changed("rows", put(5, 2, value=2**40)), "no negative"),
    (changed("rows", put(5, 4, value=2**62)), "no negative"),
    (changed("rows", lambda x: x[[1, 0, 2, 3, 4, 5]]), "do not ascend"),
    (changed("rows", put(0, 1, value=1)), "do not ascend"),
    (changed("rows", put(0, 3, value=0)), "another order"),
    (changed("rows", lambda x: x.__setitem__((0, slice(3, 5)), torch.tensor([0, 1]))), "its own frames"),
    (changed("rows", put(1, 3, value=1)), "another order"),
])  # fmt: skip
def test_what_lies_is_refused_with_its_fault(wrong: dict[str, torch.Tensor], found: str) -> None:
    metadata = unpack_tensors(PACKED, "packed")[1]
    with pytest.raises(ShardError, match=found):
        unpack_variants(pack_tensors(wrong, metadata), "here")


@pytest.mark.parametrize("metadata", [
    {}, {"count": "0"}, {"count": str(MAX_VARIANTS + 1)}, {"count": "two"}, {"count": "9" * 500}, {"dt_s": "nan"},
    {"dt_s": "-1"}, {"dt_s": "inf"}, {"seed": "-1"}, {"seed": "x"},
])
def test_metadata_that_lies_is_refused(metadata: dict[str, str]) -> None:
    good = unpack_tensors(PACKED, "packed")[1]
    with pytest.raises(ShardError, match="expected count"):
        unpack_variants(pack_tensors(tensors(), {**good, **metadata} if metadata else {}))


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, len(PACKED) - 1), value=st.integers(0, 255), cut=st.integers(0, len(PACKED)))
def test_any_changed_or_cut_byte_is_a_shard_error_or_well_formed(at: int, value: int, cut: int) -> None:
    data = bytearray(PACKED)
    data[at] = value
    for hostile in (bytes(data), PACKED[:cut]):
        try:
            found = unpack_variants(hostile)
        except ShardError:
            continue
        assert found.main_MND.shape[0] == len(found.rows_M5) and found.rows_M5.min() >= 0
