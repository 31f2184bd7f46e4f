"""Caption cache: an append-only journal of what a captioner answered, one JSONL file a slice.

A line is one answer of a captioner: what was asked (the digest of video, stretch, captioner and prompt), what it said,
and a check over both. Lines are flushed to the disk before they are used; a line that was torn by a killed job or
damaged by the disk is ignored, so its question is asked again. Every journal of the folder is read, so the same
question in another slice or run is never asked twice; jobs that share a folder take turns to write.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from taro.core.files import locked
from taro.grounding.moment import Moment

__all__ = ["Journal", "question"]


def question(video_sha256: str, clip: Moment, stretch: Moment, captioner: str, prompt_sha256: str) -> str:
    """Digest of one request: which stretch (seconds of the clip) of which part of which file, asked whom and how."""
    parts = [video_sha256, [clip.start_s, clip.end_s], [stretch.start_s, stretch.end_s], captioner, prompt_sha256]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Journal:
    """Answers by question; new ones go to `folder/captions-INDEX.jsonl`."""

    def __init__(self, folder: Path, index: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"captions-{index:06d}.jsonl"
        self._answers: dict[str, str] = {}
        for path in sorted(folder.glob("captions-*.jsonl")):
            self._read(path)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, asked: str) -> str | None:
        """The answer to a question, None where it was never asked."""
        return self._answers.get(asked)

    def add(self, answers: Iterable[tuple[str, str]]) -> None:
        """Appends (question, answer) pairs and forces them to the disk before it returns."""
        lines = [json.dumps({"question": asked, "text": text, "check": _check(asked, text)}).encode() + b"\n"
                 for asked, text in answers]
        if not lines:
            return
        with self._path.open("ab") as file, locked(file.fileno(), wait=True):
            # A line torn by a killed job gets its end, so that it spoils nothing but itself.
            if file.seek(0, os.SEEK_END) and not _ends_with_newline(self._path):
                file.write(b"\n")
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())
        for line in lines:
            self._take(line)

    def _read(self, path: Path) -> None:
        with path.open("rb") as file:
            for line in file:
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


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
