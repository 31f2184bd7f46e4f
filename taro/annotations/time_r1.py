"""TimeR1 / TimeRFT: a JSON list of `video`, `duration`, `timestamp` [s, e], `sentence`, `qid`, `video_start`,
`video_end` (or null), `difficulty`, `pred` [s, e].

665 of 2,500 rows mean a part of a longer video. 509 of those files are shared as that part already, and are named so
(`ID_00:00:39:000_00:01:24:700.mp4`): where the name says what `video_start` and `video_end` say, there is nothing left
to cut. For the others only the length of the file at hand can tell: their rows carry the clip and `may_be_cut`.

`difficulty` is 100 times the IoU of a base model's answer `pred`: higher is easier. `pred` is not read."""

from __future__ import annotations

import re
from typing import Any

from taro.annotations.generic import checked_object
from taro.annotations.lint import RawRow, as_float
from taro.annotations.qvhighlights import cut_of
from taro.annotations.rows import Dropped
from taro.core.numbers import NAME_CLOCK

__all__ = ["named_cut", "parse_item"]

NAMED_CUT = re.compile(rf"_{NAME_CLOCK}_{NAME_CLOCK}(?:\.\w{{1,5}})?$")
SAME_S = 1.0


def parse_item(item: Any, number: int, *, split: str) -> RawRow | Dropped:
    """One item as a raw row.

    >>> row = {"video": "a_00:00:39:000_00:01:24:700.mp4", "sentence": "a dog", "timestamp": [34.9, 41.9],
    ...        "video_start": 39.0, "video_end": 84.7, "difficulty": 41.0}
    >>> parse_item(row, 1, split="train").clip is None
    True
    """
    data = checked_object(item, number, ("video", "sentence", "timestamp"))
    if isinstance(data, Dropped):
        return data
    clip = cut_of(data)
    if clip is not None and named_cut(data["video"], clip):
        clip = None
    return RawRow(number, data["video"], data["sentence"], [data["timestamp"]], data.get("qid"), data.get("duration"),
                  clip=clip, split=split, difficulty=data.get("difficulty"), may_be_cut=True)


def named_cut(video: Any, clip: list[Any]) -> bool:
    """Whether the name of a file says that it is `clip` already.

    >>> named_cut("a_00:00:39:000_00:01:24:700.mp4", [39.0, 84.7]), named_cut("a.mp4", [39.0, 84.7])
    (True, False)
    """
    match = NAMED_CUT.search(video[-200:]) if isinstance(video, str) else None
    annotated = [as_float(end) for end in clip]
    if match is None or None in annotated:
        return False
    named = [_seconds(*match.groups()[:4]), _seconds(*match.groups()[4:])]
    return all(end is not None and abs(end - other) <= SAME_S for end, other in zip(annotated, named, strict=True))


def _seconds(hours: str, minutes: str, seconds: str, milliseconds: str) -> float:
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + int(milliseconds.ljust(3, "0")) / 1000
