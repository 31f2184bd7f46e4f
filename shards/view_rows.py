"""The rows of a set's list of queries, as scripts that the browser loads from the folder of pages.

A page that was opened from a folder may load scripts and pictures beside it, and read nothing else. So the rows are
scripts, `taroRows(ENCODERS, CLIPS)`, of some hundred KB each, which view.js collects (the layout of a row stands
there). They are ASCII; every text is made visible, cut to MAX_ROW_TEXT and written as a JSON string, with `<` escaped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from taro.core.text import visible
from taro.grounding.records import ClipRecord, QueryRecord
from taro.shards.view_clip import MAX_PAGE_QUERIES

__all__ = ["MAX_ROWS", "MAX_ROW_TEXT", "RowFiles"]

MAX_ROWS = 200_000
"""queries in the list of one folder of pages"""
MAX_ROW_TEXT = 500
"""characters of a query that the list shows and searches"""
MAX_ROW_WINDOWS = 20
CHUNK_BYTES = 500_000


class RowFiles:
    """Writes the rows of clips, one after another, as files in `folder`, which is made. Holds one file in memory.

    `queries`: listed so far; `left_out`: those for which there was no row; `names`: of the files, after `close`."""

    def __init__(self, folder: Path, encoders: Sequence[str]) -> None:
        folder.mkdir()
        self.queries, self.left_out, self._rows, self.names = 0, 0, 0, list[str]()
        self._folder, self._encoders, self._clips, self._bytes = folder, list(encoders), list[str](), 0

    def add(self, clip: ClipRecord, held: Sequence[str], *, sheet: bool, keeps: Callable[[str, QueryRecord], bool],
            rewards: Mapping[str, float]) -> None:
        """The rows of a clip: its queries that `keeps` lets through, one empty row where it has no query at all.

        `held`: which of the encoders' features it has; `rewards`: mean rewards of rollouts, by query id."""
        rows = [_row(query, place, rewards.get(query.id)) for place, query in enumerate(clip.queries)
                if keeps(clip.key, query)]
        if not clip.queries:
            rows = [["", "", "", None, [], -1, None]]
        fitting = rows[: MAX_ROWS - self._rows]
        self._rows += len(fitting)
        if clip.queries:
            self.queries, self.left_out = self.queries + len(fitting), self.left_out + len(rows) - len(fitting)
        if not fitting:
            return
        text = _script([clip.key, _text(clip.video.path_hint), _number(clip.duration_s), len(clip.captions),
                        [self._encoders.index(name) for name in held], sheet, fitting])
        self._clips.append(text)
        self._bytes += len(text)
        if self._bytes >= CHUNK_BYTES:
            self._write()

    def close(self) -> None:
        """Writes what is left."""
        if self._clips:
            self._write()

    def _write(self) -> None:
        name = f"rows-{len(self.names):05d}.js"
        listed = ",\n".join(self._clips)
        (self._folder / name).write_text(f"taroRows({_script(self._encoders)}, [\n{listed}\n]);\n", encoding="ascii")
        self.names.append(name)
        self._clips, self._bytes = [], 0


def _row(query: QueryRecord, place: int, reward: float | None) -> list[Any]:
    windows = [[_number(start_s), _number(end_s)] for start_s, end_s in query.windows_s[:MAX_ROW_WINDOWS]]
    return [_text(query.id), _text(query.text), _text(query.split), _number(query.difficulty), windows,
            place if place < MAX_PAGE_QUERIES else -1, _number(reward)]


def _text(text: str) -> str:
    """A text as the list shows it."""
    return visible(text if len(text) <= MAX_ROW_TEXT else f"{text[:MAX_ROW_TEXT]}...")


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 3)


def _script(value: Any) -> str:
    """A value as JavaScript that no page and no other encoding reads otherwise."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
