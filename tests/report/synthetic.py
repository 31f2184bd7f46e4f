"""A run folder, a shard set and evaluations as the other parts write them, with numbers made by hand and by seed."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from taro.core import draws
from taro.grounding.moment import Moment, iou
from taro.grounding.records import CandidatePaths, ClipRecord, ClipSpan, DenseCaption, QueryRecord, VideoFacts
from taro.metrics.answers import AnswerRow
from taro.shards.manifest import build_manifest, write_manifest, write_skipped
from taro.shards.writer import SliceWriter

HOSTILE = '</pre></svg><script>document.title="owned"</script><img src=x onerror="document.title=1"> \u202egnp.exe'
DURATION_S = 24.0
WORDS = ("the red square blinks", "the blue circle enters", "the green cross grows", "the yellow triangle shakes")


def sheet(number: int) -> bytes:
    """Twelve frames of 84 px side by side, as one JPEG."""
    image = Image.new("RGB", (12 * 84, 84), (232, 232, 226))
    pen = ImageDraw.Draw(image)
    for frame in range(12):
        x = frame * 84 + 12 + (frame * 5 + number * 9) % 40
        pen.rectangle((x, 20, x + 18, 38), fill=(200, 50, 50))
        pen.ellipse((frame * 84 + 40, 50, frame * 84 + 58, 68), fill=(60, 90, 200))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return out.getvalue()


def clip_record(number: int, *, hostile: bool = False) -> ClipRecord:
    """A 24 s clip with four captions and two queries; with `hostile`, texts that try to leave their place."""
    captions = [DenseCaption(start_s=2.0 + 5 * i, end_s=5.5 + 5 * i, text=HOSTILE if hostile else f"{word}.")
                for i, word in enumerate(WORDS)]
    queries = [QueryRecord(id=f"q{number}-{i}", text=HOSTILE if hostile else WORDS[i],
                           windows_s=[(2.0 + 5 * i, 5.5 + 5 * i)],
                           paths=CandidatePaths(random=[[0, 2], [1], [0, 1, 3]])) for i in range(2)]
    return ClipRecord(
        key=f"clip-{number:02d}", clip=ClipSpan(start_s=0.0, end_s=DURATION_S), captions=captions, queries=queries,
        times_s=[0.0, 0.5], video=VideoFacts(
            path_hint=f"{number}.mp4", sha256=hashlib.sha256(bytes([number])).hexdigest(), duration_s=DURATION_S,
            frames=192, fps=8.0, width=84, height=84, decoder="pyav", frames_sha256="0" * 64))


def shard_set(root: Path, *, clips: int = 8, skipped: int = 1, hostile: tuple[int, ...] = ()) -> Path:
    """A set of `clips` clips with contact sheets, and `skipped` rows that were left out."""
    with SliceWriter(root, 0, kinds=("paths",)) as writer:
        for number in range(clips):
            writer.add_clip(clip_record(number, hostile=number in hostile), sheet(number), {}, {})
        writer.commit()
    write_skipped(root, [{"row_id": f"gone-{i}", "line": i, "video": "gone.mp4", "key": "", "stage": "plan",
                          "reason": "missing video", "detail": "", "transient": False} for i in range(skipped)])
    write_manifest(root, build_manifest(root, inputs=2 * clips + skipped, skipped=skipped, captions=4 * clips,
                                        name="synthetic"))
    return root


def answer(window: Moment, offset_s: float, caption: str, *, timed: bool) -> tuple[str, Moment]:
    """A response whose answer is the window moved by `offset_s`."""
    moment = Moment(max(window.start_s + offset_s, 0.0), max(window.end_s + offset_s, 0.0))
    line = f"From {moment.start_s:.1f}s to {moment.end_s:.1f}s, {caption}\n" if timed else ""
    return (f"<think>\nI need to find the specific moment.\n{line}</think>\n"
            f"<answer>{moment.start_s:.1f}s to {moment.end_s:.1f}s</answer>"), moment


def eval_rows(after: bool, *, clips: int = 8, hostile: tuple[int, ...] = ()) -> list[AnswerRow]:
    """One row a query; after training answers are nearer, one query gets worse, one answer cannot be read."""
    rows = []
    for number in range(clips):
        for index, query in enumerate(clip_record(number, hostile=number in hostile).queries):
            offset_s = float(draws.rng("synthetic", number, index).uniform(1.0, 6.0))
            worse = (number, index) == (3, 1)
            offset_s *= 0.2 if after != worse else 1.0
            text, moment = answer(query.windows[0], offset_s, query.text, timed=after)
            unread = (number, index) == (5, 0) and not after
            rows.append(AnswerRow(f"clip-{number:02d}", query.id, query.text, f"{number}.mp4",
                                hashlib.sha256(bytes([number])).hexdigest(),
                                "I do not know" if unread else text, None if unread else moment, query.windows,
                                DURATION_S, 40, True))
    return rows


def run_folder(root: Path, *, steps: int = 50, guided: int = 15, group: int = 8) -> Path:
    """config.yaml, metrics.jsonl and rollouts of a run that went well."""
    (root / "rollouts").mkdir(parents=True)
    (root / "config.yaml").write_text("policy: sandbox:policy\nshards: /somewhere/private/shards\nout: /somewhere/run\n"
                                      "seed: 7\nlength: {unit: steps, amount: 50}\n")
    lines = []
    for step in range(steps):
        noise = draws.rng("synthetic run", step).normal(size=8)
        rise = 1 - np.exp(-step / 18)
        tiou = float(np.clip(0.16 + 0.42 * rise + 0.05 * noise[0], 0, 1))
        form = float(np.clip(0.97 + 0.03 * rise + 0.01 * noise[1], 0, 1))
        bonus = float(np.clip(0.01 + 0.08 * rise + 0.01 * noise[2], 0, 0.3))
        lines.append({
            "step": step, "epoch": 0, "phase": "guided" if step < guided else "free", "reward": form + tiou + bonus,
            "format": form, "tiou": tiou, "iou": tiou, "bonus": bonus,
            "drop_mean": 0.05 + 0.25 * rise + 0.02 * noise[3], "drop_std": 0.1, "drop_above": 0.5,
            "timestamps": min(1.0, 0.2 + step / 20), "first_span": 0.5 * rise,
            "zero_variance": 0.0, "kl": 0.0, "clip_fraction": 0.0, "length": 60 + 10 * rise, "truncated": 0.01,
            "logprob_gap": 1e-6, "loss": 0.1 * noise[4], "grad_norm": 0.4 + 0.1 * abs(noise[5]), "lr": 3e-5,
            "tokens_per_s": 900.0, "memory_gib": 1.0, "seconds": 2.0})
        (root / "rollouts" / f"step-{step:06d}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rollout_rows(step, step < guided, group)))
    (root / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def rollout_rows(step: int, guided: bool, group: int) -> list[dict[str, Any]]:
    """Two groups: one whose rollouts all differ, one whose rewards are equal."""
    rows = []
    for number in range(2):
        window = Moment(2.0, 5.5)
        for g in range(group):
            text, moment = answer(window, 0.5 * g * (1 - number), WORDS[0], timed=True)
            hit = iou(moment, window)
            bonus = 0.3 if hit >= 0.7 and g % 2 == 0 else 0.0
            rows.append({"step": step, "key": f"clip-{number:02d}", "query_id": f"q{number}-0", "query": WORDS[0],
                         "g": g, "guided": guided, "text": text, "forced_tokens": 12 if guided else 0,
                         "reward": 1 + hit + bonus, "format": 1.0, "tiou": hit, "iou": hit, "bonus": bonus,
                         "drop": None if g == 5 else 0.05 * g, "advantage": 1.0 - 0.3 * g if number == 0 else 0.0,
                         "predicted": None if g == 7 else [moment.start_s, moment.end_s],
                         "windows": [[window.start_s, window.end_s]], "duration_s": DURATION_S})
    return rows
