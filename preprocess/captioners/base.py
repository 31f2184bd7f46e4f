"""The seam between captions and who writes them: what a captioner is asked, and what it answers.

With `segment.method: captioner` a request is a whole clip and its answer brings its own times, in lines of the form
"From 2.0s to 5.5s, ..."; otherwise a request is one segment. A captioner knows neither slices nor the disk: the cache
(cache.py) stands before it. Captions that somebody else wrote need no request (imported.py).

Legend: T sampled frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from taro.grounding.moment import Moment
from taro.preprocess.video.decode import Frames

__all__ = ["Captioner", "Failure", "Request", "StreamingCaptioner", "after_reasoning"]


@dataclass(frozen=True)
class Request:
    """A stretch of a clip to describe. `stretch`: seconds of the clip; `whole`: the answer gives its own times."""

    frames: Frames
    stretch: Moment
    whole: bool

    def cut(self) -> tuple[np.ndarray, np.ndarray, float]:
        """(frames, their times from the start of the stretch, its length in seconds); an even number of frames, at
        least 2, the last repeated where it must be; the nearest one where none lies inside."""
        times_s, stretch = self.frames.times_s, self.stretch
        inside = np.flatnonzero((times_s >= stretch.start_s - 1e-6) & (times_s < stretch.end_s - 1e-6))
        if not len(inside):
            inside = np.abs(times_s - (stretch.start_s + stretch.end_s) / 2).argmin(0, keepdims=True)
        chosen = np.concatenate([inside, inside[-1:]]) if len(inside) % 2 else inside
        return self.frames.views[chosen], times_s[chosen] - stretch.start_s, stretch.duration_s


@dataclass(frozen=True)
class Failure:
    """A request that got no caption. `reason`: a few words, the same for all failures of its kind, under which the
    ledger counts them; `transient`: asking again later may help; `detail`: the whole message."""

    reason: str
    transient: bool
    detail: str = ""

    def __str__(self) -> str:
        return self.detail or self.reason


class Captioner(Protocol):
    """Something that describes stretches of video.

    `fingerprint`: whatever decides what it says (model, decoding, dtype); `prompt`: what it is asked. An answer is kept
    under both, so a captioner that changes without either would be answered from the cache.

    `describe` gives one answer a request, in order: a text, which may be empty (the captioner has nothing to say), or a
    `Failure`. Failures are not kept: the clip's rows are skipped with the reason, and `--retry transient` asks those
    again that are transient. An exception ends the job: it is for what no other request can escape (a wrong key, no
    memory). Requests come in batches that the plan alone decides; one answer must not depend on the others'."""

    fingerprint: str
    prompt: str

    def describe(self, requests: Sequence[Request]) -> Sequence[str | Failure]:
        """One answer a request, in order."""


@runtime_checkable
class StreamingCaptioner(Captioner, Protocol):
    """A captioner whose answers come one by one, in any order. It is asked through `describe_each` alone, for all
    requests of `caption.batch` clips at once, and each answer is kept before the next is taken: a job that is killed
    loses what is under way. `status`: for people, in a few words, how it goes."""

    @property
    def status(self) -> str:
        """How it goes, for the progress output."""

    def describe_each(self, requests: Sequence[Request]) -> Iterator[tuple[int, str | Failure]]:
        """(which request, its answer), once each. Where it raises, it has given every answer that it has."""


def after_reasoning(text: str) -> str | Failure:
    """A response without the reasoning that opens it.

    >>> after_reasoning("<think>a door? </think> A door opens. "), after_reasoning("A door opens.")
    ('A door opens.', 'A door opens.')
    """
    if text.lstrip().startswith("<think>"):
        _, closed, text = text.partition("</think>")
        if not closed:
            return Failure("reasoning without end", transient=False,
                           detail="the captioner's reasoning has no </think>; raise "
                                  "caption.max_new_tokens, or caption with a model that does not reason")
    return text.strip()
