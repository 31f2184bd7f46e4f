"""The main job on real videos at real patch size and token budget, as a user types it.

A Qwen2.5-VL of released shape (14 px patches, windows of 112 px, 3584 video tokens) but few, narrow, random layers.
The videos are not part of the project: the folder named by TARO_REAL_DATA holds them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers_models import tiny_qwen2_5_vl

DATA = os.environ.get("TARO_REAL_DATA")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(DATA is None, reason="TARO_REAL_DATA is unset: no real videos here"),
]

VIDEOS = {"nasa_13013.mp4": (2.0, 9.0), "02_cups.mp4": (1.0, 4.0), "test_clip_10s.mp4": (3.0, 7.0)}


def taro(*arguments: str | Path, fails: bool = False) -> subprocess.CompletedProcess[str]:
    made = subprocess.run(
        [sys.executable, "-m", "taro", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert (made.returncode != 0) == fails, f"{arguments[0]}: exit {made.returncode}\n{made.stdout}\n{made.stderr}"
    assert "Traceback" not in made.stderr, made.stderr
    return made


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos, annotations and a policy in one folder: good files beside a corrupt and a missing one."""
    folder = tmp_path_factory.mktemp("real")
    tiny_qwen2_5_vl(folder / "policy", dtype=torch.bfloat16, width=64)
    (folder / "videos").mkdir()
    assert DATA is not None
    charades = (Path(DATA) / "annotations" / "charades_sta_test.txt").read_text().splitlines()
    rows = []
    for number, line in enumerate(line for line in charades if line.startswith("3MSZA ")):
        span, query = line.split("##")
        start_s, end_s = (float(value) for value in span.split()[1:])
        rows.append({"video": "3MSZA.mp4", "query": query, "windows": [[start_s, end_s]], "qid": f"charades-{number}"})
    assert len(rows) == 4
    for name, window in VIDEOS.items():
        rows.append(
            {"video": name, "query": f'something "new" {{happens}} in {name}.', "windows": [window], "qid": name}
        )
    for name in ("corrupted.mp4", "missing.mp4"):
        rows.append({"video": name, "query": "nobody will see this", "windows": [[0.0, 1.0]], "qid": name})
    for name in ("3MSZA.mp4", *VIDEOS, "corrupted.mp4"):
        shutil.copyfile(Path(DATA) / "videos" / name, folder / "videos" / name)
    (folder / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    captions = {"video": "3MSZA.mp4", "captions": [
        {"start_s": 0.0, "end_s": 12.0, "text": "a person walks through a room."},
        {"start_s": 24.0, "end_s": 30.0, "text": "the person turns on a light."}]}  # fmt: skip
    (folder / "captions.jsonl").write_text(json.dumps(captions) + "\n")
    return folder


@pytest.fixture(scope="module")
def shards(work: Path) -> Path:
    settings = {
        "videos": work / "videos", "annotations": work / "annotations.jsonl", "dataset": "jsonl",
        "policy": work / "policy", "out": work / "shards", "caption.method": "file",
        "caption.file": work / "captions.jsonl", "segment.method": "uniform", "clip_model": "null", "max_skipped": 0.5,
    }  # fmt: skip
    taro("preprocess", "jsonl", *(f"--set={key}={value}" for key, value in settings.items()))
    return work / "shards"


def test_what_cannot_be_read_is_skipped_and_said_so(shards: Path) -> None:
    from taro import open_shards
    from taro.shards.manifest import read_skipped

    skipped = {row["video"]: row["reason"] for row in read_skipped(shards)}
    assert set(skipped) == {"corrupted.mp4", "missing.mp4"}, skipped
    held = open_shards(str(shards))
    assert len(held.queries()) + len(skipped) == 9
    taro("shards", "verify", shards)


def test_the_clip_of_charades_holds_the_frames_of_the_method(shards: Path) -> None:
    from taro import open_shards

    held = open_shards(str(shards))
    clip = next(clip for clip in map(held.clip, held.keys) if clip.video.path_hint == "3MSZA.mp4")
    assert len(clip.times_s) == 62 and clip.times_s[0] == 0.0
    assert clip.times_s[-1] == pytest.approx(30.97, abs=0.01)
    features = held.features(clip.key)
    assert features.main_SND.shape[0] == 31 and 3000 < features.tokens <= 3584
    assert len(clip.queries) == 4 and all(query.paths.random for query in clip.queries)


def test_two_steps_of_training_then_evaluation_then_an_answer(work: Path, shards: Path) -> None:
    small = {
        "policy": work / "policy", "shards": shards, "out": work / "run", "length.unit": "steps", "length.amount": 2,
        "curriculum.unit": "steps", "curriculum.amount": 1, "rollout.prompts": 1, "rollout.group": 2,
        "rollout.max_new_tokens": 320, "rollout.min_free_tokens": 16, "validation.every": 100,
    }  # fmt: skip
    taro("train", "taro-7b", *(f"--set={key}={value}" for key, value in small.items()))
    lines = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "reward" in line]
    assert [line["phase"] for line in steps] == ["guided", "free"]
    assert all(line["grad_norm"] is not None for line in steps)
    scores = json.loads(
        taro("eval", "--policy", work / "run" / "export", "--shards", shards, "--max-new-tokens", "16", "--json").stdout
    )
    assert scores["queries"] == 9 and scores["missing"] == 2
    answer = taro(
        "ground", work / "videos" / "3MSZA.mp4", "person turn a light on.", "--policy", work / "run" / "export",
        "--max-new-tokens", "16", "--json", fails=True,
    )  # fmt: skip
    said = json.loads(answer.stdout)
    assert said["moment"] is None and said["tokens"] == 16 and said["duration_s"] == pytest.approx(31.0, abs=0.1)
