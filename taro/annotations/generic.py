"""The JSONL that docs/annotations.md recommends for anything else, and the sandbox's own, which is the same.

Required: `video`, `query`, and `windows` ([[start, end], ...] in seconds from the start of the clip, or one [start,
end]) or `start` and `end`. Optional: `qid`, `duration`, `clip` ([start, end] in the file, where the clip is a cut) or
`clip_start` and `clip_end`, `split`, `difficulty`, `captions` ([{"start_s", "end_s", "text"}, ...]). An optional key
that is null is absent. Other keys are not read; the sandbox adds `events`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taro.annotations.lint import RawRow
from taro.annotations.rows import Dropped

__all__ = ["FIELDS", "checked_object", "parse_item", "row_of"]

FIELDS = ("video", "query", "windows", "start", "end", "qid", "duration", "clip", "clip_start", "clip_end", "split",
          "difficulty", "captions")


def parse_item(item: Any, number: int, *, split: str) -> RawRow | Dropped:
    """One object as a raw row; `split` serves rows that name none.

    >>> parse_item({"video": "a.mp4", "query": "a dog barks", "start": 1, "end": 2}, 3, split="train").windows
    [[1, 2]]
    """
    windows = isinstance(item, dict) and (item.get("windows") is not None or not {"start", "end"} <= {*item})
    data = checked_object(item, number, ("video", "query", *(["windows"] if windows else [])))
    return data if isinstance(data, Dropped) else row_of(data, number, split=split)


def row_of(data: Mapping[str, Any], number: int, *, split: str) -> RawRow:
    """A raw row of values under the names of `FIELDS`."""
    windows, ends = data.get("windows"), [data.get("start"), data.get("end")]
    if windows is None and ends != [None, None]:
        windows = [ends]
    clip, cut = data.get("clip"), [data.get("clip_start"), data.get("clip_end")]
    if clip is None and cut != [None, None]:
        clip = cut
    name = data.get("split")
    return RawRow(number, data.get("video"), data.get("query"), windows, data.get("qid"), data.get("duration"), clip,
                  split if name is None else name, data.get("difficulty"), data.get("captions"))


def checked_object(value: Any, number: int, required: tuple[str, ...]) -> dict[str, Any] | Dropped:
    """`value` where it is an object with the keys `required`; `number` is that of the line or item."""
    if not isinstance(value, dict):
        return Dropped(number, str(number), f"not a JSON object: got a {type(value).__name__}")
    absent = [key for key in required if key not in value]
    return Dropped(number, str(number), f"key missing: {', '.join(absent)}") if absent else value
