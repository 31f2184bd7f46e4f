"""The JSONL that docs/annotations.md recommends for anything else, and the sandbox's own, which is the same.

Required: `video`, `query`, `windows` ([[start, end], ...] in seconds from the start of the clip). Optional: `qid`,
`duration`, `clip` ([start, end] in the file, where the clip is a cut), `split`, `difficulty`, `captions`
([{"start_s", "end_s", "text"}, ...]). Other keys are not read; the sandbox adds `events`.
"""

from __future__ import annotations

import json

from taro.annotations.lint import RawRow
from taro.annotations.reading import Line
from taro.annotations.rows import Dropped

__all__ = ["parse_line"]

REQUIRED = ("video", "query", "windows")


def parse_line(line: Line, *, split: str) -> RawRow | Dropped:
    """One line as a raw row; `split` serves rows that name none.

    >>> parse_line(Line(3, '{"video": "a.mp4", "query": "a dog barks", "windows": [[1, 2]]}'), split="train").video
    'a.mp4'
    """
    number = str(line.number)
    try:
        data = json.loads(line.text)
    except (ValueError, RecursionError) as error:
        return Dropped(line.number, number, f"not JSON: {error}"[:200])
    if not isinstance(data, dict):
        return Dropped(line.number, number, f"not a JSON object: got a {type(data).__name__}")
    absent = [key for key in REQUIRED if key not in data]
    if absent:
        return Dropped(line.number, number, f"key missing: {', '.join(absent)}")
    return RawRow(
        line.number,
        data["video"],
        data["query"],
        data["windows"],
        row_id=data.get("qid"),
        duration_s=data.get("duration"),
        clip=data.get("clip"),
        split=data.get("split", split),
        difficulty=data.get("difficulty"),
        captions=data.get("captions"),
    )
