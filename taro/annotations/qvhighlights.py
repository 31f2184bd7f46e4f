"""QVHighlights, and TaRO's evaluation files, which took its form: one JSON object a line.

`qid`, `query`, `duration`, `vid`, `relevant_windows` ([[s, e], ...], up to 25); for highlight detection
`relevant_clip_ids` and `saliency_scores` (marks of three annotators for each 2 s clip). A vid is `{youtube}_{s}_{e}`,
the name of a file that is cut already, whose `duration` may differ from e - s, so nothing is read from the name. TaRO's
files name the file in `video_file` and may cut a part out of it (`video_start`, `video_end`)."""

from __future__ import annotations

from typing import Any

from taro.annotations.generic import checked_object
from taro.annotations.lint import RawRow
from taro.annotations.rows import Dropped

__all__ = ["cut_of", "parse_item", "parse_taro_item"]


def parse_item(item: Any, number: int, *, split: str) -> RawRow | Dropped:
    """A line of QVHighlights; lines of its test split have no windows and are dropped, saying so.

    >>> parse_item({"qid": 5, "query": "q", "vid": "a_0_150", "relevant_windows": []}, 1, split="val").video
    'a_0_150'
    """
    data = checked_object(item, number, ("query", "vid", "relevant_windows"))
    if isinstance(data, Dropped):
        return data
    marks = (data.get("relevant_clip_ids"), data.get("saliency_scores"))
    return RawRow(number, data["vid"], data["query"], data["relevant_windows"], data.get("qid"), data.get("duration"),
                  split=split, saliency=None if marks == (None, None) else marks)


def parse_taro_item(item: Any, number: int, *, split: str) -> RawRow | Dropped:
    """A line of TaRO's evaluation files."""
    data = checked_object(item, number, ("query", "video_file", "relevant_windows"))
    if isinstance(data, Dropped):
        return data
    return RawRow(number, data["video_file"], data["query"], data["relevant_windows"], data.get("qid"),
                  data.get("duration"), clip=cut_of(data), split=split, may_be_cut=True)


def cut_of(data: dict[str, Any], start: str = "video_start", end: str = "video_end") -> list[Any] | None:
    """[start, end] of the part that the annotation means, None where it means the whole file."""
    ends = [data.get(start), data.get(end)]
    return None if ends == [None, None] else ends
