"""A look at a video file without decoding it: which stream, which frames are shown and when, what may go wrong.

The demuxer (PyAV) lists every packet of the best video stream. Packets that an edit list discards are not shown, so
they do not count; the timestamps of the others are the times of the frames shown, known before a frame is decoded.
Only the first frame is decoded, for its size and rotation. Files come from strangers: FFmpeg may open this one file
and nothing that it refers to (no playlist, no network).

Time 0 of a file is its first shown video frame. Left out: non-square pixels (shown as stored) and interlacing.

Legend: N frames shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from taro.errors import VideoError

__all__ = ["VideoProbe", "opened", "probe", "why"]

NESTED_FORMATS = {"hls", "applehttp", "dash", "concat", "imf", "rtsp", "sdp", "rtp", "lavfi"}
"""demuxers that read other files or the network; a video file never needs them"""
TRUNCATED_S = 1.0
"""seconds that may be missing at the end before a file counts as cut short (and 5 % of its length)"""


@dataclass(frozen=True)
class VideoProbe:
    """What a file shows. pts_N: ascending timestamps of the shown frames, in units of `time_base_s` seconds; empty
    where the packets do not tell (`exact` False) and the frames must be counted by decoding.

    width, height: as displayed; rotation: degrees counter-clockwise to turn a decoded frame; discarded: packets that
    an edit list hides; start_s: first shown timestamp; duration_s: to the end of the last frame; header_s: what the
    container says, None where it says nothing."""

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
    _check_file(path)
    try:
        container = av.open(f"file:{path}", options={"protocol_whitelist": "file"})
    except (FFmpegError, ValueError) as error:
        raise VideoError(f"{path.name}: not a video that FFmpeg knows ({why(error)}); re-encode or remove it",
                         reason="not a video") from None
    with container:
        formats = set(container.format.name.split(","))
        if formats & NESTED_FORMATS:
            raise VideoError(f"{path.name}: a playlist or script ({container.format.name}), not a video; give the "
                             "video itself", reason="not a video")
        stream = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            kinds = ", ".join(sorted({s.type for s in container.streams})) or "none"
            raise VideoError(f"{path.name}: no video stream (streams: {kinds}); remove it or give the video",
                             reason="no video stream")
        if stream.disposition & Disposition.attached_pic:
            raise VideoError(f"{path.name}: its only picture is a cover image; give the video",
                             reason="no video stream")
        yield container, stream


def why(error: BaseException) -> str:
    """FFmpeg's reason alone: its message also holds the file's folder, which must not end in a shard set's ledger."""
    return str(getattr(error, "strerror", None) or type(error).__name__)


def probe(path: str | Path) -> VideoProbe:
    """Looks at `path`. Raises VideoError with a reason: missing, empty, not a video, no video stream, no frames,
    corrupt, truncated."""
    from av.error import FFmpegError

    path = Path(path)
    with opened(path) as (container, stream):
        try:
            shown, discarded, exact, ends_s = _packets(container, stream)
        except FFmpegError as error:
            raise VideoError(f"{path.name}: cannot be read to its end ({why(error)}); copy or re-encode it",
                             reason="corrupt") from None
        codec, unit = stream.codec_context.name, Fraction(stream.time_base)
        pixel_format = stream.codec_context.pix_fmt or "unknown"
        rate = stream.average_rate or stream.guessed_rate
        header_s = _header_s(container, stream)
        average_s = 1.0 / float(rate) if rate else 0.04
    width, height, rotation = _first_frame(path)
    if not exact:
        shown, average_s = _count(path, average_s)
    if len(shown) == 0:
        raise VideoError(f"{path.name}: no frame is shown; re-encode or remove it", reason="no frames")
    # Exact until the end: one rounding error here, and a 10 s video loses two of its frames at 2 fps.
    duration_s = float((int(shown[-1]) - int(shown[0])) * unit + _last_frame(shown, unit, average_s))
    time_base_s, start_s = float(unit), float(int(shown[0]) * unit)
    ends_s = max(ends_s, start_s + duration_s)
    if header_s is not None and header_s - ends_s > max(TRUNCATED_S, 0.05 * header_s):
        raise VideoError(f"{path.name}: its header says {header_s:.2f} s, the file ends at {ends_s:.2f} s; it was cut "
                         "short, copy it again", reason="truncated")
    return VideoProbe(path, codec, pixel_format, width, height, rotation, shown, time_base_s, start_s, duration_s,
                      len(shown) / duration_s, discarded, header_s, exact)


def _check_file(path: Path) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise VideoError(f"{path.name}: no such file; check the videos folder", reason="missing",
                         transient=True) from None
    except OSError as error:
        raise VideoError(f"{path.name}: cannot be opened ({error.strerror}); check the mount and its rights",
                         reason="unreadable", transient=True) from None
    if not path.is_file():
        raise VideoError(f"{path.name}: not a file; give a video file", reason="not a file")
    if size == 0:
        raise VideoError(f"{path.name}: 0 bytes; copy it again", reason="empty")


def _packets(container: Any, stream: Any) -> tuple[np.ndarray, int, bool, float]:
    """Shown timestamps, discarded packets, whether timestamps are whole and distinct, where the last packet ends."""
    pts: list[int] = []
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
    distinct = np.unique(np.asarray(pts, dtype=np.int64))
    return distinct, discarded, exact and len(distinct) == len(pts) and len(pts) > 0, ends_s


def _header_s(container: Any, stream: Any) -> float | None:
    if stream.duration:
        return float(stream.duration * stream.time_base) + max(float((stream.start_time or 0) * stream.time_base), 0.0)
    return container.duration / 1e6 if container.duration else None


def _first_frame(path: Path) -> tuple[int, int, int]:
    from av.error import FFmpegError

    with opened(path) as (container, stream):
        try:
            frame = next(container.decode(stream), None)
        except FFmpegError as error:
            raise VideoError(f"{path.name}: its first frame cannot be decoded ({why(error)}); re-encode or remove it",
                             reason="corrupt") from None
    if frame is None:
        raise VideoError(f"{path.name}: no frame is shown; re-encode or remove it", reason="no frames")
    rotation = round(frame.rotation / 90.0) * 90 % 360
    turned = rotation in (90, 270)
    return (frame.height, frame.width, rotation) if turned else (frame.width, frame.height, rotation)


def _count(path: Path, average_s: float) -> tuple[np.ndarray, float]:
    """Timestamps of a file whose packets have none (raw streams), by decoding it once; where frames have none either,
    they are spread at the average rate."""
    from av.error import FFmpegError

    pts: list[int | None] = []
    with opened(path) as (container, stream):
        try:
            pts = [frame.pts for frame in container.decode(stream)]
        except FFmpegError as error:
            raise VideoError(f"{path.name}: frame {len(pts)} cannot be decoded ({why(error)}); copy or re-encode it",
                             reason="corrupt") from None
        unit_s = float(stream.time_base)
    known = [value for value in pts if value is not None]
    if len(known) == len(pts) and len(set(known)) == len(known):
        return np.sort(np.asarray(known, dtype=np.int64)), average_s
    step = max(1, round(average_s / unit_s))
    return np.arange(len(pts), dtype=np.int64) * step, average_s


def _last_frame(pts_N: np.ndarray, unit: Fraction, average_s: float) -> Fraction:
    """Seconds that the last frame is shown: as long as the median frame, since its own duration is often missing."""
    if len(pts_N) < 2:
        return Fraction(average_s).limit_denominator(1_000_000)
    return Fraction(float(np.median(np.diff(pts_N)))) * unit
