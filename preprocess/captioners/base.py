"""Dense captions: who writes them, and from what.

A captioner answers requests, in batches, one text each; the journal sits between, so that what was answered once is
never asked again. With `segment.method: captioner` a request is a whole clip and its answer brings its own times, in
lines of the form "From 2.0s to 5.5s, ..."; otherwise a request is one segment. Captions from a file or from the
annotations need no request (given.py).

Legend: T sampled frames.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from taro.core.errors import AnnotationError, VideoError
from taro.grounding.moment import Moment
from taro.grounding.prompts import load_template, parse_captions
from taro.grounding.records import DenseCaption
from taro.preprocess.config import CaptionConfig, PreprocessConfig
from taro.preprocess.journal import Journal, question
from taro.preprocess.models import folder_sha256, load_tower_policy, model_folder
from taro.preprocess.video.decode import Frames

if TYPE_CHECKING:
    import torch

__all__ = ["Captioner", "Entry", "Request", "TransformersCaptioner", "answer", "captioner_facts", "captions_file",
           "tidy"]


class Entry(NamedTuple):
    """A caption as it was given; seconds."""

    start_s: float
    end_s: float
    text: str

MAX_TEXT_BYTES = 20_000
"""of one caption, as shards hold it"""


@dataclass(frozen=True)
class Request:
    """A stretch of a clip to describe. `stretch`: seconds of the clip; `whole`: the answer gives its own times."""

    frames: Frames
    stretch: Moment
    whole: bool

    def cut(self) -> tuple[np.ndarray, np.ndarray, float]:
        """(frames, their times from the start of the stretch, its length in seconds); an even number of frames, at
        least 2, the last repeated where it must be."""
        inside = _inside(self.frames.times_s, self.stretch)
        chosen = np.concatenate([inside, inside[-1:]]) if len(inside) % 2 else inside
        times = self.frames.times_s[chosen] - self.stretch.start_s
        return self.frames.views[chosen], times, self.stretch.duration_s


class Captioner(Protocol):
    """Something that describes stretches. `fingerprint`: whatever decides what it says; `prompt`: what it is asked."""

    fingerprint: str
    prompt: str

    def describe(self, requests: Sequence[Request]) -> list[str]:
        """One text a request, in order."""


class TransformersCaptioner:
    """A model folder, in process: its own vision tower, greedy decoding, batched over requests."""

    def __init__(self, config: CaptionConfig, facts: dict[str, Any], device: torch.device, dtype: str) -> None:
        assert config.model is not None
        self.policy = load_tower_policy(model_folder(config.model), device, dtype)
        self.prompt, self.fingerprint = str(facts["prompt"]), str(facts["fingerprint"])
        self._config = config

    def describe(self, requests: Sequence[Request]) -> list[str]:
        """See `Captioner`."""
        from taro.models.sampler import Decoding, generate

        prompts = []
        for request in requests:
            frames, times_s, duration_s = request.cut()
            features = self.policy.encode(frames, times_s, self._config.sampling, duration_s=duration_s)
            prompts.append(self.policy.prompt(features, self.prompt))
        decoding = Decoding(max_new_tokens=self._config.max_new_tokens, temperature=0.0,
                            repetition_penalty=self._config.repetition_penalty)  # fmt: skip
        rollouts = generate(self.policy, prompts, G=1, decoding=decoding)
        return [self.policy.decode(ids[mask]).strip()
                for ids, mask in zip(rollouts.ids_BGR[:, 0], rollouts.mask_BGR[:, 0], strict=True)]  # fmt: skip


def captioner_facts(config: PreprocessConfig, dtype: str) -> dict[str, Any]:
    """What made the captions, for plan and manifest, from files alone: method, model, fingerprint (whatever decides
    what it says), prompt. {} where there are no captions."""
    caption = config.caption
    if caption.method == "none":
        return {}
    if caption.method == "file":
        assert caption.file is not None
        return {"method": "file", "sha256": hashlib.sha256(_bytes(caption.file)).hexdigest()}
    if caption.method == "annotations":
        return {"method": "annotations"}
    from taro.models.folder import template_name

    assert caption.model is not None
    folder = model_folder(caption.model)
    template = load_template(caption.template or template_name(folder) or "taro")
    whole = config.segment.method == "captioner"
    prompt = caption.prompt or (template.caption_prompt if whole else template.segment_prompt)
    said = caption.model_dump(mode="json", include={"max_new_tokens", "repetition_penalty", "sampling"})
    digest = hashlib.sha256(json.dumps([folder_sha256(folder), said, dtype], sort_keys=True).encode()).hexdigest()
    return {"method": "transformers", "model": folder.name, "fingerprint": f"transformers:{digest[:32]}",
            "prompt": prompt, "prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest()}  # fmt: skip


def answer(
    requests: Sequence[Request], captioner: Captioner, config: PreprocessConfig, journal: Journal
) -> list[list[DenseCaption]]:
    """Captions of every request, times in seconds of the clip: from the journal, or from the captioner and then the
    journal. Batches hold consecutive requests that the journal does not know."""
    asked = []
    for request in requests:
        clip = Moment(request.frames.clip.start_s, request.frames.clip.end_s)
        digest = hashlib.sha256(captioner.prompt.encode()).hexdigest()
        asked.append(question(request.frames.facts.sha256, clip, request.stretch, captioner.fingerprint, digest))
    # Two segments are never the same question, but one clip may be in a slice under two names.
    new = [i for i, what in enumerate(asked) if journal.get(what) is None and asked.index(what) == i]
    for start in range(0, len(new), config.caption.batch):
        batch = new[start : start + config.caption.batch]
        texts = captioner.describe([requests[i] for i in batch])
        journal.add((asked[i], text) for i, text in zip(batch, texts, strict=True))
    return [_read(request, journal.get(what) or "", config) for request, what in zip(requests, asked, strict=True)]


def _read(request: Request, text: str, config: PreprocessConfig) -> list[DenseCaption]:
    if request.whole:
        found = parse_captions(text)
    else:
        line = " ".join(text.split())
        found = [DenseCaption(start_s=request.stretch.start_s, end_s=request.stretch.end_s, text=line)] if line else []
    return tidy(found, request.frames.duration_s, round_s=config.segment.round_s if request.whole else None)


def tidy(captions: Sequence[DenseCaption], duration_s: float, *, round_s: float | None = None) -> list[DenseCaption]:
    """Captions inside the clip, in chronological order, each once: times rounded to `round_s`, clipped to
    `[0, duration_s]`; what is empty after that is left out."""
    kept: dict[tuple[float, float, str], DenseCaption] = {}
    for caption in captions:
        start_s, end_s = caption.start_s, caption.end_s
        if round_s is not None:
            start_s, end_s = round(start_s / round_s) * round_s, round(end_s / round_s) * round_s
        moment = Moment(round(start_s, 6), round(end_s, 6)).clip(duration_s)
        if moment.duration_s > 0 and caption.text.strip():
            new = DenseCaption(start_s=moment.start_s, end_s=moment.end_s, text=caption.text.strip())
            kept.setdefault((new.start_s, new.end_s, new.text), new)
    return [kept[place] for place in sorted(kept)]


def captions_file(path: Path) -> dict[str, list[Entry]]:
    """Entries by video name from a JSONL file: {"video": ..., "captions": [{"start_s", "end_s", "text"}, ...]}.
    Raises AnnotationError that names the line."""
    found: dict[str, list[Entry]] = {}
    for number, line in enumerate(_bytes(path).decode("utf-8", "replace").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
            entries = [_entry(caption) for caption in row["captions"]]
            found.setdefault(str(row["video"]), []).extend(entries)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise AnnotationError(f'{path}, line {number}: expected {{"video": ..., "captions": [{{"start_s", "end_s", '
                                  f'"text"}}]}}; {type(error).__name__}: {str(error)[:200]}') from None  # fmt: skip
    return found


def _entry(caption: Any) -> Entry:
    entry = Entry(float(caption["start_s"]), float(caption["end_s"]), caption["text"])
    finite = math.isfinite(entry.start_s) and math.isfinite(entry.end_s)
    if not (finite and isinstance(entry.text, str) and len(entry.text.encode()) <= MAX_TEXT_BYTES):  # encodes: is text
        raise ValueError(f"a caption needs two finite times and a text of at most {MAX_TEXT_BYTES:,} bytes, got "
                         f"{str(caption)[:100]!a}")
    return entry


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AnnotationError(f"caption.file {path}: cannot be read ({error.strerror}); expected JSONL") from None


def _inside(times_s: np.ndarray, stretch: Moment) -> np.ndarray:
    """Indices of the frames in a stretch; the nearest one where none lies inside."""
    inside = np.flatnonzero((times_s >= stretch.start_s - 1e-6) & (times_s < stretch.end_s - 1e-6))
    if len(inside):
        return inside
    if not len(times_s):
        raise VideoError("a clip without frames cannot be described", reason="no frames")
    return np.array([int(np.abs(times_s - (stretch.start_s + stretch.end_s) / 2).argmin())])

