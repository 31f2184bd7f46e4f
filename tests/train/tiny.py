"""A tiny policy that can answer a little, and a tiny shard set of clips for it: real parts at hand size."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml

from taro.core import draws
from taro.grounding.prompts import PromptTemplate
from taro.grounding.records import CandidatePaths, ClipRecord, ClipSpan, DenseCaption, QueryRecord, VideoFacts
from taro.models.export import export_checkpoint
from taro.models.features import FrameSampling, VideoFeatures, patch_times_s
from taro.models.load import load_policy
from taro.models.logprobs import score
from taro.models.policy import Policy
from taro.shards.manifest import build_manifest, write_manifest
from taro.shards.writer import SliceWriter
from taro.train.config import OptimizerConfig
from taro.train.optimizer.optimizer import Optimizer
from tests.helpers_models import tiny_qwen2_5_vl

TEMPLATE = PromptTemplate(name="tiny", version=1, text="{query}?", no_think_text="{query}!",
                          reasoning_opening="{query}", caption_prompt="all?")
SAMPLING = FrameSampling()
WIDTH = 32
CLIPS = 6


def response(start_s: float, end_s: float, query: str = "ab") -> str:
    return (f"<think>\n{query}\nFrom {start_s:.1f}s to {end_s:.1f}s, go\n</think>\n"
            f"<answer>{start_s:.1f}s to {end_s:.1f}s</answer>")


def clip_record(number: int, split: str) -> tuple[ClipRecord, VideoFeatures]:
    """An 8 s clip of 4 patches with 4 tokens each, 4 captions, one query with 8 paths."""
    generator = draws.rng("tiny clip", number)
    times_s = [i + 0.25 * (i % 2) for i in range(8)]
    start = int(generator.integers(0, 5))
    captions = [DenseCaption(start_s=s, end_s=s + 2.0, text="go") for s in (0.0, 2.0, 4.0, 6.0)]
    paths = [[0], [1], [2], [3], [0, 1], [1, 2], [2, 3], [0, 3]]
    record = ClipRecord(
        key=f"clip-{number:02d}", clip=ClipSpan(start_s=0.0, end_s=8.0), times_s=times_s, captions=captions,
        video=VideoFacts(path_hint=f"{number}.mp4", sha256=hashlib.sha256(bytes([number])).hexdigest(), duration_s=8.0,
                         frames=64, fps=8.0, width=56, height=56, decoder="pyav", frames_sha256="0" * 64),
        queries=[QueryRecord(id=f"q{number}", text="ab", split=split, windows_s=[(start, start + 3.0)],
                             paths=CandidatePaths(random=paths, overlap=paths[:2]))])
    main_SND = torch.from_numpy(generator.standard_normal((4, 4, WIDTH))).float() * 0.5
    return record, VideoFeatures(main_SND, patch_times_s(np.array(times_s)), (4, 4, 4), 2.0)


def tiny_shards(root: Path, policy: Policy, *, clips: int = CLIPS, only: Sequence[int] | None = None) -> Path:
    """`clips` training clips and 2 of split `val`, or `only` some of them; features named as this policy's tower would
    have made them."""
    encoder, numbers = policy.fingerprint(SAMPLING, "float32"), range(clips + 2) if only is None else only
    with SliceWriter(root, 0, kinds=("paths", f"features/{encoder.name}")) as writer:
        for number in numbers:
            record, features = clip_record(number, "train" if number < clips else "val")
            writer.add_clip(record, None, {encoder.name: features}, {})
        writer.commit()
    write_manifest(root, build_manifest(root, inputs=len(numbers), skipped=0, captions=4 * len(numbers),
                                        name="tiny", encoders=[encoder]))
    return root


def tiny_policy(folder: Path, *, steps: int = 120) -> Path:
    """A random Qwen2.5-VL taught the form of a response with random times: its rollouts differ in reward."""
    base = tiny_qwen2_5_vl(folder / "base", width=WIDTH)
    policy = load_policy(base, trainable=True)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2, weight_decay=0.0)
    for step in range(steps):
        generator = draws.rng("tiny sft", step)
        prompts, ids_BGR = [], []
        for number in generator.integers(0, CLIPS, size=2):
            prompts.append(policy.prompt(clip_record(int(number), "train")[1], TEMPLATE.user_text("ab")))
            starts = generator.integers(0, 5, size=4)
            ids_BGR.append([[*policy.encode_text(response(s, s + 3)), policy.eos_ids[0]] for s in starts])
        ids = torch.tensor(ids_BGR)
        loss = -score(policy, prompts, ids, torch.ones_like(ids, dtype=torch.bool)).mean()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
    export_checkpoint(policy, base, folder / "policy")
    (folder / "policy" / "template.yaml").write_text(yaml.safe_dump(TEMPLATE.model_dump(mode="json")))
    (folder / "policy" / "taro.json").write_text('{"template": "template.yaml"}')
    return folder / "policy"


class Sgd(Optimizer):
    """The gradients of the real optimizer, spent plainly: a rate of 1 moves each weight by minus its gradient."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy.named_parameters(), OptimizerConfig(grad_clip=1e9))

    @torch.no_grad()
    def step(self, lr: float, scale: float = 1.0) -> None:
        for slot in self.slots:
            gradient = slot.slice_of_gradient()
            assert gradient is not None
            slot.weight.sub_(gradient, alpha=lr * scale)
