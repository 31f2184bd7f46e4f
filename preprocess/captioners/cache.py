"""Caption cache: what a captioner answered, in append-only files, one a slice, so that nothing is asked twice.

A line is one answer: the question (digest of video, stretch, captioner and prompt), the text, and a check over both.
Lines are forced to the disk before they are used. A line that was torn by a killed job or damaged by the disk is
ignored, so its question is asked again. One cache serves a whole job: it reads each file once, and before each slice
what another job appended to the file of that slice since. Files of other slices are not looked at again: what a slice
costs does not grow with the number of slices. Jobs that share a folder take turns to write.

Requests that the cache does not know are asked in batches of consecutive ones, or all together of a captioner whose
answers come one by one; then each is kept as it comes. Failures are handed on and not kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from taro.core.files import fsync, locked, make_folders
from taro.grounding.moment import Moment
from taro.grounding.prompts import parse_captions
from taro.grounding.records import DenseCaption
from taro.preprocess.captioners.base import Captioner, Failure, Request, StreamingCaptioner
from taro.preprocess.captioners.imported import Entry, fit

__all__ = ["CachedCaptioner", "CaptionCache", "question"]


def question(video_sha256: str, clip: Moment, stretch: Moment, captioner: str, prompt_sha256: str) -> str:
    """Digest of one request: which stretch (seconds of the clip) of which part of which file, asked whom and how."""
    parts = [video_sha256, [clip.start_s, clip.end_s], [stretch.start_s, stretch.end_s], captioner, prompt_sha256]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class CaptionCache:
    """Answers by question, from every `folder/captions-*.jsonl`."""

    def __init__(self, folder: Path) -> None:
        make_folders(folder)
        self._folder = folder
        self._answers: dict[str, str] = {}
        self._known_bytes: dict[Path, int] = {}
        """of each file: the whole lines that were read"""
        self.refresh()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, asked: str) -> str | None:
        """The answer to a question, None where none is known."""
        return self._answers.get(asked)

    def refresh(self, index: int | None = None) -> None:
        """Reads what was appended since the last time to the file of slice `index`; None: to every file."""
        for path in sorted(self._folder.glob("captions-*.jsonl")) if index is None else [self._file(index)]:
            try:
                known, size = self._known_bytes.get(path, 0), path.stat().st_size
            except FileNotFoundError:
                continue
            if size == known:
                continue
            with path.open("rb") as file:
                at = file.seek(known if size > known else 0)
                for line in file:
                    self._take(line)
                    at += len(line) if line.endswith(b"\n") else 0  # a torn one may have got its end by the next time
            self._known_bytes[path] = at

    def _file(self, index: int) -> Path:
        return self._folder / f"captions-{index:06d}.jsonl"

    def add(self, index: int, answers: Iterable[tuple[str, str]]) -> None:
        """Appends (question, answer) pairs to the file of slice `index`, forced to the disk before it returns."""
        lines = [json.dumps({"question": asked, "text": text, "check": _check(asked, text)}).encode() + b"\n"
                 for asked, text in answers]
        if not lines:
            return
        path = self._file(index)
        with path.open("a+b") as file, locked(file.fileno(), wait=True):
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - 1, 0))
            # A line torn by a killed job gets its end, so that it spoils nothing but itself.
            data = (b"" if file.read(1) in (b"", b"\n") else b"\n") + b"".join(lines)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if not end:
                fsync(self._folder)  # the name of a new file
        if self._known_bytes.get(path, 0) == end:
            self._known_bytes[path] = end + len(data)
        for line in lines:
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(row, dict):
            return
        asked, text = row.get("question"), row.get("text")
        if isinstance(asked, str) and isinstance(text, str) and row.get("check") in (None, _check(asked, text)):
            self._answers[asked] = text  # an older taro wrote no check


def _check(asked: str, text: str) -> str:
    return hashlib.sha256(json.dumps([asked, text]).encode()).hexdigest()[:16]


class CachedCaptioner:
    """A captioner behind its cache. `batch`: requests that it gets at once; `round_s`: times that it gives are rounded
    to multiples of this; `heard` is called with the status of a captioner whose answers come one by one, as they come.
    """

    def __init__(self, captioner: Captioner, cache: CaptionCache, *, batch: int, round_s: float,
                 heard: Callable[[str], None] = lambda status: None) -> None:
        self._captioner, self._cache, self._batch, self._round_s = captioner, cache, batch, round_s
        self._heard = heard
        self._index: int | None = None
        self._prompt_sha256 = hashlib.sha256(captioner.prompt.encode()).hexdigest()

    def captions(self, requests: Sequence[Request], index: int) -> list[list[DenseCaption] | Failure]:
        """Captions of every request, times in seconds of the clip; new answers go to the cache's file of slice
        `index`."""
        if index != self._index:
            self._cache.refresh(index)
            self._index = index
        asked = [self._question(request) for request in requests]
        # Two segments are never the same question, but one clip may be in a slice under two names.
        new = [i for i, what in enumerate(asked) if self._cache.get(what) is None and asked.index(what) == i]
        failed: dict[str, Failure] = {}
        for some in self._answers([requests[i] for i in new]):
            answers = [(asked[new[at]], answer) for at, answer in some]
            self._cache.add(index, [(what, answer) for what, answer in answers if isinstance(answer, str)])
            failed |= {what: answer for what, answer in answers if isinstance(answer, Failure)}
        assert all(asked[i] in failed or self._cache.get(asked[i]) is not None for i in new), "a request got no answer"
        return [failed[what] if what in failed else self._read(request, self._cache.get(what) or "")
                for request, what in zip(requests, asked, strict=True)]

    def _answers(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, str | Failure]]]:
        """(which request, its answer), as many at once as there are."""
        if isinstance(self._captioner, StreamingCaptioner):
            for found in self._captioner.describe_each(requests) if requests else ():
                yield [found]
                self._heard(self._captioner.status)
            return
        for start in range(0, len(requests), self._batch):
            batch = requests[start : start + self._batch]
            yield list(zip(range(start, start + len(batch)), self._captioner.describe(batch), strict=True))

    def _question(self, request: Request) -> str:
        clip = Moment(request.frames.clip.start_s, request.frames.clip.end_s)
        return question(request.frames.facts.sha256, clip, request.stretch, self._captioner.fingerprint,
                        self._prompt_sha256)

    def _read(self, request: Request, text: str) -> list[DenseCaption]:
        if request.whole:
            step = self._round_s
            found = [Entry(round(c.start_s / step) * step, round(c.end_s / step) * step, c.text)
                     for c in parse_captions(text)]
        else:
            found = [Entry(request.stretch.start_s, request.stretch.end_s, " ".join(text.split()))]
        return fit(found, request.frames.duration_s)[0]
