"""Inspection of a video file without decoding it: its stream, which frames are shown and when, what may go wrong.

The demuxer (PyAV) lists every packet of the best video stream. Packets that an edit list discards are not shown, so
they do not count; the timestamps of the others are the times of the frames shown, known before a frame is decoded.
Only the first frame is decoded, for its size, its rotation and its time: packets before it lean on frames that the file
does not hold (it was cut between keyframes) and show nothing. Where the packets do not say, or say wrong, which only
decoding finds out, `inspect_video(path, count=True)` decodes every frame once and keeps their times. Files are
untrusted: FFmpeg gets a descriptor of the file and the format that contents.py named, and may open nothing else.

Time 0 of a file is its first shown video frame. Left out: non-square pixels, interlacing and mirrored pictures (all
shown as stored).

Legend: N frames shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from taro.core.errors import VideoError
from taro.preprocess.video.contents import demuxer_of, opened_file

__all__ = ["Inspection", "cause", "inspect_video", "opened"]

MAX_REORDER = 32
"""places between where a frame is stored and where it is shown; codecs allow 16 frames"""
MAX_PIXELS = 8192 * 8192
"""of a frame; FFmpeg's decoders may hold some 16 of them"""
MAX_FPS = 10_000
"""a header that claims more frames a second tells nothing"""
MAX_S = 1e6
"""seconds of a file, as in a shard set"""
ONE_PICTURE = {"gif", "apng"}
"""formats of pictures that may move"""
TRUNCATED_S = 1.0
"""seconds that may be missing at the end before a file counts as cut short (and 5 % of its length)"""


@dataclass(frozen=True)
class Inspection:
    """What a file shows. pts_N: ascending timestamps of the shown frames, in units of `time_base_s` seconds.

    width, height: as displayed; rotation: degrees counter-clockwise to turn a decoded frame; discarded: packets that
    an edit list hides; start_s: first shown timestamp; duration_s: to the end of the last frame; header_s: what the
    container says, None where it says nothing; exact: a frame's timestamp is one of `pts_N` and names it (False where
    frames were counted by decoding, and are told apart by their place alone); streams: of video; interlaced: of the
    first frame."""

    path: Path
    codec: str
    pixel_format: str
    width: int
    height: int
    rotation: int
    pts_N: np.ndarray
    time_base_s: float
    start_s: float
    duration_s: float
    fps: float
    discarded: int
    header_s: float | None
    exact: bool
    streams: int
    interlaced: bool

    @property
    def frames(self) -> int:
        """Frames shown, N."""
        return len(self.pts_N)

    @property
    def times_s(self) -> np.ndarray:
        """Times [N] of the shown frames in seconds from the first."""
        return np.asarray((self.pts_N - self.pts_N[0]) * self.time_base_s, dtype=np.float64)


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """(container, best video stream) of one local file; VideoError says why it is none."""
    import av
    from av.error import FFmpegError
    from av.stream import Disposition

    av.logging.set_level(None)
    with opened_file(path) as descriptor:
        demuxer = demuxer_of(descriptor, path.name)
        try:
            container = av.open("fd:", format=demuxer, metadata_errors="replace",
                                options={"fd": str(descriptor), "protocol_whitelist": "fd",
                                         "max_pixels": str(MAX_PIXELS)})
        except (FFmpegError, ValueError) as error:
            raise VideoError(f"{path.name}: not a video that FFmpeg knows ({cause(error)}); re-encode or remove it",
                             reason="not a video") from None
        with container:
            stream: Any = container.streams.best("video")
            if stream is None or stream.codec_context is None:
                kinds = ", ".join(sorted({s.type for s in container.streams})) or "none"
                raise VideoError(f"{path.name}: no video stream (streams: {kinds}); remove it or give the video",
                                 reason="no video stream")
            if stream.disposition & Disposition.attached_pic:
                raise VideoError(f"{path.name}: its only picture is a cover image; give the video",
                                 reason="no video stream")
            width, height = stream.codec_context.width, stream.codec_context.height
            if width * height > MAX_PIXELS:
                raise VideoError(f"{path.name}: frames of {width}x{height}; at most {MAX_PIXELS:,} pixels are decoded, "
                                 "re-encode it smaller", reason="too large")
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            yield container, stream


def cause(error: BaseException) -> str:
    """FFmpeg's reason alone: its message also holds the file's folder, which must not end in a shard set's ledger."""
    return str(getattr(error, "strerror", None) or type(error).__name__)


def inspect_video(path: str | Path, *, count: bool = False) -> Inspection:
    """Inspects `path`; with `count` by decoding every frame. Raises VideoError with a reason: missing, empty, not a
    video, no video stream, no frames, corrupt, truncated."""
    from av.error import FFmpegError

    path = Path(path)
    with opened(path) as (container, stream):
        try:
            packets = _packets(container, stream)
        except FFmpegError as error:
            raise VideoError(f"{path.name}: cannot be read to its end ({cause(error)}); copy or re-encode it",
                             reason="corrupt") from None
        codec, unit = stream.codec_context.name, Fraction(stream.time_base)
        pixel_format = stream.codec_context.pix_fmt or "unknown"
        rate = stream.average_rate or stream.guessed_rate
        header_s, streams, form = _header_s(container, stream), len(container.streams.video), container.format.name
        average = 1 / Fraction(rate) if rate and rate <= MAX_FPS else Fraction(1, 25)
    first = _first_frame(path)
    exact = packets.exact and not count and first.pts is not None and first.pts in packets.pts_N
    shown, last = packets.pts_N, packets.last
    shown, last, unit = (shown[shown >= first.pts], last, unit) if exact else _count(path, average)
    if form in ONE_PICTURE and len(shown) == 1:
        raise VideoError(f"{path.name}: a picture ({form.upper()} of one frame), not a video; give a video",
                         reason="not a video")
    # Exact until the end: one rounding error here, and a 10 s video loses two of its frames at 2 fps.
    duration = (int(shown[-1]) - int(shown[0])) * unit + (last * unit or _median_frame(shown, unit, average))
    time_base_s, start_s, duration_s = float(unit), float(int(shown[0]) * unit), float(duration)
    _check_end(path, header_s, max(packets.ends_s, start_s + duration_s))
    return Inspection(path, codec, pixel_format, first.width, first.height, first.rotation, shown, time_base_s,
                      start_s, duration_s, len(shown) / duration_s, packets.discarded, header_s, exact, streams,
                      first.interlaced)


def _check_end(path: Path, header_s: float | None, ends_s: float) -> None:
    if ends_s > MAX_S:
        raise VideoError(f"{path.name}: its last frame ends at {ends_s:,.0f} s; at most {MAX_S:,.0f} s are read, "
                         "re-encode it", reason="corrupt")
    if header_s is not None and header_s - ends_s > max(TRUNCATED_S, 0.05 * header_s):
        raise VideoError(f"{path.name}: its header says {header_s:.2f} s, the file ends at {ends_s:.2f} s; it was cut "
                         "short, copy it again", reason="truncated")


@dataclass(frozen=True)
class _Packets:
    """Of the shown packets: ascending timestamps, discarded packets, whether timestamps are whole and distinct; last:
    ticks that the last is shown, 0 where it does not say; ends_s: where the last packet of any stream ends."""

    pts_N: np.ndarray
    discarded: int
    exact: bool
    last: int
    ends_s: float


def _packets(container: Any, stream: Any) -> _Packets:
    pts: list[int] = []
    durations: list[int] = []
    discarded, exact, ends_s = 0, True, 0.0
    for packet in container.demux():
        if packet.size == 0:
            continue
        if packet.pts is not None and packet.time_base:
            ends_s = max(ends_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index != stream.index:
            continue
        if packet.is_discard:
            discarded += 1
        elif packet.pts is None:
            exact = False
        else:
            pts.append(packet.pts)
            durations.append(packet.duration or 0)
    stored = np.asarray(pts, dtype=np.int64)
    order = np.argsort(stored, kind="stable")
    # Frames are stored out of order by a few places; by more only where the clock jumps back.
    near = bool((np.abs(order - np.arange(len(order))) <= MAX_REORDER).all())
    shown = stored[order]
    exact = exact and near and len(shown) > 0 and bool((np.diff(shown) > 0).all())
    last = _last_ticks(stream, int(shown[-1]), durations[order[-1]]) if pts else 0
    return _Packets(shown, discarded, exact, last, ends_s)


def _last_ticks(stream: Any, pts: int, ticks: int) -> int:
    """Ticks that the last frame is shown: as long as its packet says, unless an edit list ends long before that."""
    if stream.duration and stream.frames:
        left = stream.duration + (stream.start_time or 0) - pts
        if left > 0 and (ticks - left) * stream.time_base > TRUNCATED_S:
            return int(left)
    return max(ticks, 0)


def _header_s(container: Any, stream: Any) -> float | None:
    """Where the file should end, in seconds. A stream's length counts from its start where its samples are listed, and
    from 0 where they come in fragments (`frames` is 0)."""
    if stream.duration:
        start = max(stream.start_time or 0, 0) if stream.frames else 0
        return float((stream.duration + start) * stream.time_base)
    return container.duration / 1e6 if container.duration else None


@dataclass(frozen=True)
class _First:
    """Of the first frame that is shown: as displayed, and turned by `rotation` for that."""

    pts: int | None
    width: int
    height: int
    rotation: int
    interlaced: bool


def _first_frame(path: Path) -> _First:
    from av.error import FFmpegError

    with opened(path) as (container, stream):
        try:
            frame = next(container.decode(stream), None)
        except FFmpegError as error:
            raise VideoError(f"{path.name}: its first frame cannot be decoded ({cause(error)}); re-encode or remove it",
                             reason="corrupt") from None
    if frame is None:
        raise VideoError(f"{path.name}: no frame is shown; re-encode or remove it", reason="no frames")
    rotation = round(frame.rotation / 90.0) * 90 % 360
    width, height = (frame.height, frame.width) if rotation in (90, 270) else (frame.width, frame.height)
    return _First(frame.pts, width, height, rotation, bool(frame.interlaced_frame))


def _count(path: Path, average: Fraction) -> tuple[np.ndarray, int, Fraction]:
    """(timestamps, ticks that the last frame is shown or 0, their unit in seconds) of every frame, by decoding the file
    once. Where frames have none, or they run backwards (two recordings in one file), the frames are spread at the
    average rate."""
    from av.error import FFmpegError

    pts: list[int | None] = []
    last = 0
    with opened(path) as (container, stream):
        try:
            for frame in container.decode(stream):
                pts.append(frame.pts)
                last = max(frame.duration or 0, 0)
        except FFmpegError as error:
            raise VideoError(f"{path.name}: frame {len(pts)} cannot be decoded ({cause(error)}); copy or re-encode it",
                             reason="corrupt") from None
        unit = Fraction(stream.time_base)
    known = np.asarray([value for value in pts if value is not None], dtype=np.int64)
    if len(known) == len(pts) and known[-1] > known[0] and (np.diff(known) >= 0).all():
        return known, last, unit
    return np.arange(len(pts), dtype=np.int64), 1, average


def _median_frame(pts_N: np.ndarray, unit: Fraction, average: Fraction) -> Fraction:
    """Seconds that a frame is shown where the file does not say: as long as the median frame; as long as the mean frame
    where the clock is too coarse to tell most frames apart."""
    if len(pts_N) < 2:
        return average.limit_denominator(1_000_000)
    median = Fraction(float(np.median(np.diff(pts_N))))
    return (median or Fraction(int(pts_N[-1] - pts_N[0]), len(pts_N) - 1)) * unit
