"""Sampled frames of a clip, by timestamp, with the facts of their file.

Which frames: `taro.features.sample_frames` over the frames that the clip shows (METHOD 3). Which decoder: PyAV, which
is right on every file measured and says which frames are corrupt; `decord` decodes what it decodes right (H.264 and
MPEG-4 of 8 bits, no edit list, start at 0 or later, no rotation, equal counts and timestamps) and PyAV the rest.
`auto` is PyAV: on two cores the two took 0.53 against 0.29 s (31 s of 270p), 0.85 against 0.81 s (10 s of 720p), equal
to the pixel, and decord returns damaged frames without a word.

A clip whose frames would not fit `MAX_FRAME_BYTES` is resized while it is decoded, by the same function that the
encoder uses, so its features stay the same; CLIP and contact sheets then see a smaller view.

This module runs inside the worker processes of pool.py; it needs no model and imports torch only to resize.

Legend: T sampled frames, H, W pixels, C = 3 (RGB).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from preprocess.probe import VideoProbe, opened, probe, why
from taro.annotations.rows import part_of_file
from taro.errors import VideoError
from taro.features import FrameSampling, resized_hw, sample_frames
from taro.moment import Moment
from taro.records import ClipSpan, VideoFacts

__all__ = ["MAX_FRAME_BYTES", "DecodeJob", "Decoder", "Frames", "decode_clip", "plain_decode"]

Decoder = Literal["auto", "pyav", "decord"]

MAX_FRAME_BYTES = 128 * 2**20
"""bytes of frames that a clip may hold at their own size"""
VIEW_PX = 224
"""shorter side of the frames that CLIP and contact sheets see of a clip over the bound"""
CHUNK_FRAMES = 16
SEEK_MARGIN_S = 10.0
"""how far before a late clip decoding starts, so that no frame leans on one that was not decoded"""
DECORD_CODECS = {"h264", "mpeg4"}
DECORD_FORMATS = {"yuv420p"}


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
    """the file may hold the clip alone already; its length tells"""


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


def decode_clip(job: DecodeJob) -> Frames:
    """Decodes a clip in this process. Raises VideoError: reasons of `probe`, and corrupt, changed, clip outside."""
    look = probe(job.path)
    size = job.path.stat().st_size
    if job.size is not None and size != job.size:
        raise VideoError(f"{job.path.name}: {size:,} bytes, {job.size:,} when the plan was made; restore the file",
                         reason="changed since the plan", transient=True)
    clip = part_of_file(job.clip, look.duration_s) if job.clip is not None and job.may_be_cut else job.clip
    first, last, span = _shown(look, clip)
    picked_T = sample_frames(last - first, span.end_s - span.start_s, job.sampling) + first
    unique, back_T = np.unique(picked_T, return_inverse=True)
    sink = _Sink(job, look, len(picked_T))
    used: Literal["pyav", "decord"] = "pyav"
    if job.decoder == "decord" and _decord_right(look) and _decord(look, unique, sink):
        used = "decord"
    else:
        _pyav(look, unique, sink)
    frames, views = sink.result()
    facts = VideoFacts(
        path_hint=_hint(job.path), sha256=_file_sha256(job.path), duration_s=look.duration_s, frames=look.frames,
        fps=look.fps, width=look.width, height=look.height, decoder=used, frames_sha256=sink.sha256(),
        corrupt_frames=sink.corrupt,
    )  # fmt: skip
    times = look.times_s[picked_T] - span.start_s
    return Frames(frames[back_T], times, facts, span, None if views is None else views[back_T])


def plain_decode(path: str | Path) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds from the first shown frame, RGB frame) of every shown frame, decoded from the start: the reference that
    sampled decoding must equal, and nothing more."""
    with opened(Path(path)) as (container, stream):
        first: int | None = None
        for frame in container.decode(stream):
            first = frame.pts if first is None else first
            yield float((frame.pts - first) * stream.time_base), _rgb(frame, None)


def _shown(look: VideoProbe, clip: Moment | None) -> tuple[int, int, ClipSpan]:
    """The shown frames [first, last) of the clip and its span. A frame belongs to the clip if it starts inside it;
    a clip between two frames shows the frame that is on screen when it starts."""
    if clip is None:
        return 0, look.frames, ClipSpan(start_s=0.0, end_s=look.duration_s)
    start_s, end_s = max(clip.start_s, 0.0), min(clip.end_s, look.duration_s)
    if not end_s > start_s:
        raise VideoError(f"{look.path.name}: the clip {clip.start_s:.2f}..{clip.end_s:.2f} s lies outside of its "
                         f"{look.duration_s:.2f} s; correct the annotation", reason="clip outside")
    times = look.times_s
    first = int(np.searchsorted(times, start_s - 1e-6))
    last = int(np.searchsorted(times, end_s - 1e-6))
    if last <= first:
        first = max(0, min(first, look.frames) - 1)
        last = first + 1
    return first, last, ClipSpan(start_s=start_s, end_s=end_s)


class _Sink:
    """Takes decoded frames in order; keeps them, or their resized copies where they would not fit."""

    def __init__(self, job: DecodeJob, look: VideoProbe, count: int) -> None:
        self.corrupt = 0
        self._digest = hashlib.sha256()
        self._kept: list[np.ndarray] = []
        self._views: list[np.ndarray] = []
        self._waiting: list[np.ndarray] = []
        self._hw: tuple[int, int] | None = None
        if count * look.height * look.width * 3 > job.max_frame_bytes:
            self._hw = resized_hw(look.height, look.width, count // 2, job.sampling, factor=job.factor)
            scale = min(1.0, VIEW_PX / min(look.height, look.width))
            self._view_hw = max(1, round(look.height * scale)), max(1, round(look.width * scale))

    def reset(self) -> None:
        """Forgets everything: decoding starts again."""
        self.corrupt, self._digest = 0, hashlib.sha256()
        self._kept, self._views, self._waiting = [], [], []

    def add(self, frame_HWC: np.ndarray, *, corrupt: bool = False) -> None:
        """The next frame."""
        self.corrupt += corrupt
        self._digest.update(np.ascontiguousarray(frame_HWC).data)
        if self._hw is None:
            self._kept.append(frame_HWC)
            return
        self._waiting.append(frame_HWC)
        if len(self._waiting) == CHUNK_FRAMES:
            self._flush()

    def result(self) -> tuple[np.ndarray, np.ndarray | None]:
        """(frames, views) of what was added."""
        self._flush()
        return np.stack(self._kept), np.stack(self._views) if self._hw is not None else None

    def sha256(self) -> str:
        """Digest of the frames' pixels at their own size, in order, each once."""
        return self._digest.hexdigest()

    def _flush(self) -> None:
        if self._hw is None or not self._waiting:
            return
        from taro.mllm.pixels import resize_frames

        chunk = np.stack(self._waiting)
        self._kept += list(resize_frames(chunk, self._hw))
        self._views += list(resize_frames(chunk, self._view_hw))
        self._waiting = []


def _pyav(look: VideoProbe, unique: np.ndarray, sink: _Sink) -> None:
    """Decodes the shown frames `unique` (ascending). After a seek anything odd, a missing or corrupt frame, means
    decoding again from the start."""
    wanted = [int(value) for value in look.pts_N[unique]]
    late = look.exact and (wanted[0] - int(look.pts_N[0])) * look.time_base_s > SEEK_MARGIN_S
    if late and _pyav_pass(look, wanted, sink, seek=True) and not sink.corrupt:
        return
    sink.reset()
    if not _pyav_pass(look, wanted, sink, seek=False):
        raise VideoError(f"{look.path.name}: not every sampled frame can be decoded; copy or re-encode it",
                         reason="corrupt")


def _pyav_pass(look: VideoProbe, wanted: list[int], sink: _Sink, *, seek: bool) -> bool:
    from av.error import FFmpegError

    got, seen = 0, 0
    with opened(look.path) as (container, stream):
        stream.thread_type = "SLICE"
        if seek:
            at = wanted[0] - round(SEEK_MARGIN_S / look.time_base_s)
            container.seek(at, stream=stream, backward=True)
        try:
            for number, frame in enumerate(container.decode(stream)):
                pts = frame.pts if look.exact or frame.pts is not None else None
                place = pts if look.exact else int(look.pts_N[number]) if number < look.frames else None
                seen += 1
                if place is None or place < wanted[got]:
                    continue
                if place > wanted[got]:
                    return False
                sink.add(_rgb(frame, look), corrupt=frame.is_corrupt)
                got += 1
                if got == len(wanted):
                    return True
        except FFmpegError as error:
            if seek:
                return False
            raise VideoError(f"{look.path.name}: frame {seen} of {look.frames} cannot be decoded ({why(error)}); copy "
                             "or re-encode it", reason="corrupt") from None
    return False


def _rgb(frame: Any, look: VideoProbe | None) -> np.ndarray:
    """RGB [H, W, 3], turned as it is displayed; a frame of another size than the first is scaled to it."""
    turns = round(frame.rotation / 90.0) % 4 if look is None else look.rotation // 90
    if look is None:
        image = frame.to_ndarray(format="rgb24")
    else:
        width, height = (look.height, look.width) if turns % 2 else (look.width, look.height)
        same = (frame.width, frame.height) == (width, height)
        image = frame.to_ndarray(format="rgb24") if same else frame.to_ndarray(
            format="rgb24", width=width, height=height)
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else np.asarray(image)


def _decord_right(look: VideoProbe) -> bool:
    """Whether decord is known to be right on such a file (measured: edit lists, HEVC, negative starts are not)."""
    return (look.exact and look.codec in DECORD_CODECS and look.pixel_format in DECORD_FORMATS
            and look.discarded == 0 and look.rotation == 0 and look.start_s >= 0)


def _decord(look: VideoProbe, unique: np.ndarray, sink: _Sink) -> bool:
    """Decodes with decord; False (and nothing kept) where it is not installed, fails, or counts or times frames
    otherwise than the demuxer does."""
    try:
        import decord
    except ImportError:
        return False
    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(str(look.path.absolute()), num_threads=1)
        if len(reader) != look.frames:
            return False
        stamps = reader.get_frame_timestamp(unique.tolist())[:, 0]
        if np.abs(stamps - look.start_s - look.times_s[unique]).max() > 0.25 / look.fps:
            return False
        for start in range(0, len(unique), CHUNK_FRAMES):
            for frame in reader.get_batch(unique[start : start + CHUNK_FRAMES].tolist()).asnumpy():
                sink.add(frame)
        del reader
    except (decord.DECORDError, RuntimeError, IndexError):
        sink.reset()
        return False
    return True


def _file_sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _hint(path: Path) -> str:
    """The bare file name, as text that any reader can take."""
    import os

    return os.fsencode(path.name).decode("utf-8", "replace")[:500]

