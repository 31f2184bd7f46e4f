"""Dense captions: who writes them, and from what.

A captioner answers requests, in batches, one text each; the journal sits between, so that what was answered once is
never asked again. With `segment.method: captioner` a request is a whole clip and its answer brings its own times, in
lines of the form "From 2.0s to 5.5s, ..."; otherwise a request is one segment. Captions from a file or from the
annotations need no request.

Legend: T sampled frames.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from pydantic import ValidationError

from preprocess.config import CaptionConfig, PreprocessConfig
from preprocess.decode import Frames
from preprocess.journal import Journal, question
from preprocess.models import folder_sha256, load_tower_policy, model_folder
from taro.errors import AnnotationError, VideoError
from taro.features import VideoFeatures
from taro.moment import Moment
from taro.prompts import PromptTemplate, load_template, parse_captions
from taro.records import DenseCaption

if TYPE_CHECKING:
    import torch

__all__ = ["Captioner", "Request", "TransformersCaptioner", "answer", "captioner_of", "captions_file", "tidy"]


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
    """Something that describes stretches. `fingerprint`: whatever decides what it says."""

    fingerprint: str
    template: PromptTemplate

    def describe(self, requests: Sequence[Request]) -> list[str]:
        """One text a request, in order."""


class TransformersCaptioner:
    """A model folder, in process: its own vision tower, greedy decoding, batched over requests."""

    def __init__(self, config: CaptionConfig, device: torch.device, dtype: str) -> None:
        assert config.model is not None
        folder = model_folder(config.model)
        self.policy = load_tower_policy(folder, device, dtype)
        self.template = load_template(config.template or self.policy.template_name or "taro")
        self._config = config
        said = config.model_dump(mode="json", exclude={"batch", "file", "model", "template", "method"})
        said["dtype"] = dtype
        digest = hashlib.sha256(json.dumps([folder_sha256(folder), said], sort_keys=True).encode()).hexdigest()
        self.fingerprint = f"transformers:{digest[:32]}"

    def describe(self, requests: Sequence[Request]) -> list[str]:
        """See `Captioner`."""
        from taro.mllm import Decoding, generate

        prompts = []
        for request in requests:
            features = self._encode(request)
            prompts.append(self.policy.prompt(features, prompt_text(self._config, self.template, whole=request.whole)))
        decoding = Decoding(max_new_tokens=self._config.max_new_tokens, temperature=0.0,
                            repetition_penalty=self._config.repetition_penalty)  # fmt: skip
        rollouts = generate(self.policy, prompts, G=1, decoding=decoding)
        return [self.policy.decode(ids[mask]).strip()
                for ids, mask in zip(rollouts.ids_BGR[:, 0], rollouts.mask_BGR[:, 0], strict=True)]  # fmt: skip

    def _encode(self, request: Request) -> VideoFeatures:
        frames, times_s, duration_s = request.cut()
        return self.policy.encode(frames, times_s, self._config.sampling, duration_s=duration_s)


def prompt_text(config: CaptionConfig, template: PromptTemplate, *, whole: bool) -> str:
    """What the captioner is asked."""
    return config.prompt or (template.caption_prompt if whole else template.segment_prompt)


def captioner_of(config: PreprocessConfig, device: torch.device, dtype: str) -> Captioner | None:
    """The captioner that a job asks, None where it asks none."""
    if config.caption.method != "transformers":
        return None
    return TransformersCaptioner(config.caption, device, dtype)


def answer(
    requests: Sequence[Request], captioner: Captioner, config: PreprocessConfig, journal: Journal
) -> list[list[DenseCaption]]:
    """Captions of every request, times in seconds of the clip: from the journal, or from the captioner and then the
    journal. Batches hold consecutive requests that the journal does not know."""
    asked = []
    for request in requests:
        prompt = prompt_text(config.caption, captioner.template, whole=request.whole)
        clip = Moment(request.frames.clip.start_s, request.frames.clip.end_s)
        digest = hashlib.sha256(prompt.encode()).hexdigest()
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


def captions_file(path: Path) -> dict[str, list[DenseCaption]]:
    """Captions by video name from a JSONL file: {"video": ..., "captions": [{"start_s", "end_s", "text"}, ...]}.
    Raises AnnotationError that names the line."""
    found: dict[str, list[DenseCaption]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(f"caption.file {path}: cannot be read ({type(error).__name__}); expected JSONL") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
            captions = [DenseCaption(**caption) for caption in row["captions"]]
            found.setdefault(str(row["video"]), []).extend(captions)
        except (json.JSONDecodeError, ValidationError, KeyError, TypeError) as error:
            raise AnnotationError(f'{path}, line {number}: expected {{"video": ..., "captions": [{{"start_s", "end_s", '
                                  f'"text"}}]}}; {type(error).__name__}: {str(error)[:200]}') from None  # fmt: skip
    return found


def _inside(times_s: np.ndarray, stretch: Moment) -> np.ndarray:
    """Indices of the frames in a stretch; the nearest one where none lies inside."""
    inside = np.flatnonzero((times_s >= stretch.start_s - 1e-6) & (times_s < stretch.end_s - 1e-6))
    if len(inside):
        return inside
    if not len(times_s):
        raise VideoError("a clip without frames cannot be described", reason="no frames")
    return np.array([int(np.abs(times_s - (stretch.start_s + stretch.end_s) / 2).argmin())])

