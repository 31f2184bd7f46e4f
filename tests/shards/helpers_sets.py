"""Hand-sized shard sets for tests: every number is a function of the clip's number."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from taro.grounding.records import CandidatePaths, ClipRecord, ClipSpan, DenseCaption, QueryRecord, VideoFacts
from taro.models.features import EncoderFingerprint, FrameSampling, VideoFeatures, patch_times_s
from taro.shards.format import ClipEncoder, clip_key
from taro.shards.manifest import build_manifest, read_entries, read_sidecar, write_manifest, write_skipped
from taro.shards.reader import open_shards
from taro.shards.tar import TarWriter
from taro.shards.variants import FrameVariants, VariantSettings, wanted_groups
from taro.shards.writer import SliceWriter

SHEET = bytes.fromhex("ffd8ffe0") + b"not a whole JPEG, but it begins like one"
FINGERPRINT = EncoderFingerprint(family="qwen2_5_vl", model_id="tiny", tower_sha256="0" * 64, dtype="float32",
                                 sampling=FrameSampling(), size="tiny")  # fmt: skip
CLIP_NAME = "clip-tiny-00000000"


def fingerprint(digit: str = "0", dtype: str = "float32") -> EncoderFingerprint:
    """A fingerprint whose tower's digest is 64 times `digit`."""
    return FINGERPRINT.model_copy(update={"tower_sha256": digit * 64, "dtype": dtype})


def record(number: int, *, queries: int = 2, patches: int = 4, captions: int = 3) -> ClipRecord:
    """Clip `number`: frames at 0.1, 0.6, 1.1, ... seconds."""
    times_s = [0.1 + 0.5 * index for index in range(2 * patches)]
    video = VideoFacts(path_hint=f"v{number}.mp4", sha256=f"{number:064x}", duration_s=patches * 1.0, frames=120,
                       fps=30.0, width=84, height=56, decoder="pyav", frames_sha256=f"{number + 1:064x}")  # fmt: skip
    caps = [DenseCaption(start_s=i, end_s=i + 1.5, text=f"event {i} of {number}", alignment=0.25)
            for i in range(captions)]  # fmt: skip
    asked = [
        QueryRecord(id=f"{number}.{index}", text=f"the {index} event", split="val" if index else "train",
                    windows_s=[(0.5 * index, 0.5 * index + 1.0)], difficulty=10.0 * number if index else None,
                    paths=CandidatePaths(random=[[0], [0, 2]] if captions == 3 else []))
        for index in range(queries)
    ]  # fmt: skip
    return ClipRecord(key=clip_key(f"v{number}.mp4", None), video=video, clip=ClipSpan(start_s=0, end_s=patches * 1.0),
                      times_s=times_s, captions=caps, queries=asked)  # fmt: skip


def features(number: int, *, patches: int = 4, levels: int = 0, dtype: torch.dtype = torch.float32) -> VideoFeatures:
    """[patches, 4, 6] numbers that name the clip, the patch, the token and the channel."""
    main = torch.arange(patches * 24, dtype=torch.float64).reshape(patches, 4, 6).add(1000 * number).to(dtype)
    times_S = patch_times_s(np.array([0.1 + 0.5 * index for index in range(2 * patches)]))
    return VideoFeatures(main, times_S, (patches, 4, 4), 1.0, tuple(main + level + 1 for level in range(levels)))


def variants(clip: ClipRecord, *, levels: int = 0, seed: int = 0) -> FrameVariants:
    """Two variants of each query's windows by hand: frames 0 and 1 changed places; frames 0 1 2 3 became 2 3 1 0."""
    groups = wanted_groups(clip)
    swaps = [(0, 0, 1, 0), (1, 0, 2, 3), (1, 1, 1, 0)]
    rows = np.array([(group, *swap) for group in range(len(groups)) for swap in swaps], dtype=np.int64)
    number = int(clip.video.sha256, 16)
    main = torch.arange(len(rows) * 24.0).reshape(-1, 4, 6).sub(1000 * number + 1 + seed)
    return FrameVariants(VariantSettings(2, 1.0, seed), tuple(groups), rows, main,
                         tuple(main - level - 1 for level in range(levels)))


def add_variants(root: Path, *, seed: int = 0, but: frozenset[int] = frozenset()) -> None:
    """Adds `variants` of every clip to a set of `write_set` (but to the clips numbered `but`)."""
    source = open_shards(root)
    for entry in [entry for entry in source.manifest.shards if entry.kind == "paths"]:
        with SliceWriter(root, entry.index, kinds=[f"variants/{FINGERPRINT.name}"]) as writer:
            for one in read_sidecar(source.store, entry).records:
                clip = source.clip(one.key)
                made = None if int(clip.video.sha256, 16) in but else variants(clip, seed=seed)
                writer.add_clip(clip, None, {}, {}, {FINGERPRINT.name: made})
            writer.commit()
    held = source.manifest
    write_manifest(root, held.model_copy(update={"shards": read_entries(root)}))


def write_set(root: Path, slices: list[list[int]], *, encoders: dict[str, EncoderFingerprint] | None = None,
              clip: bool = False, skipped: int = 1, thumbnails: bool = True) -> None:
    """A whole set with the clips named, two queries each; `encoders` by dtype name."""
    encoders = {"float32": FINGERPRINT} if encoders is None else encoders
    kinds = ["paths", *(f"features/{one.name}" for one in encoders.values()), *([f"clip/{CLIP_NAME}"] if clip else [])]
    for index, numbers in enumerate(slices):
        with SliceWriter(root, index, kinds=kinds) as writer:
            for clip_record in sorted((record(number) for number in numbers), key=lambda one: one.key):
                number = int(clip_record.video.sha256, 16)
                writer.add_clip(
                    clip_record, SHEET if thumbnails else None,
                    {one.name: features(number, dtype=getattr(torch, name)) for name, one in encoders.items()},
                    {CLIP_NAME: torch.full((8, 3), float(number))} if clip else {})  # fmt: skip
            writer.commit()
    write_skipped(root, [{"row_id": str(i), "line": i, "video": "gone.mp4", "key": "", "stage": "plan",
                          "reason": "missing", "detail": "", "transient": False} for i in range(skipped)])  # fmt: skip
    clips = sum(len(numbers) for numbers in slices)
    manifest = build_manifest(
        root, inputs=2 * clips + skipped, skipped=skipped, captions=3 * clips, name="tiny", taro_version="0",
        encoders=list(encoders.values()), config={"thumbnails": thumbnails},
        clip_encoders=[ClipEncoder(name=CLIP_NAME, model="tiny")] if clip else [])  # fmt: skip
    write_manifest(root, manifest)


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> str:
    """A shard at `path` from (name, data), in any order; returns its sha256."""
    with path.open("wb") as file:
        writer = TarWriter(file)
        for (key, _, ext), data in sorted((name.partition("."), data) for name, data in members):
            writer.add(key, ext, data)
        return writer.close()
