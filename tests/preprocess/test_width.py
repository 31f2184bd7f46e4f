"""What a video token takes in a shard, for plans and estimates: one set of features, and one a deepstack level."""

from __future__ import annotations

from pathlib import Path

from taro.models.fingerprint import token_width
from tests.helpers_models import tiny_qwen2_5_vl, tiny_qwen3_vl


def test_deepstack_levels_count(tmp_path: Path) -> None:
    plain, stacked = tiny_qwen2_5_vl(tmp_path / "a", width=32), tiny_qwen3_vl(tmp_path / "b", width=32)
    assert (token_width(plain), token_width(stacked)) == (32, 4 * 32)
