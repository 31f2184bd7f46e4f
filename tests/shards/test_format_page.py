"""docs/shard-format.md: its examples are what the code accepts, and the reader printed there reads a set."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from taro.core.json import canonical_json, parse_model
from taro.grounding.moment import Moment
from taro.grounding.records import ClipRecord
from taro.shards.format import Manifest, Sidecar, clip_key
from taro.shards.tensors import unpack_features
from taro.shards.variants import unpack_variants
from tests.shards.helpers_sets import FINGERPRINT, features, fingerprint, record, write_set

PAGE = (Path(__file__).parents[2] / "docs" / "shard-format.md").read_text(encoding="utf-8")


def block(language: str, name: str) -> str:
    found = re.findall(rf"```{language} {name}\n(.*?)```", PAGE, re.DOTALL)
    assert len(found) == 1
    return str(found[0])


@pytest.mark.parametrize(("name", "model"), [("sidecar", Sidecar), ("clip", ClipRecord), ("manifest", Manifest)])
def test_an_example_is_accepted_and_complete(name: str, model: type[BaseModel]) -> None:
    text = block("json", name).encode()
    parsed = parse_model(model, text, name, limit_bytes=10**6)
    assert json.loads(canonical_json(parsed)) == json.loads(text), "the example shows every field, and no other"


def test_the_tensor_header_is_accepted() -> None:
    text = json.dumps(json.loads(block("json", "tensors"))).encode()
    read = unpack_features(len(text).to_bytes(8, "little") + text + bytes(112))
    assert read.main_SND.shape == (2, 4, 6) and read.main_SND.dtype == torch.bfloat16


def test_the_header_of_variants_is_accepted() -> None:
    text = json.dumps(json.loads(block("json", "variants"))).encode()
    boundaries, rows = np.array([[0, 9.2], [0, 14.0]]), np.array([(0, 0, 0, 1, 0), (0, 1, 0, 0, 2), (0, 1, 1, 1, 3)])
    data = len(text).to_bytes(8, "little") + text + boundaries.tobytes() + rows.tobytes() + bytes(144)
    read = unpack_variants(data)
    assert read.main_MND.shape == (3, 4, 6) and read.boundaries == ((9.2, 14.0),)
    assert str(read.settings) == "count 2, dt_s 3, seed 0"


def test_the_keys_of_the_page_are_the_codes() -> None:
    assert f"| `{clip_key('3MSZA.mp4', None)}` |" in PAGE
    assert f"| `{clip_key('a/3MSZA.mp4', Moment(2, 9.5))}` |" in PAGE


def test_the_printed_reader_reads_a_set(tmp_path: Path) -> None:
    other = fingerprint("1", "bfloat16")
    write_set(tmp_path, [[1, 2], [3]], encoders={"float32": FINGERPRINT, "bfloat16": other})
    reader: dict[str, Any] = {}
    exec(block("python", "reader"), reader)
    clips = {key: json.loads(members["json"]) for key, members in reader["records"](tmp_path, "paths")}
    assert clips == {record(n).key: record(n).model_dump(mode="json") for n in (1, 2, 3)}
    for key, members in reader["records"](tmp_path, f"features/{FINGERPRINT.name}"):
        number = int(clips[key]["video"]["sha256"], 16)
        arrays, metadata = reader["tensors"](members["safetensors"])
        assert np.array_equal(arrays["main"], features(number).main_SND.numpy())
        assert np.array_equal(arrays["times_s"], features(number).times_S) and metadata["grid_thw"] == "4,4,4"
    halves = {key: reader["tensors"](members["safetensors"])[0]["main"]
              for key, members in reader["records"](tmp_path, f"features/{other.name}")}  # fmt: skip
    expected = features(1, dtype=torch.bfloat16).main_SND.view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(halves[record(1).key], expected)
