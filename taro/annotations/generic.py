"""The JSONL that docs/annotations.md recommends for anything else, and the sandbox's own, which is the same.

Required: `video`, `query`, `windows` ([[start, end], ...] in seconds from the start of the clip). Optional: `qid`,
`duration`, `clip` ([start, end] in the file, where the clip is a cut), `split`, `difficulty`, `captions`
([{"start_s", "end_s", "text"}, ...]). Other keys are not read; the sandbox adds `events`."""

from __future__ import annotations

from typing import Any

from taro.annotations.lint import RawRow
from taro.annotations.reading import Line
from taro.annotations.rows import Dropped
from taro.core.json import strict_json

__all__ = ["checked_object", "json_object", "parse_line"]

REQUIRED = ("video", "query", "windows")


def parse_line(line: Line, *, split: str) -> RawRow | Dropped:
    """One line as a raw row; `split` serves rows that name none.

    >>> parse_line(Line(3, '{"video": "a.mp4", "query": "a dog barks", "windows": [[1, 2]]}'), split="train").video
    'a.mp4'
    """
    data = json_object(line, REQUIRED)
    if isinstance(data, Dropped):
        return data
    return RawRow(line.number, data["video"], data["query"], data["windows"], row_id=data.get("qid"),
                  duration_s=data.get("duration"), clip=data.get("clip"), split=data.get("split", split),
                  difficulty=data.get("difficulty"), captions=data.get("captions"))


def json_object(line: Line, required: tuple[str, ...]) -> dict[str, Any] | Dropped:
    """The JSON object of a line, with the keys that its format cannot do without."""
    try:
        return checked_object(strict_json(line.text.encode(), any_value=True), line.number, required)
    except ValueError as error:
        return Dropped(line.number, str(line.number), f"not JSON: {error}"[:200])


def checked_object(value: Any, number: int, required: tuple[str, ...]) -> dict[str, Any] | Dropped:
    """`value` where it is an object with the keys `required`; `number` is that of the line or item."""
    if not isinstance(value, dict):
        return Dropped(number, str(number), f"not a JSON object: got a {type(value).__name__}")
    absent = [key for key in required if key not in value]
    return Dropped(number, str(number), f"key missing: {', '.join(absent)}") if absent else value
