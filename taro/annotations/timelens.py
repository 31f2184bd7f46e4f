"""TimeLens-Bench: one JSON object, `{"VID": {"duration", "spans": [[s, e], ...], "queries": [...]}}`.

Charades-STA, ActivityNet and QVHighlights, relabelled; one window a query. Rows are `VID#0`, `VID#1`, ..., counted on
through the file. The queries describe moments, not the whole video, so they are no dense captions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from taro.annotations.activitynet import parse_pairs
from taro.annotations.lint import RawRow
from taro.annotations.rows import Dropped

__all__ = ["parse_document"]


def parse_document(document: dict[str, Any], *, split: str) -> Iterator[RawRow | Dropped]:
    """All rows of the file.

    >>> clip = {"duration": 9, "spans": [[0, 4]], "queries": ["a dog runs"]}
    >>> [(row.row_id, row.query, row.captions) for row in parse_document({"a": clip}, split="test")]
    [('a#0', 'a dog runs', None)]
    """
    return parse_pairs(document, spans="spans", texts="queries", split=split, dense=False)
