"""What a video shows, by decoding it from the start with PyAV and nothing of ours, and whether our decoding agrees.

The reference: every frame of the best video stream in the order that the decoder gives them, turned as the file says,
scaled to the first frame's size, its time counted from the first frame; the last is shown as long as it
says. Times that run backwards (or that are not there) are replaced by places at the average rate. `verdict` compares a
sampled clip with it, byte by byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from taro.core.errors import VideoError
from taro.grounding.moment import Moment
from taro.models.features import FrameSampling
from taro.preprocess.video.decode import DecodeJob, Decoder, decode_clip

__all__ = ["DECODERS", "Plain", "cuts", "decode_from_start", "verdict"]

DECODERS: tuple[Decoder, ...] = ("auto", "pyav", "decord")


@dataclass(frozen=True)
class Plain:
    """times: seconds of each frame from the first; frames: RGB [H, W, 3]; length: seconds to the end of the last frame;
    broken: the decoder gave up after these frames."""

    times: list[Fraction]
    frames: list[np.ndarray]
    length: Fraction
    broken: bool

    def sampled(self, cut: Moment | None) -> tuple[np.ndarray, list[float]]:
        """(frames [T, H, W, 3], seconds from the start of the cut) that a clip of this file must show: METHOD 3."""
        start = Fraction(cut.start_s if cut else 0)
        end = min(Fraction(cut.end_s), self.length) if cut else self.length
        slack = Fraction(1, 10**6)
        inside = [i for i, time in enumerate(self.times) if start - slack <= time < end - slack]
        inside = inside or [max(i for i, time in enumerate(self.times) if time <= start)]
        count = min(max(int(2 * (end - start)) // 2 * 2, 4), 768)
        picked = [inside[int(np.round(place))] for place in np.linspace(0, len(inside) - 1, count)]
        return np.stack([self.frames[i] for i in picked]), [float(self.times[i] - start) for i in picked]


def decode_from_start(path: Path) -> Plain:
    """See the module. Raises FFmpegError where the file cannot be opened."""
    pts: list[Fraction | None] = []
    frames: list[np.ndarray] = []
    broken, size, shown = False, None, Fraction(0)
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        if stream is None:
            return Plain([], [], Fraction(0), broken=True)
        rate = Fraction(stream.average_rate or 25)
        try:
            for frame in container.decode(stream):
                size = size or (frame.width, frame.height)
                how = {} if (frame.width, frame.height) == size else {"width": size[0], "height": size[1]}
                image = frame.to_ndarray(format="rgb24", **how)
                frames.append(np.rot90(image, round(frame.rotation / 90)))
                pts.append(None if frame.pts is None else frame.pts * Fraction(frame.time_base or 0))
                shown = (frame.duration or 0) * Fraction(frame.time_base or 0)
        except FFmpegError:
            broken = True
    known = [time for time in pts if time is not None]
    forward = len(known) == len(pts) and known == sorted(known) and len(set(known)) > 1
    times = [time - known[0] for time in known] if forward else [Fraction(i) / rate for i in range(len(pts))]
    last = times[-1] if times else Fraction(0)
    return Plain(times, frames, last + (shown if forward and shown else 1 / rate), broken)


def cuts(plain: Plain) -> list[Moment | None]:
    """Clips to try on a file: all of it, its beginning, its middle, its end, and less than a frame."""
    if not plain.times:
        return [None]
    length, few = float(plain.length), float(plain.length) / len(plain.times)
    shares = [(0.0, 0.4), (0.33, 0.71), (0.8, 0.999)]
    return [None, *(Moment(length * a, length * b) for a, b in shares), Moment(length * 0.5, length * 0.5 + few * 0.3)]


def verdict(path: Path, plain: Plain, decoder: Decoder, cut: Moment | None) -> str:
    """"pyav" or "decord", who decoded, where everything is equal; "refused: REASON" where the file cannot be decoded
    from the start either; else "WRONG: ..."."""
    try:
        got = decode_clip(DecodeJob(path, FrameSampling(), cut, decoder))
    except VideoError as error:
        return f"refused: {error.reason}" if plain.broken or not plain.times else f"WRONG: refused, {error}"
    frames, times_s = plain.sampled(cut)
    if len(times_s) != len(got.times_s):
        return f"WRONG: {len(got.times_s)} frames, not {len(times_s)}"
    off = np.abs(np.asarray(times_s) - got.times_s).max()
    if off > 1e-6:
        return f"WRONG: times are off by up to {off:.3f} s"
    if not np.array_equal(frames, got.frames_THWC):
        wrong = sum(not np.array_equal(one, other) for one, other in zip(frames, got.frames_THWC, strict=True))
        return f"WRONG: {wrong} of {len(frames)} frames differ"
    return got.facts.decoder
