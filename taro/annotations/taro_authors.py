"""The files that TaRO's authors train and test on: a JSON list of `data_source`, `prompt` ([{"role", "content"}, ...]),
`videos` ([path]), `video_start`, `video_end`, `reward_model` {"ground_truth": [s, e]}, `extra_info` {"split", "index",
"duration"}; train also has `query` and `captions`, strings of lines "From 0.0s to 6.5s, ...".

Where `query` is missing it is what the user's turn of the prompt puts in double quotes. Ids are `SPLIT-INDEX`; the
split of `extra_info` counts before the one that was asked for."""

from __future__ import annotations

import re
from typing import Any

from taro.annotations.generic import checked_object
from taro.annotations.lint import RawRow
from taro.annotations.qvhighlights import cut_of
from taro.annotations.rows import Dropped
from taro.annotations.time_r1 import named_cut
from taro.core.numbers import number

__all__ = ["caption_items", "parse_item"]

TIME = rf"({number()})\s{{0,4}}(?:seconds?|secs?|s)?"
CAPTION = re.compile(rf"\s{{0,8}}from\s{{1,4}}{TIME}\s{{1,4}}to\s{{1,4}}{TIME}\s{{0,4}}[,:]\s{{0,4}}(.*)",
                     re.IGNORECASE)
QUOTED = re.compile(r'"([^\n]{1,20000})"')


def parse_item(item: Any, number: int, *, split: str) -> RawRow | Dropped:
    """One item as a raw row.

    >>> row = {"videos": ["a.mp4"], "query": "a dog", "reward_model": {"ground_truth": [1, 2]},
    ...        "extra_info": {"split": "test", "index": 4, "duration": 9}}
    >>> parse_item(row, 1, split="train").row_id
    'test-4'
    """
    data = checked_object(item, number, ("videos", "reward_model"))
    if isinstance(data, Dropped):
        return data
    videos, extra = data["videos"], data.get("extra_info")
    if not isinstance(videos, list) or len(videos) != 1:
        return Dropped(number, str(number), "videos is not a list of one path")
    if not isinstance(extra, dict):
        extra = {}
    truth = data["reward_model"].get("ground_truth") if isinstance(data["reward_model"], dict) else None
    query = data.get("query")
    clip = cut_of(data)
    name, index = split if extra.get("split") is None else extra["split"], extra.get("index")
    return RawRow(number, videos[0], _asked(data.get("prompt")) if query is None else query, [truth],
                  f"{name}-{index}" if isinstance(index, int | str) and not isinstance(index, bool) else None,
                  extra.get("duration"), clip=None if clip is not None and named_cut(videos[0], clip) else clip,
                  split=name, captions=caption_items(data["captions"]) if data.get("captions") else None,
                  may_be_cut=True)


def caption_items(value: Any) -> list[Any]:
    """Caption lines as the linter takes captions; what is not such a line stays in the list and is counted there.

    >>> caption_items(["From 0.0s to 6.5s, a woman types", "Then 7"])
    [{'start_s': 0.0, 'end_s': 6.5, 'text': 'a woman types'}, 'Then 7']
    """
    texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    lines = [line for text in texts for line in (text.splitlines() if isinstance(text, str) else [text])]
    return [_caption(line) for line in lines if not (isinstance(line, str) and not line.strip())]


def _caption(line: Any) -> Any:
    match = CAPTION.match(line) if isinstance(line, str) else None
    return line if match is None else {"start_s": float(match[1]), "end_s": float(match[2]), "text": match[3]}


def _asked(prompt: Any) -> str | None:
    """The query of a prompt: its event, else what stands between quotes on a line; None where it quotes nothing."""
    turns = [turn for turn in prompt if isinstance(turn, dict)] if isinstance(prompt, list) else []
    texts = [turn.get("content") for turn in turns if turn.get("role") == "user"]
    for text in texts:
        if not isinstance(text, str):
            continue
        event, closed, _ = text.partition('event "')[2].partition('" in the video')
        match = QUOTED.search(text)
        if closed:
            return event
        if match is not None:
            return match[1]
    return None
