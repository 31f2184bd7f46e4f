"""A captioner behind its cache: requests in, captions in seconds of the clip out, nothing asked twice.

Requests that the cache does not know are asked in batches of consecutive ones; what is answered is in the cache before
it is used. Failures are handed on and not kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from taro.grounding.moment import Moment
from taro.grounding.prompts import parse_captions
from taro.grounding.records import DenseCaption
from taro.preprocess.captioners.base import Captioner, Failure, Request
from taro.preprocess.captioners.cache import CaptionCache, question

__all__ = ["CachedCaptioner", "tidy"]


class CachedCaptioner:
    """`batch`: requests that the captioner gets at once; `round_s`: times that it gives are multiples of this."""

    def __init__(self, captioner: Captioner, cache: CaptionCache, *, batch: int, round_s: float) -> None:
        self._captioner, self._cache, self._batch, self._round_s = captioner, cache, batch, round_s
        self._index: int | None = None
        self._prompt_sha256 = hashlib.sha256(captioner.prompt.encode()).hexdigest()

    def captions(self, requests: Sequence[Request], index: int) -> list[list[DenseCaption] | Failure]:
        """Captions of every request, times in seconds of the clip; new answers go to the cache's file of slice
        `index`."""
        if index != self._index:
            self._cache.refresh()
            self._index = index
        asked = [self._question(request) for request in requests]
        # Two segments are never the same question, but one clip may be in a slice under two names.
        new = [i for i, what in enumerate(asked) if self._cache.get(what) is None and asked.index(what) == i]
        failed: dict[str, Failure] = {}
        for start in range(0, len(new), self._batch):
            batch = new[start : start + self._batch]
            answers = dict(zip((asked[i] for i in batch), self._captioner.describe([requests[i] for i in batch]),
                               strict=True))
            self._cache.add(index, ((what, text) for what, text in answers.items() if isinstance(text, str)))
            failed |= {what: failure for what, failure in answers.items() if isinstance(failure, Failure)}
        return [failed[what] if what in failed else self._read(request, self._cache.get(what) or "")
                for request, what in zip(requests, asked, strict=True)]

    def _question(self, request: Request) -> str:
        clip = Moment(request.frames.clip.start_s, request.frames.clip.end_s)
        return question(request.frames.facts.sha256, clip, request.stretch, self._captioner.fingerprint,
                        self._prompt_sha256)

    def _read(self, request: Request, text: str) -> list[DenseCaption]:
        if request.whole:
            return tidy(parse_captions(text), request.frames.duration_s, round_s=self._round_s)
        line = " ".join(text.split())
        found = [DenseCaption(start_s=request.stretch.start_s, end_s=request.stretch.end_s, text=line)] if line else []
        return tidy(found, request.frames.duration_s)


def tidy(captions: Sequence[DenseCaption], duration_s: float, *, round_s: float | None = None) -> list[DenseCaption]:
    """Captions inside the clip, in chronological order, each once: times rounded to `round_s`, clipped to
    `[0, duration_s]`; what is empty after that is left out."""
    kept: dict[tuple[float, float, str], DenseCaption] = {}
    for caption in captions:
        start_s, end_s = caption.start_s, caption.end_s
        if round_s is not None:
            start_s, end_s = round(start_s / round_s) * round_s, round(end_s / round_s) * round_s
        moment = Moment(round(start_s, 6), round(end_s, 6)).clip(duration_s)
        if moment.duration_s > 0 and caption.text.strip():
            new = DenseCaption(start_s=moment.start_s, end_s=moment.end_s, text=caption.text.strip())
            kept.setdefault((new.start_s, new.end_s, new.text), new)
    return [kept[place] for place in sorted(kept)]
