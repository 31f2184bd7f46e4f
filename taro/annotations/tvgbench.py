"""TVGBench: a JSON list of `path`, `question`, `answer` ("13.4-28.1", a string), `start`, `end` (or null), `duration`,
`question_type`, `source`, `dataset_name` (missing in 168 of 800), `qsemtype`.

`start` and `end` cut a clip out of the file; the answer counts from the start of the clip. Ids are item numbers. Eleven
windows have no length: the linter drops them, so a perfect model reaches 100 % here and 98.6 % where they stay in."""

from __future__ import annotations

import re
from typing import Any

from taro.annotations.generic import checked_object
from taro.annotations.lint import RawRow
from taro.annotations.qvhighlights import cut_of
from taro.annotations.rows import Dropped
from taro.core.numbers import number

__all__ = ["parse_item"]

ANSWER = re.compile(rf"\s{{0,9}}({number(signed=True)})\s{{0,9}}-\s{{0,9}}({number(signed=True)})\s{{0,9}}")


def parse_item(item: Any, number: int, *, split: str) -> RawRow | Dropped:
    """One item as a raw row.

    >>> row = {"path": "a.mp4", "question": "a dog", "answer": "13.4-28.1", "start": None, "end": None, "duration": 30}
    >>> parse_item(row, 1, split="test").windows
    [[13.4, 28.1]]
    """
    data = checked_object(item, number, ("path", "question", "answer"))
    if isinstance(data, Dropped):
        return data
    answer = data["answer"]
    match = ANSWER.fullmatch(answer) if isinstance(answer, str) else None
    if match is None:
        return Dropped(number, str(number), f"answer is not START-END: {str(answer)[:60]!a}")
    return RawRow(number, data["path"], data["question"], [[float(match[1]), float(match[2])]],
                  duration_s=data.get("duration"), clip=cut_of(data, "start", "end"), split=split, may_be_cut=True)
