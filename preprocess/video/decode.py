"""Sampled frames of a clip, by timestamp, with the facts of their file.

Which frames: `taro.models.features.sample_by_time` over the frames that the clip shows (docs/method.md, "frames").
Which decoder: PyAV, which says which frames are corrupt; `decord` where it is right (preprocess/video/decord.py), PyAV
the rest. `auto` is PyAV: decord is hardly faster (docs/log.md) and returns damaged frames without a word.

Frames are known by their timestamps before they are decoded. Should decoding show others than the packets did (data
is missing in the middle; timestamps in the order of storage), every frame is counted by decoding, and the clip is
decoded again by place: what comes out always equals a plain decode from the start.

A clip whose frames would not fit `MAX_FRAME_BYTES` is resized while it is decoded, frame by frame, by the same function
that the encoder uses, so its features stay the same; CLIP and contact sheets then see a smaller view.

This module runs inside the worker processes of pool.py; it needs no model and imports torch only to resize.

Legend: T sampled frames, H, W pixels, C = 3 (RGB)."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from taro.core.errors import VideoError
from taro.core.files import file_sha256
from taro.grounding.moment import Moment, part_of_file
from taro.grounding.records import ClipSpan, VideoFacts
from taro.models.features import FrameSampling, resized_hw, sample_by_time, time_error_s
from taro.preprocess.video import decord as decord_reader
from taro.preprocess.video.inspect import Inspection, cause, inspect_video, opened

__all__ = ["MAX_FRAME_BYTES", "MAX_VIEW_PIXELS", "DecodeJob", "Decoder", "Frames", "decode_clip", "most_frame_bytes"]

Decoder = Literal["auto", "pyav", "decord"]

MAX_FRAME_BYTES = 128 * 2**20
"""bytes of frames that a clip may hold at their own size"""
VIEW_PX = 224
"""shorter side of the frames that CLIP and contact sheets see of a clip over the bound"""
MAX_VIEW_PIXELS = 16 * VIEW_PX**2
"""of such a frame: a long, thin one is no larger"""
SEEK_MARGIN_S = 10.0
"""how far before a late clip decoding starts, so that no frame leans on one that was not decoded"""


@dataclass(frozen=True)
class DecodeJob:
    """One clip to decode. `clip`: seconds of the file, None for all of it; `size`: bytes that the plan saw, None to
    skip the comparison; `factor`: side of a merged patch, for clips over the bound."""

    path: Path
    sampling: FrameSampling
    clip: Moment | None = None
    decoder: Decoder = "auto"
    size: int | None = None
    factor: int = 28
    max_frame_bytes: int = MAX_FRAME_BYTES
    may_be_cut: bool = False
    """the file may hold the clip alone already; its length decides"""


@dataclass(frozen=True)
class Frames:
    """Sampled frames of a clip. frames_THWC: uint8, for the tower; views_THWC: for CLIP and contact sheets, None
    where they are the same; times_s: true times [T] from the start of the clip; clip: its span in the file."""

    frames_THWC: np.ndarray
    times_s: np.ndarray
    facts: VideoFacts
    clip: ClipSpan
    views_THWC: np.ndarray | None = None

    def __post_init__(self) -> None:
        assert len(self.frames_THWC) == len(self.times_s), f"{len(self.frames_THWC)} frames, {len(self.times_s)} times"

    @property
    def views(self) -> np.ndarray:
        """Frames to look at: `views_THWC`, or the tower's."""
        return self.frames_THWC if self.views_THWC is None else self.views_THWC

    @property
    def duration_s(self) -> float:
        """Length of the clip in seconds."""
        return self.clip.end_s - self.clip.start_s

    @property
    def time_error_s(self) -> float:
        """Largest distance of a patch's true time from the time that its position tells, seconds."""
        return time_error_s(self.times_s, self.duration_s, self.facts.fps)


def decode_clip(job: DecodeJob) -> Frames:
    """Decodes a clip in this process. Raises VideoError with the reasons of `inspect_video`, and corrupt, changed since
    the plan, clip outside."""
    video = inspect_video(job.path)
    size = job.path.stat().st_size
    if job.size is not None and size != job.size:
        raise VideoError(f"{job.path.name}: {size:,} bytes, {job.size:,} when the plan was made; restore the file",
                         reason="changed since the plan", transient=True)
    try:
        return _decode(job, video)
    except _UnexpectedError:
        return _decode(job, inspect_video(job.path, count=True))


def most_frame_bytes(job: DecodeJob, frames: int) -> int:
    """Most that the frames of a clip, or its views, can take: what fits the bound, else what is resized."""
    sampling = job.sampling
    if frames > max(sampling.max_frames, sampling.min_frames) + 1:
        return 0
    budget = max(min(sampling.max_tokens_per_patch, sampling.total_tokens // max(frames // 2, 1)),
                 sampling.min_tokens_per_patch)
    # the longer side of a view is rounded up by half a pixel at most, the shorter is at least one
    return max(job.max_frame_bytes, frames * 3 * max(budget * job.factor**2, 2 * MAX_VIEW_PIXELS))


class _UnexpectedError(Exception):
    """Decoding shows other frames than the packets did."""


def _decode(job: DecodeJob, video: Inspection) -> Frames:
    clip = part_of_file(job.clip, video.duration_s) if job.clip is not None and job.may_be_cut else job.clip
    first, last, span = _shown(video, clip)
    picked_T, times_T = sample_by_time(video.times_s[first:last] - span.start_s, span.end_s - span.start_s, video.fps,
                                       job.sampling, earlier=first > 0)
    picked_T = picked_T + first
    unique, back_T = np.unique(picked_T, return_inverse=True)
    sink = _Sink(job, video, len(unique), len(picked_T))
    used: Literal["pyav", "decord"] = "pyav"
    if job.decoder == "decord" and decord_reader.is_right(video) and decord_reader.read(video, unique, sink.add):
        used = "decord"
    else:
        sink.reset()
        _pyav(video, unique, sink)
    frames, views = sink.result()
    hint = os.fsencode(job.path.name).decode("utf-8", "replace")[:500]  # as text that any reader can take
    facts = VideoFacts(path_hint=hint, sha256=file_sha256(job.path), duration_s=video.duration_s, frames=video.frames,
                       fps=video.fps, width=video.width, height=video.height, decoder=used,
                       frames_sha256=sink.sha256(), corrupt_frames=sink.corrupt)
    if len(unique) < len(picked_T):
        frames, views = frames[back_T], None if views is None else views[back_T]
    return Frames(frames, times_T, facts, span, views)


def _shown(video: Inspection, clip: Moment | None) -> tuple[int, int, ClipSpan]:
    """The shown frames [first, last) of the clip and its span. A frame belongs to the clip if it starts inside it;
    a clip between two frames shows the frame that is on screen when it starts."""
    if clip is None:
        return 0, video.frames, ClipSpan(start_s=0.0, end_s=video.duration_s)
    start_s, end_s = max(clip.start_s, 0.0), min(clip.end_s, video.duration_s)
    if not end_s > start_s:
        raise VideoError(f"{video.path.name}: the clip {clip.start_s:.2f}..{clip.end_s:.2f} s lies outside of its "
                         f"{video.duration_s:.2f} s; correct the annotation", reason="clip outside")
    times = video.times_s
    first = int(np.searchsorted(times, start_s - 1e-6))
    last = int(np.searchsorted(times, end_s - 1e-6))
    if last <= first:
        first = max(0, min(first, video.frames) - 1)
        last = first + 1
    return first, last, ClipSpan(start_s=start_s, end_s=end_s)


class _Sink:
    """Takes `unique` decoded frames in order and keeps them, or resized copies where a clip of `count` frames would not
    fit: beside those it holds no frame of full size."""

    def __init__(self, job: DecodeJob, video: Inspection, unique: int, count: int) -> None:
        self.corrupt = 0
        self._digest = hashlib.sha256()
        self._at = 0
        hw = video.height, video.width
        self._views: np.ndarray | None = None
        if count * hw[0] * hw[1] * 3 > job.max_frame_bytes:
            scale = min(1.0, VIEW_PX / min(hw), math.sqrt(MAX_VIEW_PIXELS / (hw[0] * hw[1])))
            self._views = np.empty((unique, max(1, round(hw[0] * scale)), max(1, round(hw[1] * scale)), 3), np.uint8)
            hw = resized_hw(*hw, count // 2, job.sampling, factor=job.factor)
        self._frames = np.empty((unique, *hw, 3), dtype=np.uint8)

    def reset(self) -> None:
        """Forgets everything: decoding starts again."""
        self.corrupt, self._at, self._digest = 0, 0, hashlib.sha256()

    def add(self, frame_HWC: np.ndarray, *, corrupt: bool = False) -> None:
        """The next frame."""
        self.corrupt += corrupt
        self._digest.update(np.ascontiguousarray(frame_HWC).data)
        if self._views is None:
            self._frames[self._at] = frame_HWC
        else:
            from taro.models.families.pixels import resize_frames

            for kept in (self._frames, self._views):
                kept[self._at] = resize_frames(frame_HWC[None], (kept.shape[1], kept.shape[2]))[0]
        self._at += 1

    def result(self) -> tuple[np.ndarray, np.ndarray | None]:
        """(frames, views) of what was added."""
        assert self._at == len(self._frames), f"{self._at} frames of {len(self._frames)}"
        return self._frames, self._views

    def sha256(self) -> str:
        """Digest of the frames' pixels at their own size, in order, each once."""
        return self._digest.hexdigest()


def _pyav(video: Inspection, unique: np.ndarray, sink: _Sink) -> None:
    """Decodes the shown frames `unique` (ascending places). After a seek anything odd, a missing or corrupt frame,
    means decoding again from the start."""
    late = video.exact and video.times_s[unique[0]] > SEEK_MARGIN_S
    if late and _pyav_pass(video, unique, sink, seek=True) and not sink.corrupt:
        return
    sink.reset()
    if not _pyav_pass(video, unique, sink, seek=False):
        if video.exact:
            raise _UnexpectedError
        raise VideoError(f"{video.path.name}: not every sampled frame can be decoded; copy or re-encode it",
                         reason="corrupt")


def _pyav_pass(video: Inspection, unique: np.ndarray, sink: _Sink, *, seek: bool) -> bool:
    """Decodes on until the last wanted frame; False where a frame is not the one that the packets name."""
    from av.error import FFmpegError

    place, wanted = int(unique[0]) if seek else 0, set(unique.tolist())
    start = int(video.pts_N[place])
    with opened(video.path) as (container, stream):
        stream.thread_type = "SLICE"
        if seek:
            container.seek(start - round(SEEK_MARGIN_S / video.time_base_s), stream=stream, backward=True)
        try:
            for frame in container.decode(stream):
                if seek and frame.pts is not None and frame.pts < start:
                    continue
                if place == video.frames or (video.exact and frame.pts != video.pts_N[place]):
                    return False
                if place in wanted:
                    sink.add(_rgb(frame, video), corrupt=frame.is_corrupt)
                if place == unique[-1]:
                    return True
                place += 1
        except FFmpegError as error:
            if seek:
                return False
            raise VideoError(f"{video.path.name}: frame {place} of {video.frames} cannot be decoded ({cause(error)}); "
                             "copy or re-encode it", reason="corrupt") from None
    return False


def _rgb(frame: Any, video: Inspection) -> np.ndarray:
    """RGB [H, W, 3], turned as it is displayed; a frame of another size than the first is scaled to it."""
    turns = video.rotation // 90
    width, height = (video.height, video.width) if turns % 2 else (video.width, video.height)
    same = (frame.width, frame.height) == (width, height)
    image = frame.to_ndarray(format="rgb24") if same else frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else np.asarray(image)

