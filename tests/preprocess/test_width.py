"""What a video token takes in a shard, for plans and estimates: one set of features, and one a deepstack level."""

from __future__ import annotations

from pathlib import Path

from taro.models.features import FrameSampling
from taro.preprocess.models import encoder_fingerprint
from tests.helpers_models import tiny_qwen2_5_vl, tiny_qwen3_vl


def test_deepstack_levels_count(tmp_path: Path) -> None:
    plain = encoder_fingerprint(tiny_qwen2_5_vl(tmp_path / "a", width=32), FrameSampling(), "float32")
    stacked = encoder_fingerprint(tiny_qwen3_vl(tmp_path / "b", width=32), FrameSampling(), "float32")
    assert (plain[1], stacked[1]) == (32, 4 * 32)
