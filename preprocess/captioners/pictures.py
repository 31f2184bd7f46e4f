"""Frames as an endpoint takes them: JPEGs as data URIs, each behind its time in text.

Left out: video parts (vLLM's `video_url`), whose frame indices and rate no two servers take in one form.

Legend: T frames, H height, W width."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from taro.preprocess.config import EndpointConfig

__all__ = ["FORM", "PROBE", "PROBE_COLOURS", "content", "image_tokens", "probe_frames"]

FORM = 1
"""of the text around the frames: part of the fingerprint"""
TOKEN_PX = 28
"""side of the square that a token stands for, in Qwen2.5-VL: for estimates"""
PROBE_COLOURS = {"blue": (0, 0, 255), "yellow": (255, 255, 0), "red": (255, 0, 0), "green": (0, 160, 0)}
"""of the probe clip's frames, at 0, 1, 2 and 3 s"""
PROBE = ("Each of the four frames above has one plain colour: red, green, blue or yellow. Write the four times, in "
         "order, each with the colour of its frame, and nothing else.")


def content(frames_THWC: np.ndarray, times_s: Sequence[float], duration_s: float, prompt: str,
            config: EndpointConfig) -> list[dict[str, Any]]:
    """The parts of a message: what the frames are, each frame behind its time, the prompt. Frames that stand twice are
    sent once, and `max_images` at most."""
    _, once = np.unique(np.asarray(times_s), return_index=True)
    picked = once[np.unique(np.round(np.linspace(0, len(once) - 1, min(config.max_images, len(once)))).astype(int))]
    opening = f"A video of {duration_s:.1f}s, as {len(picked)} frames in order, each behind its time:"
    parts: list[dict[str, Any]] = [{"type": "text", "text": opening}]
    for at in picked:
        uri = "data:image/jpeg;base64," + base64.b64encode(_jpeg(frames_THWC[at], config)).decode()
        parts += [{"type": "text", "text": f"{times_s[at]:.1f}s"}, {"type": "image_url", "image_url": {"url": uri}}]
    return [*parts, {"type": "text", "text": prompt}]


def _jpeg(frame_HWC: np.ndarray, config: EndpointConfig) -> bytes:
    from PIL import Image

    height, width = frame_HWC.shape[:2]
    picture, size, out = Image.fromarray(frame_HWC), _size(height, width, config.image_px), io.BytesIO()
    if size != (width, height):
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    picture.save(out, "JPEG", quality=config.jpeg_quality)
    return out.getvalue()


def _size(height: int, width: int, image_px: int) -> tuple[int, int]:
    """(width, height) of a frame as it is sent."""
    scale = min(1.0, image_px / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def image_tokens(height: int, width: int, image_px: int) -> int:
    """About how many tokens a frame takes: one for 28 x 28 pixels, as in Qwen2.5-VL. Other models count otherwise.

    >>> image_tokens(720, 1280, 512)
    180
    """
    wide, high = _size(height, width, image_px)
    return max(1, round(wide / TOKEN_PX) * round(high / TOKEN_PX))


def probe_frames() -> tuple[np.ndarray, list[float]]:
    """The probe clip: (four frames [T, H, W, 3] of plain colours, their times in seconds)."""
    frames = np.empty((len(PROBE_COLOURS), 224, 224, 3), np.uint8)
    frames[:] = np.array([*PROBE_COLOURS.values()], np.uint8)[:, None, None]
    return frames, [float(at) for at in range(len(frames))]
