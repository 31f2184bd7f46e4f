"""ActivityNet Captions: one JSON object, `{"v_ID": {"duration", "timestamps": [[s, e], ...], "sentences": [...]}}`.

Every sentence is a row, `v_ID#0`, `v_ID#1`, ..., and all sentences of a video are its dense captions: people wrote them
to be just that, so `caption.method: annotations` needs no captioner. Sentences are counted on through the file; that
number is the row's line. Two thirds of the sentences have stray blanks; the same sentence may stand for two windows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from taro.annotations.generic import checked_object
from taro.annotations.lint import RawRow, lint_captions
from taro.annotations.rows import Dropped

__all__ = ["parse_document", "parse_pairs"]


def parse_document(document: dict[str, Any], *, split: str) -> Iterator[RawRow | Dropped]:
    """All rows of the file.

    >>> clip = {"duration": 9, "timestamps": [[0, 4], [4, 9]], "sentences": ["A dog runs.", " It barks."]}
    >>> [(row.row_id, row.query, row.windows) for row in parse_document({"v_a": clip}, split="val")]
    [('v_a#0', 'A dog runs.', [[0, 4]]), ('v_a#1', ' It barks.', [[4, 9]])]
    """
    return parse_pairs(document, spans="timestamps", texts="sentences", split=split, dense=True)


def parse_pairs(document: dict[str, Any], *, spans: str, texts: str, split: str,
                dense: bool) -> Iterator[RawRow | Dropped]:
    """Rows of a document that lists, for each video, windows under `spans` and as many queries under `texts`. With
    `dense` the queries of a video are its captions too. A video whose lists do not match, or are empty, is dropped
    as one line."""
    number = 0
    for video, entry in document.items():
        data = checked_object(entry, number + 1, (spans, texts))
        if isinstance(data, Dropped):
            number += 1
            yield data
            continue
        windows, queries = data[spans], data[texts]
        paired = isinstance(windows, list) and isinstance(queries, list) and len(windows) == len(queries)
        if not paired or not queries:
            number += 1
            what = "are empty" if paired else "are not two lists of one length"
            yield Dropped(number, str(number), f"{spans} and {texts} {what}: {video[:60]!a}")
            continue
        captions = _captions(windows, queries, data.get("duration")) if dense else None
        for index, (window, query) in enumerate(zip(windows, queries, strict=True)):
            number += 1
            row_id = f"{video}#{index}"
            yield RawRow(number, video, query, [window], row_id, data.get("duration"), split=split, captions=captions)


def _captions(windows: list[Any], texts: list[Any], duration_s: Any) -> Any:
    ends = [w if isinstance(w, list) and len(w) == 2 else [None, None] for w in windows]
    items = [{"start_s": s, "end_s": e, "text": text} for (s, e), text in zip(ends, texts, strict=True)]
    return lint_captions(items, duration_s)
