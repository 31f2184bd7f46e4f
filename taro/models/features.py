"""Frame sampling, a video's features, and the fingerprint of what encoded them.
Legend: T sampled frames, S temporal patches (S = T / 2), N tokens of a patch after merging, D width, L deepstack
levels. The sampling is the released models': n frames spread over the frames shown, so the effective rate is not quite
the policy's 2 fps; its value, not 2, enters the positions. They tell equal steps, which frames chosen by their number
keep on files of constant rate alone: `time_error_s` measures the distance, `uniform-2fps-time` chooses by time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from taro.core.config import Config

if TYPE_CHECKING:
    import torch

__all__ = ["EncoderFingerprint", "FrameSampling", "TIME_ERROR_S", "VideoFeatures", "equal_times_s", "patch_times_s",
           "resized_hw", "sample_by_time", "sample_frames", "time_error_s"]

FRAMES_PER_PATCH = 2
TIME_ERROR_S = 1.0
"""seconds between the true time of a patch and the time that its position tells, over which taro warns"""
CONSTANT_S = 0.1
"""seconds that frames of a constant rate may lie beside equal steps (and half a step): coarse clocks, telecine"""


class FrameSampling(Config):
    """How frames are chosen and how large they are shown. Defaults: the released models' training."""

    policy: Literal["uniform-2fps", "uniform-2fps-time"] = "uniform-2fps"
    """uniform-2fps: frames at equal steps of their number, as released; uniform-2fps-time: at equal steps of time, for
    videos of variable rate; the same frames where the rate is constant and 1 a second or more"""
    sample_fps: float = Field(2.0, gt=0, le=60)
    """frames a second aimed at; the effective rate is (n - 1) / (last time - first time)"""
    min_frames: int = Field(4, ge=2, le=4096)
    """frames of a clip at least; a shorter one repeats some"""
    max_frames: int = Field(768, ge=2, le=4096)
    """768 in training, 1024 in evaluation"""
    total_tokens: int = Field(3584, ge=4, le=1_000_000)
    """video tokens after merging that a clip may cost; 3584 in training, 4096 in evaluation"""
    min_tokens_per_patch: int = Field(4, ge=1)
    """tokens of one temporal patch (two frames) at least"""
    max_tokens_per_patch: int = Field(768, ge=1)
    """and at most"""


def sample_frames(frames: int, duration_s: float, sampling: FrameSampling) -> np.ndarray:
    """Indices [T] of the frames to show of `frames` shown frames: `round(linspace(0, frames - 1, n))` with n the even
    number nearest below `duration_s * sample_fps`, between min_frames and max_frames. A clip with fewer
    frames than n repeats some.

    >>> sample_frames(30, 1.0, FrameSampling()).tolist()
    [0, 10, 19, 29]
    >>> sample_frames(1, 0.04, FrameSampling()).tolist()
    [0, 0, 0, 0]
    """
    count = int(duration_s * sampling.sample_fps) // FRAMES_PER_PATCH * FRAMES_PER_PATCH
    count = max(min(count, sampling.max_frames), sampling.min_frames)
    count = math.ceil(count / FRAMES_PER_PATCH) * FRAMES_PER_PATCH
    return np.asarray(np.round(np.linspace(0, frames - 1, count)), dtype=np.int64)


def equal_times_s(count: int, duration_s: float, fps: float) -> np.ndarray:
    """Times [T] at equal steps, from 0 to the last frame of a clip of constant rate `fps`, or to one step before its
    end where its frames are farther apart. Positions tell these times.

    >>> equal_times_s(4, 2.0, 10.0).round(2).tolist()
    [0.0, 0.63, 1.27, 1.9]
    """
    return np.linspace(0.0, max(duration_s - min(1.0 / fps, duration_s / count), 0.0), count)


def sample_by_time(starts_s: np.ndarray, duration_s: float, fps: float, sampling: FrameSampling, *,
                   earlier: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(indices [T], times [T] in seconds) of the frames to show, under either policy.

    Args:
        starts_s: when each shown frame of the clip starts, ascending, seconds from the start of the clip.
        duration_s: of the clip.
        fps: frames a second of the file, on average.
        earlier: whether the file has a frame before these; it is on screen when the clip starts, and has index -1.

    By number, a frame's time is its start. By time, it is the moment at which the frame is on screen; clips whose
    frames come at equal steps of at most 1 s get what they get by number."""
    picked_T = sample_frames(len(starts_s), duration_s, sampling)
    if sampling.policy == "uniform-2fps" or _constant(starts_s, duration_s):
        return picked_T, starts_s[picked_T]
    times_T = equal_times_s(len(picked_T), duration_s, fps)
    picked_T = np.searchsorted(starts_s - 1e-6, times_T, side="right") - 1
    if not earlier:
        picked_T = np.maximum(picked_T, 0)
    return picked_T, np.where(picked_T < 0, times_T, np.maximum(times_T, starts_s[picked_T]))


def _constant(starts_s: np.ndarray, duration_s: float) -> bool:
    """Whether frames start at equal steps of at most 1 s, the first within one of the clip's start, the last shown for
    about one. At longer steps frames chosen by number may lie farther than that from their times."""
    ends_s = max(starts_s[0], duration_s - starts_s[-1])
    if len(starts_s) < 2:
        return bool(ends_s <= TIME_ERROR_S)
    step_s = (starts_s[-1] - starts_s[0]) / (len(starts_s) - 1)
    off_s = np.abs(starts_s - starts_s[0] - np.arange(len(starts_s)) * step_s).max()
    return bool(step_s <= TIME_ERROR_S + 1e-6 and off_s <= min(step_s / 2, CONSTANT_S)
                and ends_s <= step_s + max(step_s / 2, CONSTANT_S))


def time_error_s(frame_times_s: np.ndarray, duration_s: float, fps: float) -> float:
    """Seconds between the true time of a patch and the time that its position tells, at most over the clip's patches.

    >>> round(time_error_s(np.array([0.0, 0.1, 0.2, 1.9]), 2.0, 10.0), 2)
    0.53
    """
    frames = len(frame_times_s) // FRAMES_PER_PATCH * FRAMES_PER_PATCH
    if frames == 0:
        return 0.0
    told_S = patch_times_s(equal_times_s(frames, duration_s, fps))
    return float(np.abs(patch_times_s(np.asarray(frame_times_s)[:frames]) - told_S).max())


def patch_times_s(frame_times_s: np.ndarray) -> np.ndarray:
    """Times [S] of the temporal patches: the mean of their two frames' true times [T], seconds."""
    pairs_S2 = np.asarray(frame_times_s, dtype=np.float64).reshape(-1, FRAMES_PER_PATCH)
    return np.asarray(pairs_S2.mean(axis=1))


def resized_hw(height: int, width: int, patches: int, sampling: FrameSampling, *, factor: int) -> tuple[int, int]:
    """Pixels (height, width) at which frames enter the tower: multiples of `factor` (28 px for Qwen2.5-VL, 32 px for
    Qwen3-VL, the side of a merged patch), as near to the frame's shape as the token budget lets.

    The budget of a patch is `total_tokens / patches` tokens, within min and max_tokens_per_patch."""
    budget = max(min(sampling.max_tokens_per_patch, sampling.total_tokens // patches), sampling.min_tokens_per_patch)
    most, least = budget * factor**2, sampling.min_tokens_per_patch * factor**2
    new_h = max(factor, round(height / factor) * factor)
    new_w = max(factor, round(width / factor) * factor)
    if new_h * new_w > most:
        shrink = math.sqrt(height * width / most)
        new_h = max(factor, math.floor(height / shrink / factor) * factor)
        new_w = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_h * new_w < least:
        grow = math.sqrt(least / (height * width))
        new_h = math.ceil(height * grow / factor) * factor
        new_w = math.ceil(width * grow / factor) * factor
    # A very long, thin frame can still be over the budget, since no side goes below one merged patch.
    if new_h * new_w > most:
        long = max(factor, most // factor**2 * factor)
        new_h, new_w = (factor, long) if new_w > new_h else (long, factor)
    return new_h, new_w


@dataclass(frozen=True)
class VideoFeatures:
    """The frozen tower's output for a clip.

    main_SND: [S, N, D] features after merging, in the tower's own dtype; deepstack_LSND: L further levels of the same
    shape (Qwen3-VL; empty for Qwen2.5-VL); times_S: float64 [S], seconds of each temporal patch from the start of the
    clip; grid_thw: patches before merging (t = S); seconds_per_patch: temporal stride that enters the positions,
    `2 / effective fps`."""

    main_SND: torch.Tensor
    times_S: np.ndarray
    grid_thw: tuple[int, int, int]
    seconds_per_patch: float
    deepstack_LSND: tuple[torch.Tensor, ...] = field(default=())

    def __post_init__(self) -> None:
        S = self.grid_thw[0]
        shapes = [tuple(x.shape) for x in (self.main_SND, *self.deepstack_LSND)]
        assert self.main_SND.ndim == 3 and len(set(shapes)) == 1, f"levels differ in shape: {shapes}"
        assert shapes[0][0] == S == len(self.times_S), f"{shapes[0]}, grid {self.grid_thw}, {len(self.times_S)} times"

    @property
    def tokens(self) -> int:
        """Video tokens in the prompt: S * N."""
        return int(self.main_SND.shape[0] * self.main_SND.shape[1])

    def permuted(self, order: np.ndarray) -> VideoFeatures:
        """The same clip with the content of patch i taken from patch `order[i]`, all levels together; times and
        positions stay: content moves, time does not (the paper's disruption)."""
        import torch

        index = torch.as_tensor(order, dtype=torch.long, device=self.main_SND.device)
        deep = tuple(level.index_select(0, index) for level in self.deepstack_LSND)
        return VideoFeatures(self.main_SND.index_select(0, index), self.times_S, self.grid_thw, self.seconds_per_patch,
                             deep)


class EncoderFingerprint(Config):
    """What made a feature: two sets with equal fingerprints hold interchangeable features.

    `tower_sha256`: over the tower's tensors sorted by name (name, dtype, shape, bytes)."""

    family: str
    model_id: str
    revision: str | None = None
    tower_sha256: str
    dtype: str
    sampling: FrameSampling
    size: str
    """short label for folder names, such as 7b"""

    @property
    def hex8(self) -> str:
        """First 8 hex digits over everything that decides the numbers (not over the model's name)."""
        import hashlib
        import json

        parts = self.model_dump(mode="json", include={"family", "tower_sha256", "dtype", "sampling"})
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        """ENCODER in a shard set's paths: family, size, first 8 hex of the fingerprint."""
        return f"{self.family}-{self.size}-{self.hex8}"
