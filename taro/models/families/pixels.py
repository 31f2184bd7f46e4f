"""From decoded frames to the patches that a Qwen vision tower takes: resize, normalise, cut.

Equal to the stock video processor's own tensors (a test compares them), without torchvision: stage 2 never imports
this, and a decoding worker needs only numpy and torch.
Legend: T frames, S temporal patches of two frames, P patches of a frame before merging, C values of a patch."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import interpolate

__all__ = ["normalise", "resize_frames", "to_patches"]

FRAMES_AT_ONCE = 32
"""bounds the copies that a resize makes"""


def resize_frames(frames_THWC: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """uint8 frames [T, H, W, 3] at `hw` pixels: bicubic with antialiasing, computed in uint8 on the CPU as
    torchvision's resize of uint8 tensors is. Returned unchanged where the size already fits."""
    if frames_THWC.shape[1:3] == hw:
        return frames_THWC
    out = np.empty((frames_THWC.shape[0], *hw, 3), dtype=np.uint8)
    for start in range(0, len(frames_THWC), FRAMES_AT_ONCE):
        part = torch.from_numpy(np.ascontiguousarray(frames_THWC[start : start + FRAMES_AT_ONCE])).permute(0, 3, 1, 2)
        part = interpolate(part, size=hw, mode="bicubic", antialias=True, align_corners=False)
        out[start : start + FRAMES_AT_ONCE] = part.permute(0, 2, 3, 1).numpy()
    return out


def normalise(frames_THWC: torch.Tensor, *, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """uint8 [T, H, W, 3] to float32 [T, 3, H, W]: `(x / 255 - mean) / std`, fused as the stock processor fuses it."""
    x = frames_THWC.permute(0, 3, 1, 2).to(torch.float32)
    shift = torch.tensor(mean, dtype=torch.float32, device=x.device).view(1, 3, 1, 1) * 255.0
    scale = torch.tensor(std, dtype=torch.float32, device=x.device).view(1, 3, 1, 1) * 255.0
    return (x - shift) / scale


def to_patches(frames_TCHW: torch.Tensor, *, patch_size: int = 14, merge: int = 2) -> torch.Tensor:
    """[T, 3, H, W] to [S, P, C]: two frames a temporal patch, patches in the order in which 2 x 2 of them merge,
    C = 3 * 2 * patch_size ** 2."""
    T, channels, height, width = frames_TCHW.shape
    h, w, p = height // patch_size // merge, width // patch_size // merge, patch_size
    x = frames_TCHW.reshape(T // 2, 2, channels, h, merge, p, w, merge, p)
    x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return x.reshape(T // 2, h * w * merge * merge, channels * 2 * p * p)
