"""Training on a GPU as it runs there: bf16, the sandbox's policies of both families, worlds encoded by their towers.

Needs no decoding of annotations and no parquet: the set is written with the shard writer. Run with the other GPU tests.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from taro.grounding.records import CandidatePaths, ClipRecord, ClipSpan, DenseCaption, QueryRecord, VideoFacts
from taro.models.features import FrameSampling
from taro.models.load import load_policy
from taro.sandbox import weights_folder
from taro.sandbox.tasks import shown_times_s
from taro.sandbox.video import decode_cells, encode_video
from taro.sandbox.world import make_world
from taro.shards.manifest import build_manifest, write_manifest
from taro.shards.writer import SliceWriter
from taro.train.config import TrainConfig
from taro.train.loop import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
]

SAMPLING = FrameSampling()
WORLDS = 8
STEPS = 4


def world_shards(root: Path, name: str) -> Path:
    """Worlds with their true captions, one query each, encoded in fp32 on the GPU."""
    policy = load_policy(weights_folder(name), tower=True, device="cuda")
    encoder = policy.fingerprint(SAMPLING, "float32")
    with SliceWriter(root, 0, kinds=("paths", f"features/{encoder.name}")) as writer:
        for number in range(WORLDS):
            world = make_world(2_990_000 + number)
            video = encode_video(world)
            times_s = shown_times_s(world.cells)
            features = policy.encode(decode_cells(io.BytesIO(video)), times_s, SAMPLING, duration_s=world.duration_s)
            captions = [DenseCaption(start_s=m.start_s, end_s=m.end_s, text=text) for m, text in world.captions]
            paths = [[place] for place in range(len(captions))]
            event = world.events[0].moment
            record = ClipRecord(
                key=f"world-{number}", clip=ClipSpan(start_s=0.0, end_s=world.duration_s), times_s=times_s.tolist(),
                captions=captions,
                video=VideoFacts(path_hint=f"{number}.mp4", sha256=hashlib.sha256(video).hexdigest(), fps=8.0, width=84,
                                 height=84, duration_s=world.duration_s, frames=world.cells * 4, decoder="pyav",
                                 frames_sha256="0" * 64),
                queries=[QueryRecord(id=f"q{number}", text=world.query(0), split="train",
                                     windows_s=[(event.start_s, event.end_s)],
                                     paths=CandidatePaths(random=paths, overlap=paths))])  # fmt: skip
            writer.add_clip(record, None, {encoder.name: features}, {})
        writer.commit()
    write_manifest(root, build_manifest(root, inputs=WORLDS, skipped=0, captions=0, name="worlds", encoders=[encoder]))
    return root


def run(name: str, shards: Path, out: Path, **changes: Any) -> list[dict[str, Any]]:
    settings: dict[str, Any] = {
        "policy": f"sandbox:{name}", "shards": str(shards), "out": str(out), "device": "cuda",
        "length": {"unit": "steps", "amount": STEPS}, "curriculum": {"unit": "steps", "amount": 2},
        "rollout": {"prompts": 4, "group": 8, "max_new_tokens": 96, "min_free_tokens": 24},
        "optimizer": {"lr": 1e-4, "weight_decay": 0.0, "micro_prompts": 4}, **changes,
    }  # fmt: skip
    train(TrainConfig.model_validate(settings))
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["policy", "policy-qwen3-vl"])
def test_bf16_trains_scores_as_it_decodes_and_exports(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    shards = world_shards(tmp_path / "shards", name)
    lines = run(name, shards, tmp_path / "run")
    assert [line["phase"] for line in lines] == ["guided", "guided", "free", "free"]
    for line in lines:
        assert line["format"] > 0.8 and line["grad_norm"] > 0 and line["memory_gib"] > 0
        assert line["logprob_gap"] < 0.05, f"step {line['step']}: decoding and scoring differ by {line['logprob_gap']}"
    start = load_policy(weights_folder(name))
    trained = load_policy(tmp_path / "run" / "export")
    assert any(not torch.equal(a, b) for a, b in zip(start.parameters(), trained.parameters(), strict=True))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "export", dtype=torch.bfloat16)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


@pytest.mark.parametrize("name", ["policy", "policy-qwen3-vl"])
def test_a_first_step_in_fp32_is_that_of_the_cpu(name: str, tmp_path: Path) -> None:
    """Before any update: the same draws, nearly all the same tokens, so nearly the same rewards and drops."""
    shards = world_shards(tmp_path / "shards", name)
    length = {"unit": "steps", "amount": 1}
    gpu = run(name, shards, tmp_path / "gpu", dtype="float32", length=length)[0]
    cpu = run(name, shards, tmp_path / "cpu", dtype="float32", length=length, device="cpu")[0]
    for key, bound in (("tiou", 0.1), ("reward", 0.2), ("drop_mean", 0.1), ("length", 4.0)):
        assert abs(gpu[key] - cpu[key]) <= bound, f"{key}: {gpu[key]} on the GPU, {cpu[key]} on the CPU"
