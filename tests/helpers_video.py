"""Small real videos, written with PyAV: every frame shows its own number, so a test can read which one it got."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

BITS = 10
LOW, HIGH = 48, 208


def numbered_frame(number: int, height: int = 48, width: int = 80) -> np.ndarray:
    """RGB uint8: `BITS` vertical bars, dark or bright, spell the number; a red dot marks the top left corner."""
    frame = np.full((height, width, 3), LOW, dtype=np.uint8)
    edges = np.linspace(0, width, BITS + 1).astype(int)
    for bit in range(BITS):
        if number >> bit & 1:
            frame[height // 3 :, edges[bit] : edges[bit + 1]] = HIGH
    frame[: height // 4, : width // 4] = (220, 20, 20)
    return frame


def read_number(frame_HWC: np.ndarray) -> int:
    """The number that a decoded frame shows."""
    height, width = frame_HWC.shape[:2]
    edges = np.linspace(0, width, BITS + 1).astype(int)
    bars = [frame_HWC[height // 2 :, edges[b] + 1 : edges[b + 1] - 1].mean() > (LOW + HIGH) / 2 for b in range(BITS)]
    return sum(1 << bit for bit, bright in enumerate(bars) if bright)


def write_video(
    path: Path,
    frames: int | Sequence[np.ndarray],
    *,
    fps: int = 10,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    ticks: Sequence[int] | None = None,
    size: tuple[int, int] = (48, 80),
) -> Path:
    """Writes `frames` (or that many numbered ones of `size` height and width). `ticks`: presentation times in units of
    1 / fps seconds, for variable rates; default 0, 1, 2, ... x264 gets B-frames and a keyframe every 12."""
    import av

    images = [numbered_frame(i, *size) for i in range(frames)] if isinstance(frames, int) else list(frames)
    if options is None:
        options = {"crf": "12", "bf": "2", "g": "12"} if codec == "libx264" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = Fraction(1, fps)
        for place, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = (place if ticks is None else ticks[place]), Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_held(path: Path, ticks: list[int], codec: str = "libx264", pixel_format: str = "yuv420p") -> Path:
    """Numbered frames, each shown for so many tenths of a second."""
    import av

    starts = [sum(ticks[:place]) for place in range(len(ticks))]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"bf": "0"} if codec == "libx264" else {})
        stream.height, stream.width, stream.pix_fmt = 48, 80, pixel_format
        stream.codec_context.time_base = Fraction(1, 10)
        frames = [av.VideoFrame.from_ndarray(numbered_frame(i), format="rgb24").reformat(format=pixel_format)
                  for i in range(len(ticks))]  # fmt: skip
        for frame, start in zip(frames, starts, strict=True):
            frame.pts, frame.time_base = start, Fraction(1, 10)
        packets: list[av.Packet] = [packet for frame in [*frames, None] for packet in stream.encode(frame)]
        for packet in packets:
            packet.duration = ticks[starts.index(packet.pts or 0)]
            container.mux(packet)
    return path


def write_audio(path: Path, seconds: float = 1.0) -> Path:
    """A file with one audio stream and no video."""
    import av

    rate = 8000
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=rate, layout="mono")
        samples = (np.sin(np.arange(int(rate * seconds)) / 5) * 0.1).astype(np.float32)
        for start in range(0, len(samples) - 1023, 1024):
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def rotate_clockwise(path: Path) -> Path:
    """Rewrites the display matrix of an mp4's video track, in place: players turn the picture by 90 degrees clockwise
    (x' = -y, y' = x; ISO 14496-12, 8.3.2)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4
    matrix = at + (40 if data[at] == 0 else 52)
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path
