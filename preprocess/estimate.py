"""`--dry-run`: what a job will do and cost, before anything is written.

Counts come from the plan. Decoding is measured, on up to `SAMPLE` clips spread over what is left to do; what the models
cost on a GPU is stated, from the constants below, until this machine's own runs are known. The report says which is
which. Slices that are made cost nothing more, and adding features to them no captions. Captions from an endpoint are
counted in requests and tokens, by assumption; nothing is asked. Left out: frame variants, the endpoint's speed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from taro.core.text import one_line
from taro.preprocess.captioners.pictures import image_tokens
from taro.preprocess.captioners.registry import METHODS
from taro.preprocess.config import ASKED, PreprocessConfig
from taro.preprocess.job import Job, Only, open_job
from taro.preprocess.ledger import count_reasons
from taro.preprocess.plan import PlannedClip
from taro.preprocess.slices import decode_jobs
from taro.preprocess.todo import plan_tasks
from taro.preprocess.video.decode import Frames
from taro.preprocess.video.pool import DecodePool

__all__ = ["Estimate", "estimate"]

SAMPLE = 4
TOWER_S = 0.33
"""seconds of a clip of 3584 tokens through a released 7B tower on one H200 (docs/preprocess.md)"""
CAPTION_S = 0.25
"""seconds of a caption of about 40 tokens from a 7B model on one H200, batched by 16: an assumption, not measured"""
SEGMENT_S = 5.0
"""seconds of a segment between change points: an assumption"""
TOKENS = 3584
TIME_TOKENS, CHARACTERS = 5, 4
"""of a frame's time in a request; characters that a token of a prompt stands for: assumptions"""


@dataclass(frozen=True)
class Estimate:
    """What a job will do. inputs to slices: of the whole plan; slices_left, clips_left and all costs: of what is not
    made yet. captions: a guess unless they are given; feature_bytes: at most; decode_hours: measured; model_hours:
    stated constants; sampled: clips that were decoded for the measure, and how many of them failed; variants: how many
    of each query come on top; requests to cost: of an endpoint, without repeated requests. tokens_in: an assumption;
    tokens_out, cost: at most, None where no prices are known."""

    inputs: int
    rows: int
    skipped: int
    videos: int
    clips: int
    slices: int
    slices_left: int
    clips_left: int
    hours_of_video: float
    captions: int
    feature_bytes: int
    decode_hours: float
    model_hours: float
    sampled: int
    failed: int
    reasons: dict[str, int]
    variants: int
    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in self.__dict__.items()}

    def table(self) -> str:
        """Plain text."""
        video = f"{_span(self.hours_of_video)} of video"
        whole = self.slices_left == self.slices
        lines = [
            f"{self.inputs:,} annotation rows: {self.rows:,} to be looked at, {self.skipped:,} skipped already",
            *(f"  skipped {count:>6,}  {one_line(reason)}" for reason, count in self.reasons.items()),
            f"{self.videos:,} videos, {self.clips:,} clips, {self.slices:,} slices" + (f", {video}" if whole else "")]
        if not self.slices_left:
            return "\n".join([*lines, "nothing is left to do"])
        if not whole:
            lines.append(f"{self.slices_left:,} slices are left: {self.clips_left:,} clips, {video}")
        lines += [f"about {self.captions:,} captions", *self._endpoint(),
                  f"at most {self.feature_bytes / 1e9:,.2f} GB of features",
                  f"decoding: {_span(self.decode_hours)} (measured on {self.sampled} clips here"
                  + (f", {self.failed} of which failed)" if self.failed else ")"),
                  f"models: {_span(self.model_hours)} with a 7B policy on one H200 (stated constants, not a measure)",
                  *([f"and {self.variants} frame variants of each query, not counted here"] if self.variants else []),
                  "nothing was written"]
        return "\n".join(lines)

    def _endpoint(self) -> list[str]:
        """What is asked of an endpoint."""
        cost = "" if self.cost is None else f", a cost of at most {self.cost:,.4g}"
        return [f"endpoint: about {self.requests:,} requests, about {self.tokens_in:,} tokens sent (one for 28 x 28 "
                f"pixels: an assumption), at most {self.tokens_out:,} answered{cost}"] if self.requests else []


def _span(hours: float) -> str:
    """For people: hours, or minutes where that reads better."""
    return f"about {hours:,.1f} h" if hours >= 1 else f"about {hours * 60:.1f} min"


def estimate(config: PreprocessConfig, *, only: Only | None = None) -> Estimate:
    """Plans the job without writing, decodes a small sample of the clips that are left, and adds up. `only`: as for
    `taro.preprocess.run.preprocess`. Raises what `open_job` does."""
    job = open_job(config, only=only, save=False)
    plan = job.plan
    tasks = plan_tasks(job, only)
    todo, make = [task.index for task in tasks], [task.index for task in tasks if task.makes]
    left = [clip for index in todo for clip in plan.slice_clips(index)]
    picked = np.unique(np.linspace(0, max(len(left) - 1, 0), min(SAMPLE, len(left))).astype(int))
    sample = [left[int(i)] for i in picked]
    seconds, frames = _decode(job, sample) if sample else (0.0, [])
    mean_s = float(np.mean([f.duration_s for f in frames])) if frames else 0.0
    clips = len(left)
    made = [clip for index in make for clip in plan.slice_clips(index)]
    captions = _captions(job, made, mean_s)
    encoded = make if only is None else todo if only == "features" else []
    size = job.bytes_per_clip(mean_s or None) * sum(len(plan.slice_clips(index)) for index in encoded)
    tokens = size / max(job.bytes_per_clip(), 1) * config.sampling.total_tokens
    asked = captions if config.caption.method == "transformers" else 0
    return Estimate(inputs=plan.inputs, rows=plan.rows, skipped=len(plan.skipped),
                    videos=len({clip.path for clip in plan.clips}), clips=len(plan.clips), slices=len(plan.slices),
                    slices_left=len(todo), clips_left=clips, hours_of_video=mean_s * clips / 3600, captions=captions,
                    feature_bytes=size, decode_hours=seconds / max(len(sample), 1) * clips / 3600,
                    model_hours=(TOWER_S * tokens / TOKENS + asked * CAPTION_S) / 3600, sampled=len(sample),
                    failed=len(sample) - len(frames), reasons=count_reasons(plan.skipped),
                    variants=config.variants.count if job.variants_kind and todo else 0,
                    **_requests(job, frames, clips=len(made), captions=captions))


def _decode(job: Job, sample: list[Any]) -> tuple[float, list[Frames]]:
    """Seconds of wall clock for the sample, workers started, and what came out."""
    with DecodePool(job.config.workers, deadline_s=job.config.decode.deadline_s) as pool:
        list(pool.map(decode_jobs(job, sample[:1]), ahead=1))
        began = time.monotonic()
        results = list(pool.map(decode_jobs(job, sample), ahead=len(sample)))
        seconds = time.monotonic() - began
    return seconds, [result for result in results if isinstance(result, Frames)]


def _captions(job: Job, clips: list[PlannedClip], mean_s: float) -> int:
    caption, segment = job.config.caption, job.config.segment
    given = METHODS[caption.method].given(caption)
    if given is not None:
        return sum(len(given.entries(clip)) for clip in clips)
    if caption.method not in ASKED:
        return 0
    length_s = segment.window_s if segment.method == "uniform" else SEGMENT_S
    return round(max(mean_s / length_s, 1) * len(clips)) if mean_s else len(clips)


def _requests(job: Job, frames: list[Frames], *, clips: int, captions: int) -> dict[str, Any]:
    """What an endpoint is asked: requests, tokens_in, tokens_out, cost; {} where none is."""
    caption = job.config.caption
    if caption.method != "openai" or not clips or not frames:
        return {}
    requests = clips if job.config.segment.method == "captioner" else captions
    images = min(float(np.mean([len(f.times_s) for f in frames])) * clips / requests, caption.endpoint.max_images)
    size = float(np.mean([image_tokens(f.views.shape[1], f.views.shape[2], caption.endpoint.image_px) for f in frames]))
    text = len(str(job.plan.captioner["prompt"])) / CHARACTERS + 4 * TIME_TOKENS
    sent, said = round(requests * (images * (size + TIME_TOKENS) + text)), requests * caption.max_new_tokens
    prices = caption.budget.prices
    return {"requests": requests, "tokens_in": sent, "tokens_out": said,
            "cost": None if prices is None else (sent * prices[0] + said * prices[1]) / 1e6}
