"""Captions that were paid for, kept: an append-only journal, one JSONL file a slice.

A line is one answer of a captioner: what was asked (the digest of video, stretch, captioner and prompt) and what it
said. Lines are flushed to the disk before they are used; a torn last line, from a killed job, is ignored. Every
journal of the folder is read, so the same question in another slice, set or run is never asked again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from taro.moment import Moment

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
        lines = [json.dumps({"question": asked, "text": text}) + "\n" for asked, text in answers]
        if not lines:
            return
        with self._path.open("ab") as file:
            # A line torn by a killed job gets its end, so that it spoils nothing but itself.
            if file.tell() and not _ends_with_newline(self._path):
                file.write(b"\n")
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())
        for line in lines:
            self._take(line)

    def _read(self, path: Path) -> None:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                self._take(line)

    def _take(self, line: str) -> None:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            return
        if isinstance(row, dict) and isinstance(row.get("question"), str) and isinstance(row.get("text"), str):
            self._answers[row["question"]] = row["text"]


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
