"""Worlds as pictures: rendering with numpy, real H.264 mp4 files by PyAV, and reading them back.

A cell is drawn once and shown for several frames of the mp4. Only the bounding box of an object that is visible is
drawn; a cell equal to the one before is copied. Equal worlds give equal bytes: one thread, and no macroblock tree,
whose decisions in libx264 vary from run to run on frames this small (seen with noise; a test repeats it).

Legend: F cells, T sampled frames, H, W pixels."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import IO

import numpy as np

from taro.core.draws import rng
from taro.models.features import FrameSampling, sample_frames
from taro.sandbox.world import CELL_S, COLOURS, World, WorldSettings

__all__ = ["decode_cells", "encode_video", "render_cells"]

GROUND = 31
"""grey value of the ground"""
ENCODING = {"preset": "veryfast", "crf": "20", "threads": "1", "mbtree": "0"}
"""options of libx264"""


def render_cells(world: World, settings: WorldSettings | None = None) -> np.ndarray:
    """uint8 [F, H, W, 3]: what each cell shows, without noise."""
    size = (settings or WorldSettings()).size_px
    frames = np.empty((world.cells, size, size, 3), np.uint8)
    state = world.state
    for cell in range(world.cells):
        if cell and np.array_equal(state[:, :, cell], state[:, :, cell - 1]):
            frames[cell] = frames[cell - 1]
            continue
        frames[cell] = GROUND
        for (colour, shape), (x, y, radius, visible) in zip(world.objects, state[:, :, cell].tolist(), strict=True):
            if visible:
                _draw(frames[cell], shape, x, y, radius, COLOURS[colour])
    return frames


def _draw(frame_HWC: np.ndarray, shape: str, x: float, y: float, radius: float, rgb: tuple[int, int, int]) -> None:
    height, width = frame_HWC.shape[:2]
    reach = radius + 1
    left, right = max(int(x - reach), 0), min(int(x + reach) + 2, width)
    top, bottom = max(int(y - reach), 0), min(int(y + reach) + 2, height)
    if left >= right or top >= bottom:
        return
    dx = np.arange(left, right, dtype=np.float32)[None] - x
    dy = np.arange(top, bottom, dtype=np.float32)[:, None] - y
    cover = np.clip(0.5 - _distance(shape, dx, dy, radius), 0, 1)[:, :, None]
    box = frame_HWC[top:bottom, left:right]
    box[:] = np.round(box * (1 - cover) + np.array(rgb, np.float32) * cover)


def _distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance in pixels to the shape's edge, negative inside."""
    ax, ay, arm = np.abs(dx), np.abs(dy), 0.36 * radius
    if shape == "circle":
        distance = np.hypot(dx, dy) - radius
    elif shape == "square":
        distance = np.maximum(ax, ay) - 0.88 * radius
    elif shape == "triangle":
        distance = np.maximum(ax * 0.9 - (dy + radius) * 0.45, dy - 0.8 * radius)
    else:
        distance = np.minimum(np.maximum(ax - arm, ay - radius), np.maximum(ay - arm, ax - radius))
    return np.asarray(distance)


def encode_video(world: World, settings: WorldSettings | None = None) -> bytes:
    """The world as H.264 in an mp4: settings.fps frames a second, each cell shown for as long as it lasts."""
    import av
    from av.video.reformatter import VideoReformatter

    settings = settings or WorldSettings()
    out, reformatter = io.BytesIO(), VideoReformatter()
    cells = render_cells(world, settings)
    draw = rng("sandbox noise", world.seed)
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=settings.fps, options=ENCODING)
        stream.width = stream.height = settings.size_px
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, settings.fps)
        shown, frame = -1, None
        for number in range(round(world.duration_s * settings.fps)):
            cell = int(number / settings.fps / CELL_S)
            if cell != shown or settings.noise:
                image = _noisy(cells[cell], draw, settings.noise)
                frame = reformatter.reformat(av.VideoFrame.from_ndarray(image, format="rgb24"), format="yuv420p")
                shown = cell
            assert frame is not None
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def _noisy(image: np.ndarray, draw: np.random.Generator, deviation: float) -> np.ndarray:
    if not deviation:
        return image
    return np.clip(np.round(image + draw.normal(0, 255 * deviation, image.shape)), 0, 255).astype(np.uint8)


def decode_cells(source: str | Path | IO[bytes], sampling: FrameSampling | None = None) -> np.ndarray:
    """uint8 [T, H, W, 3]: the frames of an mp4 that the sampling shows; for worlds, one a cell."""
    import av
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()
    with av.open(source if isinstance(source, io.IOBase) else str(source), mode="r") as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        rate = stream.average_rate
        assert rate is not None
        frames = list(container.decode(stream))
        wanted = sample_frames(len(frames), float(len(frames) / rate), sampling or FrameSampling())
        shown = [reformatter.reformat(frames[number], format="rgb24") for number in wanted.tolist()]
        return np.stack([frame.to_ndarray() for frame in shown])
