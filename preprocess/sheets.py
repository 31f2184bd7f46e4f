"""Contact sheets: one row of small frames, spread over the clip, as a JPEG of a few kilobytes."""

from __future__ import annotations

import io

import numpy as np

__all__ = ["contact_sheet"]

FRAMES = 12
HEIGHT_PX = 72
MAX_WIDTH_PX = 128
QUALITY = 80


def contact_sheet(frames_THWC: np.ndarray) -> bytes:
    """A JPEG of at most 12 of the frames [T, H, W, 3], left to right in time."""
    from PIL import Image

    T, height, width = frames_THWC.shape[:3]
    picked = np.unique(np.round(np.linspace(0, T - 1, min(FRAMES, T))).astype(int))
    scale = min(HEIGHT_PX / height, MAX_WIDTH_PX / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    sheet = Image.new("RGB", (size[0] * len(picked), size[1]))
    for place, index in enumerate(picked):
        sheet.paste(Image.fromarray(frames_THWC[index]).resize(size, Image.Resampling.BICUBIC), (place * size[0], 0))
    out = io.BytesIO()
    sheet.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
