"""A small job of real parts: real mp4s, a random model of real architecture, real shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taro.preprocess.config import PreprocessConfig
from tests.helpers_models import tiny_qwen2_5_vl
from tests.helpers_video import write_video

CLIPS = 6


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2.5-VL that names the sandbox's template."""
    folder = tiny_qwen2_5_vl(tmp_path_factory.mktemp("models") / "tiny")
    (folder / "taro.json").write_text('{"template": "sandbox"}')
    return folder


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos of 3 to 5.5 s."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(CLIPS):
        write_video(folder / f"v{i}.mp4", 30 + 5 * i, size=(56, 84))
    return folder


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Two queries a video, with dense captions."""
    captions = [{"start_s": float(i), "end_s": i + 1.0, "text": f"part {i}"} for i in range(3)]
    return [
        {"video": f"v{i}.mp4", "query": f"part {q} of {i}", "windows": [[q, q + 1.0]], "qid": f"{i}-{q}",
         "captions": captions}
        for i in range(CLIPS) for q in range(2)
    ]  # fmt: skip


@pytest.fixture
def job(tmp_path: Path, tiny_policy: Path, videos: Path, rows: list[dict[str, Any]]) -> Callable[..., PreprocessConfig]:
    """Makes a configuration: captions from the annotations, slices of 2 clips; any setting can be replaced."""

    def make(lines: list[dict[str, Any]] | None = None, **settings: Any) -> PreprocessConfig:
        annotations = tmp_path / "annotations.jsonl"
        annotations.write_text("\n".join(json.dumps(row) for row in (rows if lines is None else lines)) + "\n")
        return PreprocessConfig.model_validate({
            "videos": videos, "annotations": annotations, "dataset": "jsonl", "out": tmp_path / "out",
            "policy": str(tiny_policy), "caption": {"method": "annotations"}, "segment": {"method": "uniform"},
            "slice_clips": 2, "device": "cpu", "workers": 2, "threads": 1, "paths": {"count": 4}, **settings,
        })  # fmt: skip

    return make
