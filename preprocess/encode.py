"""Features of a clip from a policy's frozen vision tower: one clip at a time, so they depend on nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taro.models.features import FrameSampling, VideoFeatures
from taro.preprocess.video.decode import Frames

if TYPE_CHECKING:
    from taro.models.encoder import Encoder

__all__ = ["encode_clip"]


def encode_clip(encoder: Encoder, frames: Frames, sampling: FrameSampling) -> VideoFeatures:
    """The clip's features on the CPU, in the tower's dtype."""
    x = encoder.encode(frames.frames_THWC, frames.times_s, sampling, duration_s=frames.duration_s)
    deep = tuple(level.cpu() for level in x.deepstack_LSND)
    return VideoFeatures(x.main_SND.cpu(), x.times_S, x.grid_thw, x.seconds_per_patch, deep)
