"""A stretch of time in a video.

Time is never a bare float elsewhere in taro: names end in `_s` (seconds), counts of frames in `_frames`. IoU here is
intersection over hull (the union of two touching intervals, their hull otherwise), as the method and every grounding
benchmark use it for single windows."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Moment", "best_iou", "iou", "part_of_file"]

CUT_TOLERANCE_S = 1.0
"""by which the length of a file that holds one clip alone may differ from the clip's"""


@dataclass(frozen=True, slots=True, order=True)
class Moment:
    """`[start_s, end_s]` in seconds from the start of the clip. Reversed and empty moments are representable:
    a model may answer one; `iou` gives them 0."""

    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        """Length in seconds; negative where reversed."""
        return self.end_s - self.start_s

    def clip(self, duration_s: float) -> Moment:
        """Both ends limited to `[0, duration_s]`."""
        return Moment(min(max(self.start_s, 0.0), duration_s), min(max(self.end_s, 0.0), duration_s))

    def is_finite(self) -> bool:
        """False where an end is nan or infinite."""
        return math.isfinite(self.start_s) and math.isfinite(self.end_s)


def iou(a: Moment, b: Moment) -> float:
    """Intersection over hull, in [0, 1]; 0 where the hull is empty or a moment is reversed.

    >>> iou(Moment(0, 10), Moment(5, 10))
    0.5
    >>> iou(Moment(3, 3), Moment(3, 3))
    0.0
    >>> iou(Moment(9, 2), Moment(2, 9))
    0.0
    """
    if a.duration_s < 0 or b.duration_s < 0:
        return 0.0
    hull_s = max(a.end_s, b.end_s) - min(a.start_s, b.start_s)
    if not hull_s > 0:
        return 0.0
    return max(0.0, min(a.end_s, b.end_s) - max(a.start_s, b.start_s)) / hull_s


def best_iou(predicted: Moment, windows: tuple[Moment, ...] | list[Moment]) -> float:
    """`iou` against the window that fits best; 0 where there is none."""
    return max((iou(predicted, window) for window in windows), default=0.0)


def part_of_file(clip: Moment, file_s: float) -> Moment | None:
    """The part to cut out of a file of `file_s` seconds that may have been cut already, None for all of it. Some
    datasets are shared as cut files with the times of the whole ones: a file too short to hold the clip, and as long
    as the clip, is the clip."""
    too_short = clip.end_s > file_s + CUT_TOLERANCE_S
    return None if too_short and abs(file_s - clip.duration_s) <= CUT_TOLERANCE_S else clip
